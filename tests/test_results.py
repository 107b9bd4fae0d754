"""Results in other programs' forms, read back by those programs."""

import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

import dsolo_jax as dsolo
from dsolo_jax import draw, images, results

NAMES = ("sky", "tree, very old", "Haus")


def result_of(labels, names=NAMES):
    pixels = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3), np.uint8)
    return dsolo.Result(labels.astype(np.int32), None, names, pixels)


def hard_maps():
    """Labels with single pixels, diagonals, holes, islands in holes, one row, one column, noise."""
    random = np.random.default_rng(1)
    rings = np.zeros((40, 50), int)
    for i, (a, b) in enumerate([(3, 20), (6, 17), (9, 14), (11, 12)]):
        rings[a:b, a + 5 : b + 20] = (i + 1) % 2
    return {
        "noise": random.integers(0, 3, (31, 47)),
        "rings": rings,
        "diagonal": np.eye(9, dtype=int),
        "row": random.integers(0, 2, (1, 23)),
        "column": random.integers(0, 2, (23, 1)),
        "pixel": np.ones((1, 1), int),
        "two holes": 1 - np.pad(np.eye(2, dtype=int), 2),
    }


@pytest.fixture(params=hard_maps())
def result(request):
    return result_of(hard_maps()[request.param])


def test_masks_and_shares_are_those_of_the_labels(result):
    masks, shares = result.masks(), result.shares()
    assert list(masks) == list(shares) == list(NAMES)
    for c, name in enumerate(NAMES):
        np.testing.assert_array_equal(masks[name], result.labels == c)
        assert shares[name] == pytest.approx(np.mean(result.labels == c))
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_reads_the_masks_back(result, tmp_path, polygons):
    """As a data set of its own, through COCO's index: every pixel."""
    coco_tools = pytest.importorskip("pycocotools.coco")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(result.to_coco(7, "a.jpg", polygons=polygons)))
    coco = coco_tools.COCO(path)
    assert coco.loadImgs(7)[0]["file_name"] == "a.jpg"
    assert [category["name"] for category in coco.loadCats(range(3))] == list(NAMES)
    annotations = coco.loadAnns(coco.getAnnIds(7))
    assert {one["category_id"] for one in annotations} == set(np.unique(result.labels).tolist())
    for one in annotations:
        mask = result.labels == one["category_id"]
        np.testing.assert_array_equal(coco.annToMask(one), mask)
        rows, columns = np.nonzero(mask)
        left, top, width, height = one["bbox"]
        assert (left, top) == (columns.min(), rows.min()) and one["area"] == mask.sum()
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_polygons_hold_just_the_centres_of_their_pixels(result):
    """By matplotlib's test of points, ring by ring."""
    from matplotlib.path import Path

    height, width = result.labels.shape
    centres = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) + 0.5
    for name, parts in result.polygons().items():
        inside = sum(Path(ring).contains_points(centres) for rings in parts for ring in rings)
        wanted = result.labels == NAMES.index(name)
        np.testing.assert_array_equal(inside.reshape(wanted.shape) % 2, wanted)


