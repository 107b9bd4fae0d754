"""Pictures of `dsolo segment`: read, segmented, and written in the forms that are asked for."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, cast

import dsolo_jax as dsolo
from dsolo_jax import geotiff, images, results
from dsolo_jax.commands.inputs import STDIN, Source
from dsolo_jax.utils.files import write_json
from dsolo_jax.vocabulary import Vocabulary

_GEO = ".tif"


def targets(folder: Path, source: Source, kinds: Sequence[str]) -> dict[str, Path]:
    """Gives the files that a picture gets, by their kinds; the mask of a georeferenced TIFF is one
    too.

    Raises:
        ImportError: rasterio is missing, which such a mask needs.
    """
    found = {kind: folder / results.FILES[kind][0].format(name=source.name) for kind in kinds}
    if "mask" in found and geotiff.is_georeferenced(source.path):
        geotiff.check()
        found["mask"] = found["mask"].with_name(PurePath(source.name).name + _GEO)
    return found


def fits(path: Path, kind: str, source: Source) -> bool:
    """Says whether a file of this kind can be called so."""
    suffix = path.suffix.lower()
    if kind == "mask" and suffix == _GEO:
        return geotiff.is_georeferenced(source.path)
    return suffix == PurePath(results.FILES[kind][0]).suffix


def segment(
    model: dsolo.Model, words: Vocabulary, options: argparse.Namespace, source: Source
) -> dsolo.Result:
    """Segments a picture; errors as of `dsolo.segment`."""
    picture: Any = source.path
    if source.path == STDIN:
        picture = images.decode_image(sys.stdin.buffer.read(), "standard input")
    found = dsolo.segment(model, picture, words, options.method, tile=options.tile)
    return cast(dsolo.Result, found)


def write(kind: str, result: dsolo.Result, source: Source, path: Path) -> None:
    """Writes one of the files of a picture; other programs find the picture by what it says."""
    if kind == "mask" and path.suffix.lower() == _GEO:
        geotiff.write_mask(path, result.labels, result.classes, source.path)
    elif kind == "coco":
        write_json(path, result.to_coco(file_name=source.place))
    elif kind == "labelme":
        write_json(path, result.to_labelme(os.path.relpath(source.path, path.parent)))
    else:
        results.FILES[kind][1](result, path)


def encoded(kind: str, result: dsolo.Result, source: Source) -> bytes:
    """Gives the bytes of what would be written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PurePath(results.FILES[kind][0]).name
        write(kind, result, source, path)
        return path.read_bytes()
