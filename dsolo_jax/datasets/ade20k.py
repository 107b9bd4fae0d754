"""ADE20K-150, the scene parsing benchmark (SceneParsing / ADEChallengeData2016).

TFDS's own scene_parse150 holds the instance maps of the 2017 challenge, not these. The class names
are the field's (NACLIP's list, two-word classes written as one), not those of objectInfo150.txt.
"""

from pathlib import Path

from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Pair, matched, read_classes

_FOLDER = "ADEChallengeData2016"
_ORIGIN = (
    f"http://sceneparsing.csail.mit.edu, {_FOLDER}.zip (MIT CSAIL; the images are for "
    "non-commercial research)"
)
_COUNTS = {"training": 20210, "validation": 2000}


def _find(source: Path) -> dict[str, list[Pair]]:
    """`source` is ADEChallengeData2016 (images/, annotations/) or the folder it lies in."""
    root = source / _FOLDER if (source / _FOLDER).is_dir() else source
    if not (root / "images" / "validation").is_dir():
        found = (
            sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else "no such folder"
        )
        raise FileNotFoundError(
            f"no ADE20K at {source}: wanted {_FOLDER} with images/validation and "
            f"annotations/validation, found {found or 'an empty folder'}; the original: {_ORIGIN}"
        )
    return {
        split: matched(root / "images" / split, root / "annotations" / split)
        for split in _COUNTS
        if (root / "images" / split).is_dir()
    }


BENCHMARK = Benchmark(
    name="ade20k",
    classes=read_classes(Path(__file__).parent / "vocab" / "cls_ade20k.txt"),
    # The official files hold 0 for "other" and 1..150; no 255.
    label_table={0: IGNORE} | {stored: stored - 1 for stored in range(1, 151)},
    official_counts=_COUNTS,
    find=_find,
    origin=_ORIGIN,
    hint=f"take the 150-class maps of {_FOLDER}/annotations, not those of the full ADE20K",
)
