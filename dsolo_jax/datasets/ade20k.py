"""ADE20K-150, the scene parsing benchmark (SceneParsing / ADEChallengeData2016).

TFDS's own scene_parse150 holds the instance maps of the 2017 challenge, not these.
"""

from pathlib import Path

from dsolo_jax.datasets import layouts
from dsolo_jax.datasets.benchmark import Benchmark, Collection, Found

_FOLDER = "ADEChallengeData2016"
_ORIGIN = (
    f"http://sceneparsing.csail.mit.edu, {_FOLDER}.zip (MIT CSAIL; the images are for "
    "non-commercial research)"
)
_COUNTS = {"training": 20210, "validation": 2000}


def _find(source: Path, labels: str | None) -> Found:
    """`source` is ADEChallengeData2016 (images/, annotations/) or the folder it lies in; the
    mmsegmentation layout is the same, in a folder "ade"."""
    places = (_FOLDER, f"ade/{_FOLDER}", ".")
    root = layouts.place(source, places, "images/validation", "ADE20K", _ORIGIN)
    splits = {}
    for split in _COUNTS:
        images = layouts.scan(root / "images" / split, ".jpg")
        maps = {"annotations": [layouts.scan(root / "annotations" / split, ".png")]}
        if not images.paths and split == "training":
            continue
        coding, files = layouts.choose_labels(f"ADE20K {split}", labels, maps)
        splits[split] = layouts.paired(images, files)
    return Found(coding, splits, {split: _COUNTS[split] for split in splits})


BENCHMARKS = (
    Benchmark(
        "ade20k",
        Collection(
            name="ade20k",
            find=_find,
            origin=_ORIGIN,
            hint=f"take the 150-class maps of {_FOLDER}/annotations, not those of the full ADE20K",
        ),
        # 0 is "other", 1..150 the classes; no 255.
        {"annotations": {label: label for label in range(151)}},
    ),
)
