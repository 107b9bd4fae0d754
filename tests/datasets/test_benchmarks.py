"""Every benchmark in every official layout: prepared, and evaluated with an oracle."""

import csv
import json
import types
from pathlib import Path

import numpy as np
import pytest
from originals import COCO_IDS, COCO_THINGS, IGNORE, LAYOUTS, write
from PIL import Image

from dsolo_jax import datasets, vocabulary
from dsolo_jax.datasets import coco, context, prepared, protocols
from experiments import evaluation
from tests.experiments.running import call

SHARED = Path(__file__).parents[3] / "shared"
SAMPLES = SHARED / "samples"


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def prepare(layout, tmp_path, maps):
    """The layout's benchmark, prepared from files that hold these maps."""
    write(layout, tmp_path / "original", maps)
    benchmark = datasets.benchmark(layout.benchmark)
    source = tmp_path / "original" / layout.at
    prepared.prepare(benchmark, source, tmp_path / "data", labels=layout.flag)
    return datasets.load(layout.benchmark, tmp_path / "data")


def evaluate(dataset, answers, tmp_path, monkeypatch):
    """experiments.evaluation of a segmenter that answers each picture, known by its pixels."""

    def predictions(model, dataset, indices, settings, **_):
        for index in indices:
            yield dataset[index], [answers[index]]

    monkeypatch.setattr(evaluation, "predictions", predictions)
    monkeypatch.setattr(evaluation.pipeline, "spread", lambda model: model)
    model = types.SimpleNamespace(config=types.SimpleNamespace(readings=None))
    config = {"method": "kl", "limit": None, "save_predictions": False}
    return evaluation.evaluate(model, dataset, tmp_path / "run", config, overwrite=True)


def test_labels_are_those_that_were_stored(layout, tmp_path):
    """Every class once, and pixels without a class."""
    count = len(layout.stored)
    truth = np.full((12, 15), IGNORE)
    truth.ravel()[:count] = np.arange(count)
    dataset = prepare(layout, tmp_path, [truth, truth.T, np.flip(truth)])
    assert dataset.ids == layout.ids
    assert len(dataset.names) == len(dataset.classes) == count
    for index, stored in enumerate((truth, truth.T, np.flip(truth))):
        expected = np.where(stored == IGNORE, layout.truth_of_ignored, stored)
        np.testing.assert_array_equal(dataset[index]["labels"], expected)


def test_an_oracle_scores_one_and_planted_errors_what_a_hand_counts(layout, tmp_path, monkeypatch):
    a, b, c, wrong = 0, 1, len(layout.stored) - 1, 2
    first, second = np.full((4, 6), a), np.full((4, 6), c)
    first[2:], second[2:] = b, IGNORE
    dataset = prepare(layout, tmp_path, [first, second])
    truth = np.where(second == IGNORE, layout.truth_of_ignored, second)
    answers = [first.copy(), np.where(truth == IGNORE, wrong, truth)]
    names = dataset.names

    results = evaluate(dataset, answers, tmp_path, monkeypatch)
    assert results["miou"] == 1
    present = {name: iou for name, iou in results["per_class"].items() if iou is not None}
    assert present == {names[a]: 1, names[b]: 1, names[c]: 1}

    answers[0][0, :3] = b  # of the 12 pixels of a
    answers[1][0, :2] = wrong  # of the 12 of c
    results = evaluate(dataset, answers, tmp_path, monkeypatch)
    # Where nothing is ignored, the 12 pixels without a class are the background, a, as well.
    ours = 12 if layout.truth_of_ignored == a else 0
    iou = {names[a]: (9 + ours) / (12 + ours), names[b]: 12 / 15, names[c]: 10 / 12, names[2]: 0}
    assert results["miou"] == pytest.approx(sum(iou.values()) / 4, abs=1e-12)
    assert results["per_class"] == pytest.approx(dict.fromkeys(names) | iou)


