"""experiments.ablate: rows that share encodings are the runs that evaluate() makes alone."""

import builtins
import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from running import demo_flags, run

import dsolo_jax as dsolo
from dsolo_jax import datasets, pipeline
from dsolo_jax.readings import BUNDLES
from experiments import ablation, bootstrap, plots
from experiments.ablation import LADDER, PAPER, Row, Setting
from experiments.evaluation import evaluate

LIMIT = 2
SETTINGS = {
    "a/kl": Setting("kl", BUNDLES["robust"]),
    "a/logits": Setting("logits", BUNDLES["robust"]),
    "b/kl": Setting("kl", BUNDLES["robust"]),
    "b/paper": Setting("kl", BUNDLES["paper"]),
}


@pytest.fixture(scope="module")
def dataset(demo):
    return datasets.load_folder(demo / "images", demo / "labels", demo / "classes.txt")


@pytest.fixture(scope="module")
def measured(model, dataset, tmp_path_factory):
    """The folder of the runs, their tallies, and the starts that pictures were encoded with."""
    folder, starts = tmp_path_factory.mktemp("ablation"), []

    def encode(model, pictures, words, start, graph, original=pipeline.encode):
        starts.append(start)
        return original(model, pictures, words, start, graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "encode", encode)
        tallies = _measure(model, dataset, folder)
    return folder, tallies, starts


def _measure(model, dataset, folder, settings=SETTINGS):
    return ablation.measure(
        lambda: model, dataset, settings, folder, {}, limit=LIMIT, batch_size=LIMIT
    )


def test_rows_are_what_evaluate_gives(measured, model, dataset, tmp_path):
    folder, tallies, _ = measured
    config = json.loads((folder / "a" / "logits" / "config.json").read_text())
    alone = evaluate(model, dataset, tmp_path, config, batch_size=LIMIT)
    table = (folder / "a" / "logits" / "per_image.csv").read_bytes()
    assert table == (tmp_path / "per_image.csv").read_bytes()
    found = bootstrap.interval(tallies["a/logits"], bootstrap.draws(LIMIT))
    assert found.estimate == pytest.approx(100 * alone["miou"])


def test_pictures_are_encoded_once_a_start_and_equal_rows_run_once(measured):
    folder, tallies, starts = measured
    # Pictures of one bucket go through each start once, together.
    assert set(starts) == {"naclip", "vanilla"}
    assert starts.count("naclip") == starts.count("vanilla") <= LIMIT
    assert not (folder / "b" / "kl").exists()
    np.testing.assert_array_equal(tallies["a/kl"], tallies["b/kl"])


def test_what_was_cut_off_goes_on(measured, model, dataset, tmp_path, monkeypatch):
    folder, tallies, _ = measured
    shutil.copytree(folder, tmp_path / "runs")
    table = tmp_path / "runs" / "b" / "paper" / "per_image.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-20])
    again = _measure(model, dataset, tmp_path / "runs")
    assert table.read_bytes() == whole
    np.testing.assert_array_equal(again["b/paper"], tallies["b/paper"])

    monkeypatch.setattr(pipeline, "encode", None)  # nothing is left to encode
    _measure(model, dataset, tmp_path / "runs")
    other = {"a/kl": Setting("kl", BUNDLES["paper"])}
    with pytest.raises(ValueError, match="holds a run with other settings .*readings"):
        _measure(model, dataset, tmp_path / "runs", other)


def test_the_driver_writes_tables_of_its_runs(demo, tmp_path):
    flags = (*demo_flags(demo), "--short_side=112", "--grid=6", "--limit=2", "--noplots")
    flags = (*flags, "--tables=propagate", f"--output_dir={tmp_path}")
    done = run("ablate", *flags, "--variants=robust, presence=0.1")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1", "2", "4", "8", "16"]
    for row in rows:
        assert (row["table"], row["variant"]) == ("propagate", "robust, presence=0.1")
        assert float(row["low"]) <= float(row["miou"]) <= float(row["high"])
        found = tmp_path / "robust_presence=0.1" / "propagate" / row["row"] / "results.json"
        results = json.loads(found.read_text())
        assert 100 * results["miou"] == pytest.approx(float(row["miou"]), abs=1e-3)
        assert results["config"]["readings"]["propagate_steps"] == int(row["row"])
        assert results["config"]["readings"]["presence"] == 0.1
    assert "| 16 | " in (tmp_path / "table.md").read_text()


