"""experiments.ablate: rows that share encodings are the runs that evaluate() makes alone."""

import csv
import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import call

import dsolo_jax as dsolo
from dsolo_jax import attention, devices, pipeline, streams
from dsolo_jax.datasets import miniature
from dsolo_jax.pipeline import Setting
from dsolo_jax.pixels import Labelling
from dsolo_jax.readings import BUNDLES, described, resolve
from dsolo_jax.solver.discrepancy import METHODS
from dsolo_jax.utils.files import csv_line
from experiments import ablation, bootstrap, optimisation
from experiments.ablation import CONTROLS, LADDER, PAPER, Row
from experiments.evaluation import evaluate, made_with

LIMIT = 2
WANTED = {
    "a/kl": (Setting("kl", BUNDLES["robust"]), ()),
    "a/logits": (Setting("logits", BUNDLES["robust"]), ()),
    "b/kl": (Setting("kl", BUNDLES["robust"]), ()),
    "b/paper": (Setting("kl", BUNDLES["paper"]), ()),
}


@pytest.fixture(scope="module")
def dataset():
    return miniature.load()


@pytest.fixture(scope="module")
def load():
    """Loads the miniature once with a graph and once without, whatever the readings."""
    loaded = {graph: dsolo.load("miniature", graph=graph) for graph in (True, False)}

    def load(graph=True, readings="robust"):
        model = loaded[graph]
        config = dataclasses.replace(model.config, readings=resolve(readings))
        return dataclasses.replace(model, config=config)

    return load


def measure(load, dataset, folder, wanted=WANTED, **options):
    options = {"limit": LIMIT, "batch_size": LIMIT} | options
    return ablation.measure(load, dataset, wanted, folder, {}, **options)


def counted(monkeypatch):
    """The names of the programs that `streams.run` calls, from now on."""
    called, original = [], devices.program

    def program(function, **options):
        made = original(function, **options)

        def call(whole, shared):
            called.append((function.__name__, options.get("start")))
            return function(**whole, **shared) if function in STUBS else made(whole, shared)

        return call

    monkeypatch.setattr(devices, "program", program)
    return called


@pytest.fixture(scope="module")
def measured(load, dataset, tmp_path_factory):
    """The folder of the runs, their tallies, and the programs that were called."""
    folder = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        called = counted(patch)
        tallies = measure(load, dataset, folder)
    return folder, tallies, called


# ------------------------------------------------------------------------------- runs


def test_rows_are_what_evaluate_gives(measured, load, dataset, tmp_path):
    folder, tallies, _ = measured
    config = json.loads((folder / "a" / "logits" / "config.json").read_text())
    model = load(readings="robust")
    alone = evaluate(model, dataset, tmp_path, config, batch_size=LIMIT)
    for name in ("config.json", "per_image.csv", "confusion.csv"):
        assert (folder / "a" / "logits" / name).read_bytes() == (tmp_path / name).read_bytes()
    found = bootstrap.interval(tallies["a/logits"], bootstrap.draws(LIMIT))
    assert found.estimate == pytest.approx(100 * alone["miou"])


def test_pictures_are_encoded_once_a_start_and_equal_rows_run_once(measured):
    folder, tallies, called = measured
    # Both pictures go through each start once, together; kl and logits need no graph.
    maps = [start for name, start in called if name == "class_maps"]
    assert sorted(maps) == ["naclip", "vanilla"]
    names = [name for name, _ in called]
    assert names.count("scores") == 3 and "graph" not in names
    assert not (folder / "b" / "kl").exists()
    np.testing.assert_array_equal(tallies["a/kl"], tallies["b/kl"])


def test_what_was_cut_off_goes_on(measured, load, dataset, tmp_path, monkeypatch):
    folder, tallies, _ = measured
    shutil.copytree(folder, tmp_path / "runs")
    table = tmp_path / "runs" / "b" / "paper" / "per_image.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-20])
    again = measure(load, dataset, tmp_path / "runs")
    assert table.read_bytes() == whole
    np.testing.assert_array_equal(again["b/paper"], tallies["b/paper"])

    called = counted(monkeypatch)
    measure(load, dataset, tmp_path / "runs")
    assert not called  # nothing is left to run
    other = {"a/kl": (Setting("kl", BUNDLES["paper"]), ())}
    with pytest.raises(ValueError, match="other settings .readings 'robust' there, 'paper' now"):
        measure(load, dataset, tmp_path / "runs", other)
    measure(load, dataset, tmp_path / "runs", other, overwrite=True)
    assert (tmp_path / "runs" / "a" / "kl" / "per_image.csv").read_bytes() == whole


# ------------------------------------------------------------------------------- tables


def stub_graph(params, squares):
    return None