@pytest.mark.parametrize(
    "made, other",
    [
        ("voc21 unpacked", "voc20"),
        ("context60 original", "context59"),
        ("coco_object unpacked", "coco_stuff"),
    ],
)
def test_one_folder_serves_both_benchmarks_of_a_pair(made, other, tmp_path):
    truth = np.array([[0, 1, 2], [IGNORE, 3, 4]])
    dataset = prepare(LAYOUTS[made], tmp_path, [truth])
    twin = datasets.load(other, tmp_path / "data")
    assert not prepared.prepare(datasets.benchmark(other), tmp_path, tmp_path / "data")
    assert dataset.encoded(0).labels == twin.encoded(0).labels
    assert twin.coding == dataset.coding
    if other == "coco_stuff":  # its background was stored as wood
        expected = [[170, 0, 1], [IGNORE, 2, 3]]
    else:
        expected = [[IGNORE, 0, 1], [IGNORE, 2, 3]]
    np.testing.assert_array_equal(twin[0]["labels"], expected)


def test_object_maps_do_not_serve_the_stuff_benchmark(tmp_path):
    prepare(LAYOUTS["coco_object converted"], tmp_path, [np.eye(3, dtype=int)])
    with pytest.raises(ValueError, match="coco_stuff cannot be had from instanceTrainIds"):
        datasets.load("coco_stuff", tmp_path / "data")
    with pytest.raises(ValueError, match="prepare it from stuffthingmaps or labelTrainIds"):
        prepared.prepare(datasets.benchmark("coco_stuff"), tmp_path, tmp_path / "data")


def test_other_label_maps_than_asked_for_are_never_taken(tmp_path):
    prepare(LAYOUTS["voc21 unpacked"], tmp_path, [np.eye(3, dtype=int)])
    voc, source = datasets.benchmark("voc21"), tmp_path / "original"
    with pytest.raises(ValueError, match="from SegmentationClass label maps, wanted .*Aug"):
        prepared.prepare(voc, source, tmp_path / "data", labels="SegmentationClassAug")
    with pytest.raises(FileNotFoundError, match=r"nothing at .*SegmentationClassAug/\*\.png"):
        prepared.prepare(voc, source, tmp_path / "other", labels="SegmentationClassAug")
    with pytest.raises(ValueError, match="unknown labels of .*'Aug'.*SegmentationClassAug"):
        prepared.prepare(voc, source, tmp_path / "other", labels="Aug")


@pytest.mark.parametrize("part", ["image", "labels"])
def test_what_is_missing_is_named(layout, part, tmp_path):
    write(layout, tmp_path, [np.eye(3, dtype=int)] * 3)
    id = layout.ids[1]
    missing = tmp_path / getattr(layout, part).format(id, city=id.split("_")[0])
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 3 .* are missing in .*: {missing.name}"):
        prepared.prepare(
            datasets.benchmark(layout.benchmark),
            tmp_path / layout.at,
            tmp_path / "data",
            labels=layout.flag,
        )


