"""Methods of ours and peers in one table."""

import csv
import dataclasses
import shutil
from functools import partial
from unittest import mock

import numpy as np
import pytest
from running import call

import dsolo_jax as dsolo
from dsolo_jax import datasets, peers
from dsolo_jax.pipeline import Setting
from experiments import common, comparison
from experiments.bootstrap import Tally

_FLAGS = "--limit=5", "--batch_size=2", "--compared=velocity,naclip"


@pytest.fixture(scope="module")
def model():
    return dsolo.load("miniature")


def _rows(model, dataset="miniature", names=None, own=(), **protocols):
    return comparison.rows(
        names or [*comparison.OURS, *peers.PEERS],
        protocols.get("protocols", comparison.PROTOCOLS),
        dataset,
        model.config.readings,
        model.config.source,
        dict(own),
        short_side=336,
        patch=16,
    )


def test_the_common_protocol_is_the_same_for_all(model):
    rows = _rows(model, protocols=["common"])
    assert [row.name for row in rows] == [*comparison.OURS, *peers.PEERS]
    assert {row.readings.upsample for row in rows} == {"bilinear"}
    assert {row.dataset for row in rows} == {()}
    # This source has the layers of one peer alone.
    changed = {row.name: dict(row.model) for row in rows if row.model}
    assert changed == {"cliper": {"attention_layers": ("cliper",)}}


def test_as_published_each_has_its_own_graph_windows_and_thresholds(model):
    rows = {row.name: row for row in _rows(model, "voc21", protocols=["published"])}
    assert dict(rows["lposs"].model)["attention_layers"] == ("neighbours",)
    sclip = datasets.protocol("voc21", **dict(rows["sclip"].dataset))
    assert (sclip.crop, sclip.stride, sclip.area_threshold) == (224, 112, 0.1)
    assert rows["naclip"].readings.upsample == "pamr"
    assert rows["velocity"].readings == model.config.readings
    own = {row.name: row for row in _rows(model, own={"lposs": "appearance"})}
    assert dict(own["lposs"].model) == {"attention": "appearance"}


def test_unknown_methods_are_named(model):
    with pytest.raises(ValueError, match="naclipp"):
        _rows(model, names=["naclipp"])


def test_the_pictures_that_are_furthest_apart_are_found():
    union = np.full((4, 2), 10)
    ours = Tally(np.array([[5, 5], [9, 9], [1, 1], [5, 5]]), union)
    peer = Tally(np.array([[5, 5], [2, 2], [8, 8], [4, 5]]), union)
    assert comparison.furthest(ours, peer) == [1, 2]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The table of a few scenes, and the same of a run from which rows and pictures are missing."""
    whole, cut = (tmp_path_factory.mktemp(name) / "run" for name in ("whole", "cut"))
    costs = (comparison.Cost(n / 7, 100 + n) for n in range(1, 5))
    with mock.patch.object(comparison, "cost", lambda *row: next(costs)):
        ended = call("compare", *_FLAGS, f"--output_dir={whole}")
    assert ended.returncode == 0, ended.stderr
    shutil.copytree(whole, cut)
    for path in (*cut.glob("published/*/results.json"), *cut.glob("table.*"), cut / "differ.png"):
        path.unlink()
    for path in (cut / "published").glob("*/per_image.csv"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:3]))
    ended = call("compare", *_FLAGS, f"--output_dir={cut}")
    assert ended.returncode == 0, ended.stderr
    return whole, cut


def test_the_table_has_a_line_for_each_row_with_what_it_costs(compared):
    with (compared[0] / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2
    for line in lines:
        low, miou, high = (float(line[name]) for name in ("low", "miou", "high"))
        assert 0 < low <= miou <= high < 100
    assert [line["peak_mib"] for line in lines] == ["101", "102", "103", "104"]
    assert [line["pictures_per_second"] for line in lines][:2] == ["0.143", "0.286"]
    assert "| common " in (compared[0] / "table.md").read_text()


def test_a_row_is_measured_in_a_process_of_its_own(model):
    settings = {"dataset": "miniature", "split": "validation", "world_seed": 0}
    settings["protocol"] = dataclasses.asdict(datasets.protocol("miniature"))
    held = np.ones(2**30, np.uint8)  # here, which is not the row's
    found = comparison.cost(
        partial(dsolo.load, "miniature", graph=False),
        partial(common.load_dataset, settings),
        Setting("logits", model.config.readings),
    )
    assert found.rate > 0
    assert 50 < found.peak_mib < len(held) / 2**20


def test_what_was_cut_off_goes_on_to_the_same_table(compared):
    whole, cut = ((path / "table.csv").read_bytes() for path in compared)
    assert whole == cut
    assert (compared[0] / "differ.png").read_bytes() == (compared[1] / "differ.png").read_bytes()


def test_sources_of_peers_that_are_none_are_refused():
    ended = call("compare", "--own_sources=naclipp=appearance")
    assert ended.returncode == 1
    assert "naclipp" in ended.stderr and "lposs" in ended.stderr


def test_a_peer_whose_source_cannot_be_had_is_named_with_the_way_out(tmp_path):
    only = "--compared=lposs", "--protocols=published", f"--own_sources=lposs={tmp_path}"
    ended = call("compare", *only, f"--output_dir={tmp_path / 'run'}")
    assert ended.returncode == 1
    assert "model_index.json" in ended.stderr and str(tmp_path) in ended.stderr
    assert not (tmp_path / "run" / "table.md").exists()
