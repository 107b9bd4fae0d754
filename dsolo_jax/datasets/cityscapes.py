"""Cityscapes: 19 classes of streets, finely annotated."""

from pathlib import Path

from dsolo_jax.datasets import layouts
from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Collection, Found

_ORIGIN = (
    "https://www.cityscapes-dataset.com after registration, leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip (for non-commercial use)"
)
_COUNT = 500


def _find(source: Path, labels: str | None) -> Found:
    """`source` holds leftImg8bit and gtFine, each perhaps in the folder named after its archive."""
    root = source / "cityscapes" if (source / "cityscapes").is_dir() else source

    def part(name: str) -> Path:
        places = (".", f"{name}_trainvaltest")
        return layouts.place(root, places, f"{name}/val", "Cityscapes", _ORIGIN) / name / "val"

    gt = part("gtFine")
    maps = {name: [layouts.scan(gt, f"_gtFine_{name}.png", "*/*")] for name in _LABEL_TABLES}
    coding, files = layouts.choose_labels("Cityscapes", labels, maps)
    images = layouts.scan(part("leftImg8bit"), "_leftImg8bit.png", "*/*")
    pairs = layouts.paired(images, files)
    return Found(coding, {"validation": pairs}, {"validation": _COUNT})


# Ids of the classes 0..18 among the labels 0..33. Source: cityscapesScripts, helpers/labels.py.
# The licence plate's -1 is never drawn; what writes it nevertheless writes 255.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_LABEL_TABLES = {
    "labelIds": {id: _IDS.index(id) if id in _IDS else IGNORE for id in (*range(34), 255)},
    "labelTrainIds": {label: label for label in range(len(_IDS))} | {255: IGNORE},
}

BENCHMARKS = (
    Benchmark(
        "cityscapes",
        Collection(
            name="cityscapes",
            find=_find,
            origin=_ORIGIN,
            hint="take the maps that end in _gtFine_labelIds.png, not instanceIds",
        ),
        _LABEL_TABLES,
    ),
)
