"""The benchmark from the command line: which rows there are, what they say, and earlier runs."""

import json
import os
import re
import socket
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import call

import dsolo_jax as dsolo
from dsolo_jax import attention
from dsolo_jax.pixels import Labelling
from experiments.benchmarks import (
    earlier,
    environment,
    pipeline,
    questions,
    reading,
    running,
    solver,
    timing,
    world,
)
from experiments.benchmarks.running import Case, Work
from experiments.benchmarks.timing import Program

_FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

# Drivers that other tests have imported are run anew.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture
def stage():
    """A stage of given rows, by their seconds or what is raised instead: they are measured when
    they are asked for."""

    def give(**rows):
        def cases():
            for name, found in rows.items():

                def measure(found=found):
                    if isinstance(found, Exception):
                        raise found
                    return {"seconds": found}

                yield Case("solver", name, measure=measure)

        patch = mock.patch.object(solver, "run", cases)
        patches.append(patch)
        patch.start()

    patches = []
    yield give
    for patch in patches:
        patch.stop()


def _run(*flags):
    return call("benchmark", "--stage=solver", *flags)


def test_a_row_is_timed_traced_and_written(tmp_path):
    """The real thing, of the smallest program that there is."""
    out, traces = tmp_path / "run.json", tmp_path / "traces"
    case = "velocity step, N=1024 C=21"
    ended = _run(f"--filter={case}$", f"--output={out}", f"--trace_dir={traces}")
    assert ended.returncode == 0 and f"solver {case}" in ended.stdout
    found = json.loads(out.read_text())
    assert found["complete"] and found["left_out"] == {}
    [row] = found["rows"]
    assert (row["stage"], row["case"]) == ("solver", case)
    assert row["p10"] <= row["seconds"] <= row["p90"] and len(row["timings"]) >= 3
    assert row["lower_s"] > 0 and row["compile_s"] > 0 and row["device_seconds"] is None
    assert row["flops"] == 2 * 1024**2 * 21
    assert (
        row["intensity"] == row["flops"] / row["least_bytes"] and row["least_bytes"] > 4 * 1024**2
    )
    assert row["bytes_accessed"] > 0 and row["peak_bytes"] > 4 * 1024**2
    assert row["beside"]["bare products"]["ratio"] > 0 and "bound" not in row
    assert list((traces / "solver-velocity-step-N=1024-C=21").rglob("*.xplane.pb"))


def test_the_environment_has_no_places_and_no_names(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/dump --xla_x=3")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/tmp/cache")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "somewhere:1")
    monkeypatch.setenv("JAX_LOG_COMPILES", "0")
    found = environment.environment()
    assert {"commit", "clean", "python", "jax", "jaxlib", "numpy", "torch"} < found.keys()
    assert found["device"] == jax.devices()[0].device_kind and found["dtype"] == "float32"
    assert found["variables"]["XLA_FLAGS"] == "--xla_dump_to=… --xla_x=3"
    assert found["variables"]["JAX_LOG_COMPILES"] == "0"
    text = json.dumps(found)
    for private in (
        "somewhere",
        "/tmp",
        os.getcwd(),
        os.path.expanduser("~"),
        socket.gethostname(),
    ):
        assert private not in text


def test_no_row_but_those_of_the_filter_is_prepared(stage, tmp_path):
    stage(one=1.0, other=AssertionError("prepared"))
    ended = _run("--filter=r one$")
    assert ended.returncode == 0 and "solver one" in ended.stdout
    assert "matches no row" in _run("--filter=nothing", f"--output={tmp_path}/run.json").stderr
    assert not list(tmp_path.iterdir())
    assert "no regular expression" in _run("--filter=(").stderr


def test_when_the_time_is_over_no_row_is_started(stage, tmp_path):
    stage(one=1.0, other=2.0)
    ended = _run("--seconds=0", f"--output={tmp_path}/run.json")
    assert ended.returncode == 0 and "left out: solver other: no time left" in ended.stdout
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["rows"] == [] and found["left_out"].keys() == {"solver one", "solver other"}
    assert _run("--seconds=100").stdout.count("solver") == 2


