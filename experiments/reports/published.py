"""What others measured on the eight benchmarks: mIoU in percent."""

from pathlib import Path
from typing import NamedTuple

# In the order of the papers' tables: title there, and pictures of the validation set, which the
# numbers below are of; Context's is one more with the original files.
_BENCHMARKS = {
    "voc21": ("VOC21", 1449),
    "context60": ("PC60", 5104),
    "coco_object": ("Object", 5000),
    "voc20": ("VOC20", 1449),
    "cityscapes": ("City", 500),
    "context59": ("PC59", 5104),
    "ade20k": ("ADE", 2000),
    "coco_stuff": ("Stuff", 5000),
}
BENCHMARKS = {name: title for name, (title, _) in _BENCHMARKS.items()}
PICTURES = {name: pictures for name, (_, pictures) in _BENCHMARKS.items()}

# None of these was measured here. Averages are over the eight, and agree with them where all are
# known. The source is one of those below, or the repository in whose README they are.
# "?": published, but could not be had; "–": not published.
_TABLE = Path(__file__).with_suffix(".txt")

SOURCES = {
    "notes": "secondary notes on the DSLO paper, whose tables could not be had",
    "peer": "secondary notes on the method's own paper, or a later paper that quotes it",
    "rerun": "the official code run again by a benchmark project of 2026",
    "here": "measured by experiments.eval",
}


class Row(NamedTuple):
    """A line of the table: a method, its mIoU in percent by benchmark and their average.

    What is not known is missing from `miou`, or None; `scale` is that of CLIP; `source` is one of
    `SOURCES` or a repository; `partial` names datasets of which not all pictures were taken.
    """

    method: str
    scale: str
    miou: dict[str, float]
    average: float | None
    source: str
    remark: str = ""
    partial: frozenset[str] = frozenset()


def _row(line: str) -> Row:
    method, scale, cells, source, remark = (part.strip() for part in line.split("|"))
    *values, average = (None if cell in "?–" else float(cell) for cell in cells.split())
    known = zip(BENCHMARKS, values, strict=True)
    miou = {name: value for name, value in known if value is not None}
    return Row(method, scale, miou, average, source, remark)


PUBLISHED = tuple(map(_row, _TABLE.read_text(encoding="utf-8").splitlines()[1:]))
