"""Masks of georeferenced TIFFs, read by rasterio and by PIL."""

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from dsolo_jax import draw, geotiff, images

rasterio = pytest.importorskip("rasterio")

NAMES = ("water", "forest, wood", "road")
LABELS = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.int32)


def source(path, shape=(40, 60), bands=3, **place):
    """A picture; by default in UTM 32N, half a metre a pixel."""
    given = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(5e5, 5.3e6, 0.5, 0.5)}
    pixels = np.random.default_rng(1).integers(0, 256, (bands, *shape), np.uint8)
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": bands}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio's, of files without a place
        with rasterio.open(path, "w", dtype="uint8", **profile, **(place or given)) as file:
            file.write(pixels)
    return path


def test_a_mask_lies_where_its_picture_does(tmp_path):
    picture, path = source(tmp_path / "ortho.tif"), tmp_path / "masks" / "ortho.tif"
    assert geotiff.is_georeferenced(picture)
    geotiff.write_mask(path, LABELS, NAMES, picture)
    with rasterio.open(path) as mask, rasterio.open(picture) as original:
        assert (mask.crs, mask.transform, mask.bounds) == (
            original.crs,
            original.transform,
            original.bounds,
        )
        np.testing.assert_array_equal(mask.read(1), LABELS)
        colours = [mask.colormap(1)[c][:3] for c in range(3)]
        assert colours == [tuple(colour) for colour in draw.palette(3).tolist()]
        assert [mask.tags()[f"class_{c}"] for c in range(3)] == list(NAMES)
    np.testing.assert_array_equal(images.read_labels(path), LABELS)
    assert [p.name for p in path.parent.iterdir()] == ["ortho.tif"]


def test_ground_control_points_are_kept(tmp_path):
    point = rasterio.control.GroundControlPoint
    points = [point(0, 0, 10, 50), point(0, 60, 11, 50), point(40, 0, 10, 49)]
    picture = source(tmp_path / "raw.tif", gcps=points, crs="EPSG:4326")
    assert geotiff.is_georeferenced(picture)
    geotiff.write_mask(tmp_path / "mask.tif", LABELS, NAMES, picture)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        found, system = mask.gcps
    assert system == "EPSG:4326"
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


def test_many_classes_have_16_bits(tmp_path):
    labels = np.arange(40 * 60, dtype=np.int32).reshape(40, 60) % 300
    names = [f"c{i}" for i in range(300)]
    geotiff.write_mask(tmp_path / "m.tif", labels, names, source(tmp_path / "p.tif"))
    np.testing.assert_array_equal(images.read_labels(tmp_path / "m.tif"), labels)


def test_a_picture_with_four_bands_is_read_as_its_first_three(tmp_path):
    path = source(tmp_path / "rgbn.tif", bands=4, photometric="rgb", crs="EPSG:4326")
    with rasterio.open(path) as opened:
        expected = opened.read()[:3].transpose(1, 2, 0)
    np.testing.assert_array_equal(images.read_image(path), expected)


def test_others_are_not_georeferenced(tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "plain.tif")
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    (tmp_path / "broken.tif").write_bytes(b"II*\0nothing")
    for name in ("plain.tif", "a.png", "broken.tif", "missing.tif"):
        assert not geotiff.is_georeferenced(tmp_path / name)


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    picture = source(tmp_path / "p.tif", (30, 60))
    with pytest.raises(ValueError, match=r"p\.tif has 30 x 60 pixels and its labels 40 x 60"):
        geotiff.write_mask(tmp_path / "m.tif", LABELS, NAMES, picture)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImportError, match=r'rasterio is not installed.*"dsolo-jax\[geo\]"'):
        geotiff.check()
    assert [path.name for path in tmp_path.iterdir()] == ["p.tif"]
