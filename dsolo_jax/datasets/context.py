"""PASCAL Context: 59 things and stuff on VOC 2010, with their background (context60) or without."""

from pathlib import Path

import numpy as np

from dsolo_jax.datasets import layouts, protocols
from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Collection, Found
from dsolo_jax.images import encode_png
from dsolo_jax.utils.files import read_text

_ORIGIN = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010, VOCtrainval_03-May-2010.tar, and "
    "https://cs.stanford.edu/~roozbeh/pascal-context, trainval.tar.gz and labels.txt, unpacked "
    "into VOC2010 (the pictures are under flickr's terms of use)"
)

# The list of validation pictures that goes with each coding, and its length: Detail's list, from
# which mmsegmentation converts, lacks one picture of VOC 2010's.
_LISTS = {"SegmentationClassContext": ("SegmentationContext", 5104), "detail": ("Main", 5105)}


def _find(source: Path, labels: str | None) -> Found:
    """`source` is VOC2010, VOCdevkit or the folder that lies in."""
    places = ("VOC2010", "VOCdevkit/VOC2010", ".")
    root = layouts.place(source, places, "JPEGImages", "PASCAL Context", _ORIGIN)
    above = (root, source, root.parent)
    maps = {
        "SegmentationClassContext": [layouts.scan(root / "SegmentationClassContext", ".png")],
        "detail": [layouts.scan(folder / "trainval", ".mat") for folder in above],
    }
    coding, files = layouts.choose_labels("PASCAL Context", labels, maps)
    for path in (files.folder / "labels.txt", files.folder.parent / "labels.txt"):
        if coding == "detail" and path.is_file():
            _check_names(path)
    folder, count = _LISTS[coding]
    ids = layouts.listed(root / "ImageSets" / folder / "val.txt", _ORIGIN)
    pairs = layouts.paired(layouts.scan(root / "JPEGImages", ".jpg"), files, ids)
    return Found(coding, {"validation": pairs}, {"validation": count})


# Numbers of the classes 1..59 among the original's 459 labels (labels.txt), both in order of the
# alphabet. Source: mmsegmentation, tools/dataset_converters/pascal_context.py.
_NUMBERS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

_LABEL_TABLES = {
    "SegmentationClassContext": {label: label for label in range(60)} | {255: IGNORE},
    # Every label that is none of the 59 is background, as is what nobody labelled.
    "detail": {
        number: _NUMBERS.index(number) + 1 if number in _NUMBERS else 0 for number in range(460)
    },
}


def _check_names(path: Path) -> None:
    """labels.txt must call the numbers what they are taken for here."""
    rows = (line.split(":") for line in read_text(path).splitlines() if line)
    found = {int(number): name.strip() for number, name in rows}
    wanted, _ = protocols.classes("context59", protocols.PROTOCOLS["context59"])
    for number, name in zip(_NUMBERS, wanted, strict=True):
        if found.get(number) != name:
            raise ValueError(
                f"{path} calls the label {number} {found.get(number)!r}, wanted {name!r}: take "
                f"the labels.txt of the 459-label annotations, from {_ORIGIN}"
            )


def _label_bytes(path: Path) -> bytes:
    """A label map as PNG: as it is, or the LabelMap of a .mat file in 16 bits."""
    if path.suffix != ".mat":
        return path.read_bytes()
    from scipy.io import loadmat  # late: few need it

    try:
        stored = loadmat(path, variable_names="LabelMap")["LabelMap"]
    except Exception as error:  # scipy raises all sorts
        raise ValueError(
            f"{path} is no annotation of PASCAL Context, or cut short: wanted a MATLAB file with a "
            f"LabelMap ({error}); fetch it again from {_ORIGIN}"
        ) from error
    return encode_png(np.asarray(stored, np.uint16))


_COLLECTION = Collection(
    name="context",
    find=_find,
    origin=_ORIGIN,
    hint="take the 59-class maps of SegmentationClassContext, or the .mat files of 459 labels",
    label_bytes=_label_bytes,
)

BENCHMARKS = (
    Benchmark("context60", _COLLECTION, _LABEL_TABLES),
    Benchmark("context59", _COLLECTION, _LABEL_TABLES),
)