def test_the_wrong_folder_says_what_is_wanted(layout, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(FileNotFoundError, match="wanted .*found elsewhere; original: https?:"):
        prepared.prepare(datasets.benchmark(layout.benchmark), tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    "name, official",
    [
        ("voc21 unpacked", 1449),
        ("context60 mmsegmentation", 5104),
        ("context60 original", 5105),
        ("coco_stuff unpacked", 5000),
        ("cityscapes unpacked", 500),
        ("ade20k", 2000),
    ],
)
def test_the_official_count_is_kept_beside_what_is_there(name, official, tmp_path):
    dataset = prepare(LAYOUTS[name], tmp_path, [np.eye(3, dtype=int)])
    assert (len(dataset), dataset.official) == (1, official)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_lists_that_begin_with_a_byte_order_mark_are_read(tmp_path, encoding):
    layout = LAYOUTS["voc21 unpacked"]
    write(layout, tmp_path, [np.eye(3, dtype=int)])
    path = tmp_path / layout.list
    path.write_bytes(f"\ufeff{path.read_text()}".encode(encoding))
    voc = datasets.benchmark("voc21")
    prepared.prepare(voc, tmp_path / layout.at, tmp_path / "data")
    assert datasets.load("voc21", tmp_path / "data").ids == layout.ids[:1]


def test_ids_that_a_list_names_twice_are_refused(tmp_path):
    layout = LAYOUTS["voc21 unpacked"]
    write(layout, tmp_path, [np.eye(3, dtype=int)])
    path = tmp_path / layout.list
    path.write_text(2 * path.read_text())
    with pytest.raises(ValueError, match=f"'{layout.ids[0]}' is named 2 times, wanted once"):
        prepared.prepare(datasets.benchmark("voc21"), tmp_path / layout.at, tmp_path / "data")


def test_labels_txt_must_have_the_numbers_of_the_459(tmp_path):
    layout = LAYOUTS["context60 original"]
    write(layout, tmp_path, [np.eye(3, dtype=int)])
    names = dict.fromkeys(range(1, 460), "unknown")
    classes, _ = protocols.classes("context59", datasets.PROTOCOLS["context59"])
    names |= zip(context._NUMBERS, classes, strict=True)
    path = tmp_path / "VOCdevkit" / "VOC2010" / "labels.txt"
    path.write_text("".join(f"{number}: {name}\n" for number, name in names.items()))
    context60 = datasets.benchmark("context60")
    assert prepared.prepare(context60, tmp_path, tmp_path / "data")
    path.write_text(path.read_text().replace("397: table", "397: chair"))
    with pytest.raises(ValueError, match=r"labels\.txt calls .* 397 'chair', wanted 'table'"):
        prepared.prepare(context60, tmp_path, tmp_path / "other")


def test_a_damaged_mat_file_is_named(tmp_path):
    layout = LAYOUTS["context60 original"]
    write(layout, tmp_path, [np.eye(3, dtype=int)])
    path = tmp_path / layout.labels.format(layout.ids[0])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"{path.name} is no annotation of PASCAL Context"):
        prepared.prepare(datasets.benchmark("context60"), tmp_path, tmp_path / "data")


def test_coco_ids_are_those_of_the_published_tables():
    table = coco._STUFF_TABLES["stuffthingmaps"]
    assert sorted(table) == sorted([*COCO_IDS, 255]) and len(COCO_THINGS) == 80
    # Of mmsegmentation's converter, tools/dataset_converters/coco_stuff164k.py.
    for stored, label in {0: 0, 10: 10, 12: 11, 89: 79, 91: 80, 181: 170, 255: IGNORE}.items():
        assert table[stored] == label
    things = coco._OBJECT_TABLES["stuffthingmaps"]
    for stored, label in {0: 1, 12: 12, 89: 80, 91: 0, 181: 0, 255: 0}.items():
        assert things[stored] == label


def test_a_run_goes_by_the_protocol_and_the_flags_and_records_them(tiny_clip, tmp_path):
    truth = np.zeros((40, 48), int)
    truth[:, 24:] = 7
    prepare(LAYOUTS["voc21 unpacked"], tmp_path, [truth])
    flags = {
        "dataset": "voc21",
        "data_dir": tmp_path / "data",
        "clip": tiny_clip,
        "attention": "clip",
        "method": "logits",
        "vocabulary": "plain",
        "probability_threshold": 0.999,
        "short_side": 64,
        "output_dir": tmp_path / "run",
    }
    done = call("eval", *(f"--{name}={value}" for name, value in flags.items()))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["protocol"] == {
        "short_side": 64,
        "long_side": 2048,
        "vocabulary": "plain",
        "background_rule": "logits_threshold",
        "probability_threshold": 0.999,
        "logit_scale": 40,
        "reduce_zero_label": False,
        "background_words": None,
        "crop": None,
        "stride": None,
        "area_threshold": None,
    }
    assert results["config"]["threshold_applied"] is True
    assert results["config"]["label_coding"] == "SegmentationClass"
    assert results["config"]["pictures"] == {"prepared": 1, "official": 1449}
    # Nothing is that probable: all of it is background, half of it rightly.
    assert results["per_class"]["background"] == 0.5 and results["per_class"]["cat"] is None
    assert results["per_class"]["car"] == 0 and results["miou"] == 0.25
    assert len(results["per_class"]) == 21


