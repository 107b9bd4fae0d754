"""Georeferenced TIFFs: masks that lie where their picture does, by rasterio."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import TiffImagePlugin

from dsolo_jax.draw import palette
from dsolo_jax.utils.extras import extra
from dsolo_jax.utils.files import atomic

# TIFF tags of GeoTIFF: the coordinate system's keys, and how pixels lie in it.
_KEYS, _PLACES = 34735, {33550, 33922, 34264}


def is_georeferenced(path: str | os.PathLike) -> bool:
    """Whether a file is a TIFF that says where on the earth it lies; needs no rasterio."""
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        image = TiffImagePlugin.TiffImageFile(path)
        with image:
            tags = set(image.tag_v2)
    except (OSError, ValueError, SyntaxError):
        return False  # reading the picture says what is wrong
    return _KEYS in tags and bool(tags & _PLACES)


def check() -> None:
    """Raises MissingExtraError where masks cannot be written, before any work is done."""
    extra("rasterio", "geo")


def write_mask(
    path: str | os.PathLike,
    labels: Int[np.ndarray, "H W"],
    classes: Sequence[str],
    source: str | os.PathLike,
) -> None:
    """Writes a label map as a GeoTIFF with the coordinates of `source`, atomically.

    The coordinate system and the transform, or the ground control points, are the picture's, 8 bits
    a pixel up to 256 classes, with their colours as colour table, else 16. The classes' names are
    in the tags class_0, class_1, ...

    Raises:
        ValueError: the picture has another size than the labels, as one has that its EXIF turns.
        ImportError: rasterio is missing. OSError: as of writing.
    """
    rasterio = extra("rasterio", "geo")
    colours = palette(len(classes)).tolist()
    with rasterio.open(source) as opened:
        if (opened.height, opened.width) != labels.shape:
            raise ValueError(
                f"{source} has {opened.height} x {opened.width} pixels and its labels "
                f"{labels.shape[0]} x {labels.shape[1]}: it is turned by its EXIF, which GeoTIFF "
                "does not know; remove the EXIF"
            )
        points, system = opened.gcps
        place = {"crs": opened.crs, "transform": opened.transform}
        if points:  # then there is no transform
            place = {"crs": system, "gcps": points}
    profile = {
        "driver": "GTiff",
        "height": labels.shape[0],
        "width": labels.shape[1],
        "count": 1,
        "dtype": "uint8" if len(classes) <= 256 else "uint16",
        "compress": "deflate",
        "tiled": True,
        **place,
    }
    with atomic(path) as temporary:
        with rasterio.open(temporary, "w", **profile) as file:
            file.write(labels.astype(profile["dtype"]), 1)
            if len(classes) <= 256:
                file.write_colormap(1, {c: (*colour, 255) for c, colour in enumerate(colours)})
            file.update_tags(**{f"class_{c}": name for c, name in enumerate(classes)})