def test_the_ladder_has_the_papers_figures_beside_it():
    cells = {"robust": bootstrap.Interval(40.0, 50.5, 55.0)}
    found = {row.name: cells for row in LADDER}
    lines = ablation.markdown("ladder", found).splitlines()
    assert lines[0].count("paper") == len(ablation.PAPER_SETS) == 4
    assert "| VI velocity | 50.50 [40.00, 55.00] | 67.8 | 28.9 | 43.3 | 23.0 |" in lines
    assert "| control: propagate | 50.50 [40.00, 55.00] |  |  |  |  |" in lines
    rows = list(csv.DictReader(ablation.comma_separated({"ladder": found}).splitlines()))
    assert [row["paper ADE20K"] or "" for row in rows] == [
        *(str(PAPER[row.name][3]) for row in LADDER if row.name in PAPER),
        "",
    ]


def test_every_table_has_rows_of_usable_settings(model):
    for table in ablation.TABLES:
        rows = ablation.rows(table, model, ["clip", "appearance"])
        assert len({row.name for row in rows}) == len(rows) > 1, table
        settings = {row.setting(BUNDLES["robust"]) for row in rows}
        assert len(settings) == len(rows), table
    layers = [dict(row.source)["attention_layers"] for row in ablation.rows("layer", model)]
    assert set(layers) == {("0",), ("1",)}
    with pytest.raises(ValueError, match="unknown table 'tao' .did you mean 'tau'"):
        ablation.rows("tao")


def test_layers_are_taken_together_and_each_once():
    model = dsolo.load("miniature", attention="miniature")
    rows = [row for row in ablation.rows("layer", model) if row.method == "path"]
    assert [dict(row.source)["attention_layers"] for row in rows] == [
        ("up.0", "up.1"),
        ("mid_block.attentions.0",),
        ("up_blocks.1.attentions.0",),
        ("up_blocks.1.attentions.1",),
    ]
    assert rows[0].name == "path, up.0 + up.1"


def test_variants_are_bundles_with_changes():
    chosen = ablation.variant("paper, tau=0.5, start=kk, ipf_iters=3")
    assert (chosen.tau, chosen.start, chosen.ipf_iters) == (0.5, "kk", 3)
    assert chosen.kl_sign == "divergence"
    for text, message in (
        ("papre", "did you mean 'paper'"),
        ("robust,taw=1", "unknown reading 'taw'"),
        ("robust,tau=soon", "tau is 'soon', wanted one float"),
    ):
        with pytest.raises(ValueError, match=message):
            ablation.variant(text)


def test_folders_lie_below_the_runs():
    assert ablation.folder("", "ladder", "I logits") == "ladder/I_logits"
    assert ablation.folder("robust, tau=0.2", "tau", "0.3") == "robust_tau=0.2/tau/0.3"


def test_a_rows_changes_count_over_the_variants():
    row = Row("x", "kl", {"tau": 0.9})
    assert row.setting(BUNDLES["paper"]).readings.tau == 0.9
    assert row.setting(BUNDLES["paper"]).readings.start == "vanilla"


def test_a_plot_is_a_picture(tmp_path):
    cells = {"robust": bootstrap.Interval(40, 50, 55), "paper": bootstrap.Interval(1, 2, 3)}
    plots.draw(tmp_path / "ladder.png", "ladder", {"I logits": cells, "V path": cells}, PAPER)
    with Image.open(tmp_path / "ladder.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_a_missing_matplotlib_is_named(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "matplotlib":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"dsolo-jax\[plots\].*--noplots"):
        plots.require()