def test_all_are_those_that_are_prepared(tiny_clip, tmp_path):
    truth = np.zeros((40, 48), int)
    truth[:, 24:] = 7
    prepare(LAYOUTS["voc21 unpacked"], tmp_path, [truth, truth])
    flags = (
        "--dataset=all",
        f"--data_dir={tmp_path}/data",
        f"--clip={tiny_clip}",
        "--attention=clip",
        "--vocabulary=plain",
        "--method=kl",
        "--short_side=64",
        f"--output_dir={tmp_path}/run",
    )
    done = call("eval", *flags)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split(",")[0] for line in lines[:2]] == ["voc21", "voc20"]
    assert all(" 2 pictures" in line for line in lines[:2])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["voc20", "voc21"]
    for name, classes in (("voc21", 21), ("voc20", 20)):
        results = json.loads((tmp_path / "run" / name / "results.json").read_text())
        assert results["config"]["dataset"] == name and len(results["per_class"]) == classes
        with (tmp_path / "run" / name / "confusion.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == list(results["per_class"])
        assert np.array(rows, int).shape == (classes, classes)


# ---- real files, where there are some ------------------------------------------------------------

real = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no samples here")


@real
def test_real_ade20k(tmp_path, monkeypatch):
    prepared.prepare(datasets.benchmark("ade20k"), SAMPLES / "ade20k", tmp_path)
    dataset = datasets.load("ade20k", tmp_path)
    stored = [
        np.asarray(Image.open(SAMPLES / f"ade20k/annotations/validation/{id}.png")).astype(int)
        for id in dataset.ids
    ]
    results = evaluate(dataset, [np.maximum(s - 1, 0) for s in stored], tmp_path, monkeypatch)
    assert results["miou"] == 1
    present = {name for name, iou in results["per_class"].items() if iou is not None}
    rows = (SAMPLES / "ade20k/objectInfo150.txt").read_text().splitlines()[1:]
    official = [row.split("\t")[-1].split(",")[0].strip() for row in rows]
    assert present == {
        official[s - 1] for s in np.unique(np.concatenate([*map(np.ravel, stored)])) if s
    }


@real
def test_real_voc(tmp_path, monkeypatch):
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
        for path in (SAMPLES / "voc3" / folder).iterdir():
            (root / folder / path.name).symlink_to(path)
    ids = sorted(path.stem for path in (SAMPLES / "voc3/JPEGImages").iterdir())
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids))
    prepared.prepare(datasets.benchmark("voc21"), tmp_path, tmp_path / "data")
    stored = [
        np.asarray(Image.open(SAMPLES / f"voc3/SegmentationClass/{id}.png")).astype(int)
        for id in ids
    ]
    for name, answers in {
        "voc21": [np.where(s == 255, 0, s) for s in stored],
        "voc20": [np.where((s == 255) | (s == 0), 0, s - 1) for s in stored],
    }.items():
        dataset = datasets.load(name, tmp_path / "data")
        assert evaluate(dataset, answers, tmp_path, monkeypatch)["miou"] == 1
        assert all((dataset[i]["labels"] != 255).any() for i in range(len(ids)))


@real
def test_real_coco_panoptic_maps_give_classes_of_the_same_names(tmp_path):
    """Panoptic ids, coloured as R + 256 G + 65536 B, turned into COCO-Stuff's ids."""
    folder = SAMPLES / "coco_panoptic"
    annotations = json.loads((folder / "panoptic_examples.json").read_text())["annotations"]
    categories = json.loads((folder / "panoptic_coco_categories.json").read_text())
    names = {category["id"]: category["name"] for category in categories}
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    (root / "stuffthingmaps/val2017").mkdir(parents=True)
    expected = {}
    for annotation in annotations:
        id = annotation["file_name"].removesuffix(".png")
        (root / f"val2017/{id}.jpg").symlink_to(folder / f"input_images/{id}.jpg")
        colours = np.asarray(Image.open(folder / f"panoptic_examples/{id}.png")).astype(int)
        segment = colours @ [1, 256, 65536]
        stored = np.full(segment.shape, 255, np.uint8)
        for info in annotation["segments_info"]:
            if info["category_id"] <= 182:  # above are panoptic's merged classes
                stored[segment == info["id"]] = info["category_id"] - 1
        Image.fromarray(stored).save(root / f"stuffthingmaps/val2017/{id}.png")
        expected[id] = {names[s + 1] for s in np.unique(stored) if s != 255}
    prepared.prepare(datasets.benchmark("coco_stuff"), tmp_path, tmp_path / "data")
    stuff, things = (
        datasets.load(name, tmp_path / "data") for name in ("coco_stuff", "coco_object")
    )
    assert len(stuff) == len(expected) == 2
    isthing = {category["name"] for category in categories if category["isthing"]}
    for i, id in enumerate(stuff.ids):
        found = {stuff.names[c] for c in np.unique(stuff[i]["labels"]) if c != IGNORE}
        assert found == expected[id] and found
        labels = things[i]["labels"]
        assert {things.names[c] for c in np.unique(labels)} - {"background"} == found & isthing
        assert labels.max() <= 80


