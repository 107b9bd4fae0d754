"""The benchmark and the random checkpoints from the command line."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import driver

import dsolo_jax as dsolo
from experiments.benchmarks import timing

benchmark = driver("benchmark")


def test_a_row_says_what_it_knows():
    row = {"stage": "vae", "case": "512x512", "seconds": 0.5, "share_of_peak": None}
    assert benchmark.line(row).split() == ["vae", "512x512", "0.50000", "s"]
    row |= timing.beside(0.5, "torch", 2.0) | {"flops": 1.5e9, "squares": 1.406}
    assert benchmark.line(row).endswith("0.250 x torch (2.00000 s)  1.5e+09 FLOP  1.41 N^2 floats")


def test_rows_are_one_for_each_baseline():
    jobs = {"ours": lambda: None, "bare": lambda: None, "torch": lambda: None}
    rows = timing.rows("solver", "case", jobs, repeats=2, scale=0.5, flops=3)
    assert [row["baseline"] for row in rows] == ["bare", "torch"]
    for row in rows:
        assert row["ratio"] == row["seconds"] / row["baseline_seconds"] and row["flops"] == 3
    [alone] = timing.rows("solver", "case", {"ours": jobs["ours"]}, repeats=2)
    assert alone.keys() == {"stage", "case", "seconds"}


def test_a_baseline_without_memory_is_left_out(capsys):
    def fails():
        raise RuntimeError("out of memory")

    [row] = timing.rows("clip", "case", {"ours": lambda: None, "torch": fails}, repeats=1)
    assert "baseline" not in row
    assert "clip, case, without torch: out of memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        timing.rows("clip", "case", {"ours": fails}, repeats=1)


def test_a_program_is_run_and_accounted_for():
    job, account = timing.program(lambda x, y: x @ y, jnp.ones((3, 4)), y=jnp.ones((4, 5)))
    assert (job() == 4).all() and job().shape == (3, 5)
    assert account["flops"] == 2 * 3 * 4 * 5 and account["temporary_bytes"] >= 0


def test_a_missing_torch_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tests.oracles.baselines", raising=False)
    assert timing.torch_jobs("clip", None, None) == {}
    assert "clip without its torch baseline: import of torch" in capsys.readouterr().err


def test_the_torch_baseline_of_the_solver_does_what_ours_does():
    """A chain with neighbours and a few far links, some of whose patches are never reached."""
    torch = pytest.importorskip("torch")
    from tests.oracles.baselines import robust_velocity

    readings, random = dsolo.Readings(), np.random.default_rng(0)
    cosines = random.normal(0.2, 0.05, (2, 5, 36)).astype(np.float32)
    attention = np.exp(-np.abs(np.subtract.outer(np.arange(36), np.arange(36))) / 2.0)
    attention = np.stack([attention, attention * random.uniform(size=(36, 36))])
    attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float32)
    presence = random.normal(0.2, 0.05, (2, 5)).astype(np.float32)
    found = robust_velocity(*map(torch.tensor, (cosines, attention, presence)), readings)
    wanted = jax.vmap(dsolo.discrepancy)(*map(jnp.asarray, (cosines, attention, presence)))
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-4)


def test_a_random_clip_is_written_and_needs_a_tokenizer(tiny_clip, tmp_path):
    command = [sys.executable, "-m", "tests.oracles.random_checkpoint"]
    refused = subprocess.run(
        [*command, "--tokenizer=nowhere", f"--output_dir={tmp_path}/no"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1 and "nowhere holds no tokenizer" in refused.stderr
    assert not (tmp_path / "no").exists()

    from tests.oracles.random_checkpoint import write_clip

    config, _ = dsolo.clip.load(tiny_clip)
    write_clip(tmp_path / "clip", config, tiny_clip, seed=1)
    found, params = dsolo.clip.load(tmp_path / "clip")
    assert found == config and json.loads((tmp_path / "clip" / "vocab.json").read_text())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
