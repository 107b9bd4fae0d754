"""COCO val2017 with COCO-Stuff's label maps: 171 classes, or the 80 things and a background."""

from pathlib import Path

from dsolo_jax.datasets import layouts
from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Collection, Found

_ORIGIN = (
    "https://cocodataset.org, val2017.zip, and https://github.com/nightrome/cocostuff, "
    "stuffthingmaps_trainval2017.zip (annotations CC BY 4.0; the pictures are under flickr's terms "
    "of use)"
)
_COUNT = 5000
_THINGS, _STUFF = 80, 91


def _find(source: Path, labels: str | None) -> Found:
    """`source` holds both archives unpacked, beside each other or in folders of their own, or is
    mmsegmentation's folder: images/val2017, annotations/val2017."""
    places = ("images", "coco/images", "coco_stuff164k/images", "coco", ".")
    pictures = layouts.place(source, places, "val2017", "COCO val2017", _ORIGIN)
    root = pictures.parent if pictures.name == "images" else pictures
    names = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017", ".")
    folders = [root / name / "val2017" for name in names]
    maps = {
        # The digits keep the converted maps in the same folder apart.
        "stuffthingmaps": [layouts.scan(f, ".png", "[0-9]*[0-9]") for f in folders],
        "labelTrainIds": [layouts.scan(f, "_labelTrainIds.png") for f in folders],
        "instanceTrainIds": [layouts.scan(f, "_instanceTrainIds.png") for f in folders],
    }
    coding, files = layouts.choose_labels("COCO val2017", labels, maps)
    pairs = layouts.paired(layouts.scan(pictures / "val2017", ".jpg"), files)
    return Found(coding, {"validation": pairs}, {"validation": _COUNT})


# COCO's ids 1..91 less one, of which eleven have no things; then the stuff, 91..181. 255 is what
# nobody labelled.
_UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
_STORED = [id for id in range(_STUFF) if id not in _UNUSED] + [*range(_STUFF, 2 * _STUFF)]

_STUFF_TABLES = {
    "stuffthingmaps": {id: label for label, id in enumerate(_STORED)} | {255: IGNORE},
    "labelTrainIds": {label: label for label in range(_THINGS + _STUFF)} | {255: IGNORE},
}

# Things are 1..80; all else is background, what nobody labelled too: no pixel is ignored.
_OBJECT_TABLES = {
    coding: {stored: label + 1 if label < _THINGS else 0 for stored, label in table.items()}
    for coding, table in _STUFF_TABLES.items()
} | {"instanceTrainIds": {label: label for label in range(_THINGS + 1)}}

_COLLECTION = Collection(
    name="coco",
    find=_find,
    origin=_ORIGIN,
    hint="take the maps of stuffthingmaps_trainval2017, not panoptic ones",
)

BENCHMARKS = (
    Benchmark("coco_object", _COLLECTION, _OBJECT_TABLES),
    Benchmark("coco_stuff", _COLLECTION, _STUFF_TABLES),
)