# ---- vocabulary ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, classes, naclip, proxyclip",
    [
        ("voc21", 21, 56, 46),
        ("voc20", 20, 30, 20),
        ("context60", 60, 60, 60),
        ("context59", 59, 59, 59),
        ("coco_object", 81, 113, 97),
        ("coco_stuff", 171, 171, 171),
        ("cityscapes", 19, 19, 19),
        ("ade20k", 150, 150, 150),
    ],
)
def test_classes_and_queries_are_as_many_as_published(name, classes, naclip, proxyclip):
    queries = {"naclip": naclip, "proxyclip": proxyclip, "plain": classes}
    for list_, count in queries.items():
        names, lines = datasets.protocols.classes(name, datasets.protocol(name, vocabulary=list_))
        words = vocabulary.parse(lines)
        assert (len(names), len(set(names)), len(lines)) == (classes, classes, classes)
        assert (len(words.classes), len(words.queries)) == (classes, count)
    assert datasets.protocol(name).vocabulary == "naclip"


@pytest.mark.parametrize(
    "name, index, official, naclip",
    [
        ("voc21", 0, "background", "sky, wall, tree, wood, grass, road, sea, river, mountain"),
        ("voc21", 4, "boat", "ship"),
        ("voc21", 15, "person", "person, person in shirt, person in jeans, person in dress"),
        ("voc21", 20, "tvmonitor", "television monitor, tv monitor, monitor, television, screen"),
        ("voc20", 10, "diningtable", "table"),
        ("context60", 0, "background", "background"),
        ("context60", 59, "wood", "wood"),
        ("context59", 36, "person", "person"),
        ("coco_object", 1, "person", "person, person in shirt"),
        ("coco_object", 10, "traffic light", "traffic light"),
        ("coco_object", 80, "toothbrush", "toothbrush"),
        ("coco_stuff", 9, "traffic light", "trafficlight"),
        ("coco_stuff", 80, "banner", "banner"),
        ("coco_stuff", 170, "wood", "wood"),
        ("cityscapes", 6, "traffic light", "trafficlight"),
        ("cityscapes", 18, "bicycle", "bicycle"),
        ("ade20k", 0, "wall", "wall"),
        ("ade20k", 44, "chest of drawers", "chestofdrawers"),
        ("ade20k", 89, "television", "televisionreceiver"),
        ("ade20k", 149, "flag", "flag"),
    ],
)
def test_names_at_their_indices(name, index, official, naclip):
    names, lines = datasets.protocols.classes(name, datasets.protocol(name))
    assert names[index] == official
    assert lines[index].startswith(naclip)


def test_official_and_listed_names_are_in_one_order():
    """Where a list has a class's own name, it has it at the class's index."""
    for name in datasets.NAMES:
        for list_ in ("naclip", "proxyclip"):
            names, lines = datasets.protocols.classes(
                name, datasets.protocol(name, vocabulary=list_)
            )
            place = {official.replace(" ", ""): i for i, official in enumerate(names)}
            for i, line in enumerate(lines):
                first = line.split(",")[0].replace(" ", "")
                assert place.get(first, i) == i


@pytest.mark.skipif(not (SHARED / "vocab").is_dir(), reason="no lists here")
def test_the_lists_are_those_of_naclip():
    for name in datasets.NAMES:
        file = "city_scapes" if name == "cityscapes" else name
        theirs = (SHARED / f"vocab/cls_{file}.txt").read_text().splitlines()
        _, ours = datasets.protocols.classes(name, datasets.protocol(name))
        assert list(ours) == [line.strip() for line in theirs]
