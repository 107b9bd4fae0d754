"""PASCAL Context: 59 things and stuff on VOC 2010, with their background (context60) or without."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dsolo_jax.datasets import layouts
from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Collection, Found

_ORIGIN = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010, VOCtrainval_03-May-2010.tar, and "
    "https://cs.stanford.edu/~roozbeh/pascal-context, trainval.tar.gz and labels.txt, unpacked "
    "into VOC2010 (the pictures are under flickr's terms of use)"
)

# The list of validation pictures that goes with each coding, and its length: Detail's list, from
# which mmsegmentation converts, lacks one picture of VOC 2010's.
_LISTS = {
    "SegmentationClassContext": ("SegmentationContext", 5104),
    "detail": ("Main", 5105),
}


def _find(source: Path, labels: str | None) -> Found:
    """`source` is VOC2010, VOCdevkit or the folder that lies in."""
    places = ("VOC2010", "VOCdevkit/VOC2010", ".")
    root = layouts.place(source, places, "JPEGImages", "PASCAL Context", _ORIGIN)
    coding, files = layouts.choose_labels(
        "PASCAL Context",
        labels,
        {
            "SegmentationClassContext": [layouts.scan(root / "SegmentationClassContext", ".png")],
            "detail": [
                layouts.scan(folder / "trainval", ".mat") for folder in (root, source, root.parent)
            ],
        },
    )
    if coding == "detail":
        _check_names([files.folder / "labels.txt", files.folder.parent / "labels.txt"])
    folder, count = _LISTS[coding]
    ids = layouts.listed(root / "ImageSets" / folder / "val.txt", _ORIGIN)
    pairs = layouts.paired(layouts.scan(root / "JPEGImages", ".jpg"), files, ids)
    return Found(coding, {"validation": pairs}, {"validation": count})


# Numbers among the 459 labels of the original (labels.txt) of the classes 1..59, both in order of
# the alphabet. Source: mmsegmentation, tools/dataset_converters/pascal_context.py.
_NUMBERS = {
    2: "aeroplane", 9: "bag", 18: "bed", 19: "bedclothes", 22: "bench", 23: "bicycle", 25: "bird",
    31: "boat", 33: "book", 34: "bottle", 44: "building", 45: "bus", 46: "cabinet", 59: "car",
    65: "cat", 68: "ceiling", 72: "chair", 80: "cloth", 85: "computer", 98: "cow", 104: "cup",
    105: "curtain", 113: "dog", 115: "door", 144: "fence", 158: "floor", 159: "flower", 162: "food",
    187: "grass", 189: "ground", 207: "horse", 220: "keyboard", 232: "light", 258: "motorbike",
    259: "mountain", 260: "mouse", 284: "person", 295: "plate", 296: "platform", 308: "pottedplant",
    324: "road", 326: "rock", 347: "sheep", 349: "shelves", 354: "sidewalk", 355: "sign",
    360: "sky", 366: "snow", 368: "sofa", 397: "table", 415: "track", 416: "train", 420: "tree",
    424: "truck", 427: "tvmonitor", 440: "wall", 445: "water", 454: "window", 458: "wood",
}  # fmt: skip

_LABEL_TABLES = {
    "SegmentationClassContext": {label: label for label in range(60)} | {255: IGNORE},
    # Every label that is none of the 59 is background, as is what nobody labelled.
    "detail": {
        number: list(_NUMBERS).index(number) + 1 if number in _NUMBERS else 0
        for number in range(460)
    },
}


def _check_names(places: list[Path]) -> None:
    """labels.txt, where it is there, must call the numbers what they are taken for here."""
    for path in places:
        if not path.is_file():
            continue
        rows = [
            line.split(":") for line in path.read_text(encoding="utf-8-sig").splitlines() if line
        ]
        names = {int(number): name.strip() for number, name in rows}
        for number, name in _NUMBERS.items():
            if names.get(number) != name:
                raise ValueError(
                    f"{path} calls the label {number} {names.get(number)!r}, wanted {name!r}: take "
                    f"the labels.txt of the 459-label annotations, from {_ORIGIN}"
                )


def _label_bytes(path: Path) -> bytes:
    """A label map as PNG: as it is, or the LabelMap of a .mat file in 16 bits.

    Raises:
        ValueError: the file is no MATLAB file or has no LabelMap.
    """
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
    png = io.BytesIO()
    Image.fromarray(np.asarray(stored, np.uint16)).save(png, "PNG")
    return png.getvalue()


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
