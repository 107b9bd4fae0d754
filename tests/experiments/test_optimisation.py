"""experiments.ablate --tables=optimisation: rows that know the truth, times, the summary."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from running import call

import dsolo_jax as dsolo
from dsolo_jax import pipeline, solver, vocabulary
from dsolo_jax.datasets import miniature
from dsolo_jax.pipeline import Setting
from dsolo_jax.readings import Readings, described, resolve
from experiments import ablation, optimisation
from experiments.optimisation import Point

LIMIT = 2
ROWS = tuple(
    row
    for row in ablation.OPTIMISATION
    if row.name in ("velocity", "path") or row.name.endswith((" 0", "graph, 3", "oracle, 100"))
)


def setting(target="oracle", **changes):
    changes = {f"optimise_{name}": value for name, value in changes.items()}
    readings = Readings(start="maskclip", optimise_target=target, **changes)
    return Setting("optimise", readings)


@pytest.fixture(scope="module")
def dataset():
    return miniature.load()


@pytest.fixture(scope="module")
def model():
    return dsolo.load("miniature")


# ------------------------------------------------------------------------------- with the truth


@pytest.mark.parametrize("shape", [(8, 8), (11, 14), (3, 9)], ids=str)
def test_a_patch_has_the_class_of_most_of_its_pixels(shape):
    side, classes, ignore = 4, 3, 255
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, shape)
    labels[random.random(shape) < 0.4] = ignore
    labels[:3, :3] = ignore
    labels[-1, -1] = classes + 4  # no class
    expected = []
    for top in range(side):
        for left in range(side):
            held = [
                labels[y, x]
                for y in range(shape[0])
                for x in range(shape[1])
                if top <= (y + 0.5) / shape[0] * side < top + 1
                and left <= (x + 0.5) / shape[1] * side < left + 1
                and labels[y, x] < classes
            ]
            counts = [held.count(c) for c in range(classes)]
            expected.append(counts.index(max(counts)) if held else -1)
    found = optimisation.patch_truth(labels, classes, ignore, side)
    assert -1 in expected
    np.testing.assert_array_equal(found, expected)


def test_the_bound_is_the_solver_with_the_truth_and_then_presence(model, dataset):
    """Of two pictures and one that fills up the batch."""
    chosen, words = setting(steps=5), vocabulary.parse(dataset.classes)
    found = list(optimisation.predictions(model, dataset, [3, 0, 1], [chosen], batch_size=2))
    given = optimisation._Encoder(model, dataset)([dataset[1]], [chosen], 2)
    assert [example["id"] for example, _ in found] == [dataset.ids[i] for i in (3, 0, 1)]
    example, [labels] = found[2]
    query_class = np.array(words.query_class, np.int32)
    maps = given["maps"]["maskclip"]
    f, presence = (vocabulary.fold(x[0], query_class, len(words.classes)) for x in maps)
    truth = optimisation.patch_truth(example["labels"], len(words.classes), dataset.ignore, 14)
    moved = solver.optimal_logits(
        f, truth=truth, target="oracle", temperature=0.5 * np.std(f), steps=5
    )
    scores = (moved.scores + 0.5 * presence[:, None]).reshape(-1, 14, 14)
    expected = pipeline.to_pixels(example["image"], scores, chosen.readings)().labels
    assert np.mean(labels == expected) > 0.9999


def test_with_enough_steps_patches_have_their_true_class(model, dataset):
    encode = optimisation._Encoder(model, dataset)
    chosen = setting(steps=300)
    given = encode([dataset[0]], [chosen], 1)
    assert given["graph"] is None  # which nothing asks for
    job, _ = encode.solve(given, chosen)
    winners = np.asarray(job()).argmax(1).reshape(1, -1)
    np.testing.assert_array_equal(winners, given["truth"])


def test_no_other_row_and_no_other_route_knows_the_truth(model, dataset):
    known = [row.name for row in ablation.OPTIMISATION if optimisation.knows_truth(_setting(row))]
    assert len(known) == len(optimisation.STEPS) - 1 and all("oracle" in name for name in known)
    with pytest.raises(ValueError, match="oracle is the ground truth.*--tables=optimisation"):
        dsolo.segment(
            model, dataset[0]["image"], ["sky"], "optimise", "robust,optimise_target=oracle"
        )


def _setting(row):
    return Setting(row.method, dataclasses.replace(Readings(), **row.changes))


def test_windows_are_refused(model):
    config = dataclasses.replace(model.config, crop=64, stride=32)
    with pytest.raises(ValueError, match="of whole pictures, found windows of 64 pixels"):
        optimisation.refuse_windows(dataclasses.replace(model, config=config))


# ------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Some of the rows by the command, what it printed, and the flags."""
    folder = tmp_path_factory.mktemp("optimisation")
    flags = ("--tables=optimisation", f"--limit={LIMIT}", f"--output_dir={folder}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ablation._LISTED, "optimisation", ROWS)
        done = call("ablate", *flags, "--batch_size=1")
        assert done.returncode == 0, done.stderr
        yield folder, done.stdout, flags


def test_every_row_is_run_and_timed(table):
    folder, printed, _ = table
    with (folder / "optimisation.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == [row.name for row in (*ROWS, *ablation.CONTROLS)]
    for row in ROWS:
        place = folder / ablation.folder("", "optimisation", row.name)
        results = json.loads((place / "results.json").read_text())
        assert 100 * results["miou"] == pytest.approx(float(rows[row.name]["miou"]), abs=1e-3)
        readings = resolve(results["config"]["readings"])
        assert described(readings) == results["config"]["readings"]
        assert {name: getattr(readings, name) for name in row.changes} == row.changes
        assert 0 < float(rows[row.name]["seconds"]) < 10
    mious = {name: row["miou"] for name, row in rows.items()}
    assert mious["optimise, graph, 0"] == mious["control: logits + presence"]
    assert float(mious["optimise, oracle, 100"]) > 80
    for target in ("graph", "oracle"):
        assert f"optimise, target {target}: best mIoU" in printed
    assert "times velocity (" in printed and "times path (" in printed
    assert (folder / "table.md").read_text() in printed
    with Image.open(folder / "optimisation.png") as picture:
        assert min(picture.size) > 300


def test_what_was_cut_off_of_the_bound_goes_on(table):
    folder, _, flags = table
    cut = folder / ablation.folder("", "optimisation", "optimise, oracle, 100") / "per_image.csv"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-20])
    done = call("ablate", *flags, "--batch_size=1")
    assert done.returncode == 0, done.stderr
    assert cut.read_bytes() == whole