def test_a_row_that_does_not_fit_is_named_and_the_others_go_on(stage, tmp_path):
    stage(large=_FULL, larger=MemoryError("of the host"), small=1.0)
    ended = _run(f"--output={tmp_path}/run.json")
    assert ended.returncode == 0 and "solver small:  1 s" in ended.stdout
    left_out = json.loads((tmp_path / "run.json").read_text())["left_out"]
    assert "memory is full" in left_out["solver large"] and "host" in left_out["solver larger"]


def test_a_run_that_is_cut_off_leaves_what_it_has(stage, tmp_path):
    stage(one=1.0, broken=KeyError("a fault of ours"), other=1.0)
    with pytest.raises(KeyError):
        _run(f"--output={tmp_path}/run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    assert not found["complete"] and [row["case"] for row in found["rows"]] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ------------------------------------------------------------------------------- earlier runs


@pytest.fixture
def old(stage, tmp_path):
    """The JSON of a run with rows one, gone and same."""
    stage(one=1.0, gone=1.0, same=1.0)
    assert _run(f"--output={tmp_path}/old.json").returncode == 0
    return tmp_path / "old.json"


def test_a_slower_row_is_an_exit_code(stage, old, tmp_path):
    stage(one=1.25, new=1.0, same=1.0)
    ended = _run(f"--baseline={old}", f"--output={tmp_path}/new.json")
    assert ended.returncode == 1 and ended.stderr == "slower by more than 1.1: solver one\n"
    assert re.search(r"\| solver one +\| +1.000000 \| +1.250000 \| 1.250 \|", ended.stdout)
    assert "only in the earlier run: solver gone" in ended.stdout
    assert "only in this run: solver new" in ended.stdout
    assert len(json.loads((tmp_path / "new.json").read_text())["rows"]) == 3
    ended = _run(f"--baseline={old}", "--slower=1.3")
    assert ended.returncode == 0 and "1.250" in ended.stdout


def test_what_was_not_asked_for_is_not_missing(stage, old):
    stage(one=0.5, same=1.0)
    ended = _run(f"--baseline={old}", "--filter=r one")
    assert ended.returncode == 0 and "0.500" in ended.stdout and "only in" not in ended.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-9], "cannot be compared with"),
        (lambda text: "[]", "cannot be compared with"),
        (lambda text: '{"rows": [], "machine": {}}', "without 'environment'"),
        (lambda text: text.replace('"device": "cpu"', '"device": "NVIDIA H200"'), "of device"),
        (lambda text: text.replace('"dtype": "float32"', '"dtype": "bfloat16"'), "of dtype"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_before_anything_is_done(stage, old, change, said):
    old.write_text(change(old.read_text()))
    stage(one=AssertionError("measured"))
    ended = _run(f"--baseline={old}", f"--output={old.parent}/new.json")
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and said in ended.stderr
    assert not (old.parent / "new.json").exists()


def test_a_baseline_that_is_not_there_is_named(tmp_path):
    assert f"{tmp_path}/none.json" in _run(f"--baseline={tmp_path}/none.json").stderr
    assert "--slower would do nothing" in _run("--slower=2").stderr


def test_rows_without_seconds_are_not_compared():
    rows = [{"stage": "pipeline", "case": "agreement", "agreement": 0.9}]
    assert earlier.compare({}, rows, 1.1).slower == []


# ------------------------------------------------------------------------------- the pipeline


@pytest.mark.parametrize("flag", ["--batches=1,x", "--classes=0", "--sizes=500", "--sizes=-64"])
def test_a_sweep_that_is_none_is_refused(flag):
    ended = call("benchmark", "--stage=pipeline", flag)
    assert ended.returncode == 1 and f"error: {flag.split('=')[0]} is " in ended.stderr


@pytest.mark.parametrize("flag", ["--batches=1", "--classes=3", "--sizes=64", "--largest"])
def test_a_sweep_of_another_stage_is_refused(flag):
    assert f"{flag.split('=')[0]} would do nothing with --stage=solver" in _run(flag).stderr


def test_an_accelerator_has_a_sweep_of_its_own():
    cpu, gpu = (pipeline.Sweep.usual(backend) for backend in ("cpu", "gpu"))
    assert cpu == ((1,), (21,), (512,), False)
    assert set(gpu.batches) == {1, 8, 16, 32} and gpu.classes == (21, 150) and gpu.largest
    names = [case.case for case in pipeline.run(gpu)]
    assert names[0] == "graph, batch 16, 512 px, float32"
    assert names[-1] == "largest batch, C=21, 512 px, float32" and len(set(names)) == len(names)


@pytest.mark.parametrize(
    "full", [MemoryError("x"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")]
)
def test_the_largest_batch_is_the_last_that_fits(full):
    tried = []

    def trial(batch):
        tried.append(batch)
        if batch > 50:
            raise full

    found = pipeline.largest(trial, 8)
    assert tried == [8, 16, 32, 64]
    assert (found["largest_batch"], found["too_large"]) == (32, 64)
    tried.clear()
    assert pipeline.largest(trial, 256)["largest_batch"] == 32 and tried == [256, 128, 64, 32]
    assert pipeline.largest(lambda batch: trial(99), 2)["largest_batch"] == 0
    late = iter([False, False, True]).__next__
    found = pipeline.largest(trial, 8, late)
    assert (found["largest_batch"], found["too_large"]) == (16, None)
    row = {"stage": "pipeline", "case": "largest batch", **found}
    assert "at least 16 fit" in reading.line(row)


def test_another_error_is_not_a_full_memory():
    def trial(batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    with pytest.raises(jax.errors.JaxRuntimeError):
        pipeline.largest(trial, 1)


def test_stages_and_the_whole_are_rows_of_small_networks(monkeypatch):
    source, params = attention.load("appearance", size=64)
    known = dsolo.clip.load("miniature")
    monkeypatch.setattr(pipeline, "SD2_SOURCE", source)
    monkeypatch.setattr(pipeline, "sd_params", lambda config, dtype: params)
    monkeypatch.setattr(pipeline, "clip_b16", lambda dtype: known)
    monkeypatch.setattr(pipeline, "SHORT_SIDE", 64)
    monkeypatch.setattr(pipeline, "torch_jobs", lambda *given: {})
    monkeypatch.setattr(timing, "_MOST", 1)
    cases = pipeline.run(pipeline.Sweep((2,), (21,), (64,), largest=False))
    cases = [case for case in cases if "agreement" not in case.case]
    # What accelerators have besides, and the trial of a batch.
    ahead = cases[1].prepare.__self__.ahead_row
    cases.append(Case("pipeline", "ahead, C=21", ahead, wave=64))
    found = {row["case"].split(",")[0]: row for row in running.rows(cases, {})}
    assert list(found) == ["graph", "whole", "CLIP", "solver", "pixels", "ahead"]
    graph, whole, clip, solver_, pixels, ahead = found.values()
    assert whole["flops"] == sum(row["flops"] for row in (graph, clip, solver_, pixels))
    assert whole["flops"] == ahead["flops"] and whole["least_bytes"] == ahead["least_bytes"]
    assert whole["compile_s"] >= graph["compile_s"] > 0
    assert 1 < solver_["steps"] <= 30
    assert all(row["pictures_per_second"] == 2 / row["seconds"] for row in found.values())


# ------------------------------------------------------------------------------- what is seen


def test_maps_are_those_of_pictures_and_classes_are_repeated():
    maps, graph = world.maps(2, 8)
    assert maps.cosines.shape == (2, 19, 64) and graph.shape == (2, 64, 64)
    np.testing.assert_allclose(graph.sum(-1), 1, atol=1e-5)
    more = world.repeated(maps, 21)
    assert more.cosines.shape == (2, 21, 64) and more.presence.shape == (2, 21)
    assert (more.cosines[:, 19:] == maps.cosines[:, :2]).all()
    assert 1 < world.steps(maps.cosines, graph, dsolo.Readings()) <= 30


def test_questions_are_timed_beside_the_first(monkeypatch, capsys):
    monkeypatch.setattr(questions, "_TURNS", 2)
    questions.ask("miniature, 112x112")
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"first", "new", "known"} and min(found.values()) > 0
    done = subprocess.CompletedProcess([], 0, '{"first": 2.0, "new": 1.0, "known": 0.5}\n')
    monkeypatch.setattr(questions.subprocess, "run", lambda *_, **__: done)
    rows = [case.measure() for case in questions.run()]
    assert [row["seconds"] for row in rows] == [1.0, 0.5] * 2
    assert rows[0]["beside"] == {"the first question": {"seconds": 2.0, "ratio": 0.5}}


def test_agreement_is_the_share_of_equal_labels(monkeypatch):
    asked = []

    def segment(model, pictures, classes):
        asked.append(model)
        labels = np.zeros((len(pictures), 4, 5), np.int32)
        labels[0, 0, 0] = model == "bfloat16"
        return [Labelling(one, None) for one in labels]

    monkeypatch.setattr(dsolo, "load", lambda preset, attention, dtype: dtype)
    monkeypatch.setattr(dsolo, "segment", segment)
    found = world.agreement("appearance", 2)
    assert sorted(asked) == ["bfloat16", "float32"]
    assert found == {"agreement": 1 - 1 / 40, "agreement_worst": 1 - 1 / 20}


# ------------------------------------------------------------------------------- rows as text


def test_a_row_says_what_it_knows():
    row = {"stage": "vae", "case": "512x512", "seconds": 0.5, "intensity": None}
    assert reading.line(row) == "vae 512x512:  500 ms"
    row |= {"p10": 0.25, "p90": 2.0, "flops": 1.5e9, "squares": 1.406}
    row |= {"beside": {"torch": {"seconds": 2.0, "ratio": 0.25}}}
    row |= {"bound": "memory", "share_of_bound": 0.5, "peaks": {"bandwidth": 3.35e12}}
    first, second = reading.line(row).split("\n")
    assert first == "vae 512x512:  500 ms  [250 ms 2 s]  0.250 x torch (2 s)"
    assert second.strip() == (
        "1.5 GFLOP, 50.0% of the bound by memory (3.35 TB/s), 1.41 N^2 floats"
    )


def test_the_summary_is_the_best_of_all_batches():
    def row(batch, rate, ratio):
        beside = {"torch": {"seconds": 1.0, "ratio": ratio}}
        name = {"stage": "pipeline", "case": f"whole, batch {batch}"}
        return name | {"pictures_per_second": rate, "beside": beside}

    text = reading.summary([row(8, 100.0, 0.5), row(16, 90.0, 0.75), {"case": "graph"}])
    assert "ours: 100 (whole, batch 8)" in text and "torch: 67.5 (whole, batch 16)" in text
    assert reading.summary([]) == ""


def test_a_missing_torch_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tests.oracles.baselines", raising=False)
    assert timing.torch_jobs("clip", None, None) == {}
    assert "clip without its torch baseline: import of torch" in capsys.readouterr().err


def test_a_known_device_has_a_verdict(monkeypatch):
    known = running.DEVICES["NVIDIA H100 80GB HBM3"]
    monkeypatch.setattr(running, "DEVICES", {jax.devices()[0].device_kind: known})
    program = Program(lambda x: x * 2, jnp.ones(1000, jnp.float32))
    case = Case("solver", "double", lambda: Work(program, (program,), pictures=3))
    [row] = running.rows([case], {})
    assert row["bound"] == "memory" and row["peaks"] == {"bandwidth": known.bandwidth}
    assert row["share_of_bound"] == pytest.approx(8000 / known.bandwidth / row["seconds"])
    assert row["pictures_per_second"] == 3 / row["seconds"]
