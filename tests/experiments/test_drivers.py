"""What the drivers lean on: the torch baseline of the solver, and random checkpoints."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo


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