def test_labelme_shapes_drawn_by_pil_are_the_labels():
    """On a canvas five times as large, where PIL's borders of a pixel are no pixel of ours."""
    result = result_of(hard_maps()["rings"])
    drawn = result.to_labelme("a.jpg")
    assert drawn["imagePath"] == "a.jpg" and (drawn["imageHeight"], drawn["imageWidth"]) == (40, 50)
    for c, name in enumerate(NAMES[:2]):
        canvas = np.zeros((200, 250), bool)
        for shape in drawn["shapes"]:
            if shape["label"] == name:
                one = Image.new("1", (250, 200))
                points = [(5 * x, 5 * y) for x, y in shape["points"]]
                ImageDraw.Draw(one).polygon(points, fill=1)
                canvas ^= np.asarray(one)
        np.testing.assert_array_equal(canvas[2::5, 2::5], result.labels == c)


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_has_a_detection_for_each_class_that_is_there():
    supervision = pytest.importorskip("supervision")
    result = result_of(hard_maps()["rings"])
    found = result.to_detections()
    assert isinstance(found, supervision.Detections)
    assert found.class_id.tolist() == [0, 1] and found["class_name"].tolist() == list(NAMES[:2])
    for mask, box, c in zip(found.mask, found.xyxy, found.class_id, strict=True):
        np.testing.assert_array_equal(mask, result.labels == c)
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize("number", [3, 256, 257])
def test_the_index_png_opens_with_its_palette(tmp_path, number):
    labels = np.arange(20 * 30).reshape(20, 30) % number
    names = tuple(f"class {i}" for i in range(number))
    [path] = result_of(labels, names).save(tmp_path, "p", ["mask"])
    assert path == tmp_path / "masks" / "p.png"
    np.testing.assert_array_equal(images.read_labels(path), labels)
    with Image.open(path) as opened:
        assert opened.mode == ("P" if number <= 256 else "I;16")
        if number <= 256:
            np.testing.assert_array_equal(np.asarray(opened), labels)
            shown = np.asarray(opened.convert("RGB"))
            np.testing.assert_array_equal(shown, draw.palette(number)[labels])


def test_what_is_saved_is_what_was_asked_for(tmp_path):
    pytest.importorskip("pycocotools")
    result = result_of(hard_maps()["rings"])
    paths = result.save(tmp_path / "new", "a", [*results.FILES])
    assert sorted(p.relative_to(tmp_path / "new").as_posix() for p in paths) == [
        "a.json",
        "a.png",
        "coco/a.json",
        "labelme/a.json",
        "masks/a.png",
    ]
    about = json.loads((tmp_path / "new" / "a.json").read_text())
    assert (about["height"], about["width"]) == (40, 50)
    assert {one["name"]: one["share"] for one in about["classes"]} == result.shares()
    assert [one["colour"] for one in about["classes"]] == draw.palette(3).tolist()
    with pytest.raises(ValueError, match="unknown what 'masks' \\(did you mean 'mask'"):
        result.save(tmp_path, what=["masks"])
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_an_overlay_hides_what_it_is_told_to_and_notebooks_show_it():
    labels = np.repeat([[0, 1, 2]], 600, axis=0).repeat(200, axis=1)
    result = result_of(labels)
    plain, hidden = (np.asarray(result.overlay(hidden=names)) for names in ((), ("Haus",)))
    np.testing.assert_array_equal(hidden[:600, 410:], result.pixels[:, 410:])
    np.testing.assert_array_equal(hidden[:600, :390], plain[:600, :390])
    assert np.any(plain[:600, 410:] != result.pixels[:, 410:])
    clear = np.asarray(result.overlay(opacity=0))
    np.testing.assert_array_equal(clear[:600, 10:190], result.pixels[:, 10:190])
    np.testing.assert_array_equal(result.overlay(hidden=NAMES), result.pixels)
    assert result._repr_png_().startswith(b"\x89PNG")
    for wrong, message in (({"opacity": 1.5}, "opacity is 1.5"), ({"hidden": ["Hau"]}, "'Haus'")):
        with pytest.raises(ValueError, match=message):
            result.overlay(**wrong)
    assert repr(result) == "Result(600 x 600: sky 33.3%, tree, very old 33.3%, Haus 33.3%)"


def test_a_missing_extra_is_named_with_how_to_install_it(monkeypatch):
    result = result_of(hard_maps()["rings"])
    missing = {"pycocotools.mask": result.to_coco, "supervision": result.to_detections}
    for name, call in missing.items():
        monkeypatch.setitem(sys.modules, name, None)
        module = name.partition(".")[0]
        with pytest.raises(ImportError, match=rf'{module} is not.*pip install "dsolo-jax\[formats'):
            call()
