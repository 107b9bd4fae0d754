"""PASCAL VOC 2012: 20 things, with their background (voc21) or without it (voc20)."""

from pathlib import Path

from dsolo_jax.datasets import layouts
from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Collection, Found

_ORIGIN = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012, VOCtrainval_11-May-2012.tar (the pictures are "
    "under flickr's terms of use)"
)
_COUNT = 1449


def _find(source: Path, labels: str | None) -> Found:
    """`source` is VOC2012, VOCdevkit or the folder that lies in; mmsegmentation's are the same."""
    places = ("VOC2012", "VOCdevkit/VOC2012", ".")
    root = layouts.place(source, places, "JPEGImages", "PASCAL VOC 2012", _ORIGIN)
    maps = {name: [layouts.scan(root / name, ".png")] for name in _LABEL_TABLES}
    coding, files = layouts.choose_labels("PASCAL VOC 2012", labels, maps)
    ids = layouts.listed(root / "ImageSets" / "Segmentation" / "val.txt", _ORIGIN)
    pairs = layouts.paired(layouts.scan(root / "JPEGImages", ".jpg"), files, ids)
    return Found(coding, {"validation": pairs}, {"validation": _COUNT})


# 0 is the background, 1..20 the things, 255 the line around them. SegmentationClassAug is what
# mmsegmentation makes of SBD: maps for more training pictures, and the same ones of validation.
_STORED = {label: label for label in range(21)} | {255: IGNORE}
_LABEL_TABLES = {"SegmentationClass": _STORED, "SegmentationClassAug": _STORED}

_COLLECTION = Collection(
    name="voc",
    find=_find,
    origin=_ORIGIN,
    hint="take the index maps of SegmentationClass, not those of SegmentationObject",
)

BENCHMARKS = (
    Benchmark("voc21", _COLLECTION, _LABEL_TABLES),
    Benchmark("voc20", _COLLECTION, _LABEL_TABLES),
)