# ------------------------------------------------------------------------------- the summary


def points():
    def one(target, steps, miou, seconds):
        name = f"optimise, {target}, {steps}"
        return Point(name, setting(target, steps=steps), miou, seconds)

    return [
        Point("velocity", Setting("velocity", Readings()), 61.0, 0.002),
        Point("path", Setting("path", Readings()), 65.0, 0.004),
        one("oracle", 10, 80.0, 0.010),
        one("graph", 10, 59.5, 0.010),
        one("graph", 100, 60.2, 0.100),
        one("graph", 0, 50.0, 0.001),
        one("graph", 1000, 40.0, 1.0),
    ]


def test_the_summary_says_where_it_arrives_and_what_it_costs():
    curves = optimisation.curves(points())
    assert [p.miou for p in curves["graph"]] == [50.0, 59.5, 60.2, 40.0]
    assert [p.miou for p in curves["oracle"]] == [50.0, 80.0]
    assert optimisation.arrival(curves["graph"]).miou == 59.5
    assert optimisation._sentence(points(), "graph") == (
        "optimise, target graph: best mIoU 60.20 at step 100, within 1 point of it first at step "
        "10 (59.50), in 10.000 ms a picture: 5.00 times velocity (2.000 ms, mIoU 61.00), 2.50 "
        "times path (4.000 ms, mIoU 65.00)\n"
    )


def test_times_are_medians_of_jobs_that_take_turns(model, dataset, monkeypatch):
    """By a clock that a job sets: of each picture and turn all settings, one after the other."""
    clock, calls = [0.0], []
    takes = {"kl": 1.0, "logits": 3.0}

    def solve(self, given, chosen):
        def job():
            calls.append(chosen.method)
            clock[0] += takes[chosen.method] * (10 if len(calls) < 5 else 1)  # compiles at first

        return job, None

    monkeypatch.setattr(optimisation._Encoder, "__call__", lambda *given: {})
    monkeypatch.setattr(optimisation._Encoder, "solve", solve)
    monkeypatch.setattr(optimisation.time, "perf_counter", lambda: clock[0])
    settings = [Setting(method, Readings()) for method in takes]
    found = optimisation.seconds(model, dataset, settings, pictures=2, turns=3)
    assert found == [1.0, 3.0]
    assert calls[4:10] == ["kl", "logits"] * 3