def stub_class_maps(params, text, pictures, graph=None):
    maps = np.zeros((len(pictures.grids), len(text), 4), np.float32)
    return pipeline.ClassMaps(maps, maps[..., 0])


def stub_scores(query_class, maps, graph):
    return jnp.zeros((len(maps.cosines), len(query_class), 2, 2))


def stub_batch_to_pixels(pictures, *args):
    zeros = [np.zeros(pixels.shape[:2], np.int32) for pixels in pictures]
    return [partial(Labelling, labels, None) for labels in zeros]


# Not jitted, which takes its time.
STUBS = stub_graph, stub_class_maps, stub_scores


def stub_predictions(model, dataset, indices, settings, *, batch_size):
    for index in indices:
        example = dataset[index]
        yield example, [np.zeros_like(example["labels"]) for _ in settings]


def test_every_table_runs_with_its_controls_and_shared_rows_once(dataset, tmp_path, monkeypatch):
    """All of the way but the networks, the solver and the upsampling."""
    model = dsolo.load("miniature", attention="miniature", attention_size=64, graph=False)
    model.params["attention"] = {}  # it will not be asked
    clip = model.config.clip, model.params["clip"]
    source, sources = model.config.source, []

    def load(graph, **changes):
        """The same model for all, as loading takes its time; whether it could be is seen below."""
        sources.append(changes)
        return model

    for name in ("graph", "class_maps", "scores", "batch_to_pixels"):
        monkeypatch.setattr(streams, name, globals()[f"stub_{name}"])
    monkeypatch.setattr(optimisation, "predictions", stub_predictions)
    called = counted(monkeypatch)
    tables = {name: ablation.rows(name, source, ["clip", "appearance"]) for name in ablation.TABLES}
    wanted = {}
    for name, rows in tables.items():
        assert tuple(rows[-len(CONTROLS) :]) == CONTROLS
        assert len({row.name for row in rows}) == len(rows) > 1 + len(CONTROLS), name
        of_table = {
            ablation.folder("", name, row.name): ablation.setting(
                row, BUNDLES["robust"], dataset.protocol
            )
            for row in rows
        }
        assert len(of_table) == len(set(of_table.values())) == len(rows), name
        wanted |= of_table
    tallies = measure(load, dataset, tmp_path, wanted)
    assert tallies.keys() == wanted.keys()
    assert all(tally.union.shape == (LIMIT, len(dataset.classes)) for tally in tallies.values())
    for changes in sources:
        name = changes.get("attention", "miniature")
        layers, timestep = changes.get("attention_layers"), changes.get("timestep", 100)
        attention.load(name, layers=layers, timestep=timestep, clip=clip, graph=False)
    runs = [path.parent for path in tmp_path.rglob("results.json")]
    different = set(wanted.values())
    assert len(runs) == len(different) < len(wanted)
    routed = [setting for setting, _ in different if not optimisation.knows_truth(setting)]
    assert [name for name, _ in called].count("stub_scores") == len(routed)


def test_every_row_is_solved(dataset):
    """Shapes and readings alone, of every table."""
    source = dsolo.load("miniature", attention="miniature", graph=False).config.source
    rows = {row for name in ablation.TABLES for row in map(_hashable, ablation.rows(name, source))}
    f, graph, presence = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((3, 9), (9, 9), (3,)))
    for method, changes in rows:
        readings = dataclasses.replace(BUNDLES["robust"], **dict(changes))
        solve = partial(dsolo.discrepancy, method=method, readings=readings)
        if optimisation.knows_truth(Setting(method, readings)):  # see test_optimisation.py
            with pytest.raises(ValueError, match="only the ablation"):
                jax.eval_shape(solve, f, graph, presence)
            continue
        assert jax.eval_shape(solve, f, graph, presence).shape == f.shape
    assert {method for method, _ in rows} == set(METHODS)


def _hashable(row):
    return row.method, tuple(row.changes.items())


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """The command's ladder and a sweep that shares rows with it, and what it printed."""
    folder = tmp_path_factory.mktemp("ladder")
    flags = (f"--limit={LIMIT}", f"--batch_size={LIMIT}", "--variants=robust, presence=0.1")
    flags = (*flags, "--tables=ladder,max_steps", f"--output_dir={folder}")
    done = call("ablate", *flags)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_command_writes_tables_of_its_runs(ladder):
    folder, printed = ladder
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    controls = [row.name for row in CONTROLS]
    assert [row["row"] for row in rows] == [
        *(row.name for row in LADDER), *controls, "10", "30", "100", "300", *controls
    ]  # fmt: skip
    of_run = {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in folder.rglob("results.json")
    }
    for row in rows:
        assert row["variant"] == "robust, presence=0.1"
        assert float(row["low"]) <= float(row["miou"]) <= float(row["high"])
        place = ablation.folder(row["variant"], row["table"], row["row"])
        if results := of_run.pop(place, None):
            assert 100 * results["miou"] == pytest.approx(float(row["miou"]), abs=1e-3)
            assert "presence=0.1" in results["config"]["readings"]
        else:  # it is a row of the ladder already
            assert row["table"] == "max_steps" and row["row"] in ("30", *controls)
    assert not of_run
    assert (folder / "table.md").read_text() in printed
    for name in ("ladder", "max_steps"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300


@pytest.mark.parametrize("row", [*LADDER, *CONTROLS], ids=lambda row: row.name)
def test_a_row_of_the_ladder_is_eval_with_its_readings(row, ladder, load, dataset, tmp_path):
    place = ladder[0] / ablation.folder("robust, presence=0.1", "ladder", row.name)
    config = json.loads((place / "config.json").read_text())
    model = load(METHODS[row.method].needs_graph, config["readings"])
    made = made_with(load(graph=True, readings=config["readings"]))  # some row needs the graph
    assert {key: config[key] for key in made} == made
    evaluate(model, dataset, tmp_path, config, batch_size=LIMIT)
    for name in ("config.json", "per_image.csv", "confusion.csv"):
        assert (place / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tables=tao"], "unknown table of miniature 'tao' (did you mean 'tau'?)"),
        (
            ["--tables=timestep", "--attention=appearance"],
            "unknown table of appearance 'timestep'; choose one of: ladder",
        ),
        (["--variants=papre"], "unknown readings 'papre' (did you mean 'paper'?)"),
        (["--search=2", "--variants=robst"], "unknown readings 'robst' (did you mean 'robust'?)"),
        (["--search=2", "--tables=tau"], "--tables would do nothing with --search"),
        (["--search=2", "--methods=kl"], "unknown method to search 'kl'"),
        (["--search=2", "--tune_split=tuna"], "unknown split of miniature 'tuna'"),
        (["--search=2", "--tune_split=validation"], "chosen and reported on the same pictures"),
        (["--search=2", "--tune_images=x"], "--tune_images would do nothing with --dataset=minia"),
        (["--search=2", "--dataset=folder", "--tune_split=x"], "--tune_split would do nothing"),
        (["--tune_split=tune"], "--tune_split would do nothing without --search"),
        (["--variants=paper", "--readings=robust"], "--readings would do nothing beside"),
        (["--sources=clip"], "--sources would do nothing without the table 'source'"),
    ],
)
def test_errors_are_one_message(flags, message, tmp_path):
    done = call("ablate", f"--output_dir={tmp_path}", *flags)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- their parts


def test_layers_are_taken_together_and_each_once():
    source = dsolo.load("miniature", attention="miniature", graph=False).config.source
    rows = [row for row in ablation.rows("layer", source) if row.method == "path"]
    assert [dict(row.source)["attention_layers"] for row in rows] == [
        ("up.0", "up.1"),
        ("mid_block.attentions.0",),
        ("up_blocks.1.attentions.0",),
        ("up_blocks.1.attentions.1",),
        ("cliper",),
    ]
    assert rows[0].name == "path, up.0 + up.1"


def test_the_papers_ladder_has_a_table_of_its_own():
    cells = {"robust": bootstrap.Interval(40.0, 50.5, 55.0)}
    found = {row.name: cells for row in (*LADDER, *CONTROLS)}
    lines = [" ".join(line.split()) for line in ablation.markdown("ladder", found).splitlines()]
    assert lines[0] == "| ladder | robust |"
    assert "| VI velocity | 50.50 [40.00, 55.00] |" in lines
    assert "| control: propagate | 50.50 [40.00, 55.00] |" in lines
    assert "| VI velocity | 67.8 | 28.9 | 43.3 | 23.0 |" in lines
    assert set(PAPER) == {row.name for row in LADDER}
    rows = list(csv.DictReader(map(csv_line, ablation.lines({"ladder": found}))))
    assert [row["row"] for row in rows] == list(found)
    assert {(row["variant"], row["low"], row["high"]) for row in rows} == {
        ("robust", "40.000", "55.000")
    }


def test_folders_lie_below_the_runs():
    assert ablation.folder("", "ladder", "I logits") == "ladder/I_logits"
    assert ablation.folder("robust, tau=0.2", "tau", "0.3") == "robust_tau=0.2/tau/0.3"


def test_a_rows_changes_count_over_the_variants(dataset):
    row = Row("x", "kl", {"tau": 0.9}, (("attention", "clip"),))
    found, source = ablation.setting(row, BUNDLES["paper"], dataset.protocol)
    assert found.readings == dataclasses.replace(BUNDLES["paper"], tau=0.9)
    assert described(found.readings) == "paper,tau=0.9"
    assert found.method == "kl" and source == row.source
