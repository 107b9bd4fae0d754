"""What others measured on the eight benchmarks: mIoU in percent."""

from typing import NamedTuple

# In the order of the papers' tables, with their titles there.
BENCHMARKS = {
    "voc21": "VOC21",
    "context60": "PC60",
    "coco_object": "Object",
    "voc20": "VOC20",
    "cityscapes": "City",
    "context59": "PC59",
    "ade20k": "ADE",
    "coco_stuff": "Stuff",
}

# Pictures of their validation sets, which the numbers below are of; Context's is one more with the
# original files.
PICTURES = {
    "voc21": 1449,
    "context60": 5104,
    "coco_object": 5000,
    "voc20": 1449,
    "cityscapes": 500,
    "context59": 5104,
    "ade20k": 2000,
    "coco_stuff": 5000,
}

# None of these was measured here. Averages are over the eight, and agree with them where all are
# known. The source is one of those below, or the repository in whose README they are.
# "?": published, but could not be had; "–": not published.
_TABLE = """
method                  | CLIP | VOC21  PC60   Obj VOC20  City  PC59   ADE Stuff   avg | source
CLIP                    | B/16 |  18.6   7.8   6.5  49.1   6.7  11.2   3.2   7.2  13.8 | peer
MaskCLIP                | B/16 |  43.4  23.2  20.6  74.9  24.9  26.4  11.9  16.7  30.3 | FreeCP
SCLIP                   | B/16 |  59.1  30.4  30.5  80.4  32.2  34.2  16.1  22.4  38.2 | FreeCP
ClearCLIP               | B/16 |  51.8  32.6  33.0  80.9  30.0  35.9  16.7  23.9  38.1 | FreeCP
NACLIP                  | B/16 |  58.9  32.2  33.2  79.7  35.5  35.2  17.4  23.3  39.4 | peer
NACLIP + PAMR           | B/16 | 64.07 34.99 36.19 83.03 38.27 38.35 19.05 25.69 42.46 | NACLIP
ResCLIP on NACLIP       | B/16 |  61.1  33.5  35.0  86.0  35.9  36.8  18.0  24.7  41.4 | CCAR
ProxyCLIP               | B/16 |  61.3  35.3  37.5  80.3  38.1  39.1  20.2  26.5  42.3 | peer
ProxyCLIP, DSLO's group | B/16 |  59.1  35.2  36.2  78.2  38.1  38.8  19.6  26.2  41.4 | peer
FreeCP on ClearCLIP     | B/16 |  64.5  35.7  36.9  81.5  34.4  39.3  18.9  26.1  42.2 | FreeCP
FreeCP on SCLIP         | B/16 |  65.8  35.3  37.2  84.3  33.3  38.0  18.4  24.9  42.1 | FreeCP
SC-CLIP                 | B/16 |  64.6  36.8  37.7  84.3  41.0  40.1  20.1  26.6  43.9 | peer
RF-CLIP                 | B/16 |  64.8  36.4  37.9  87.0  41.3  39.8  20.4  26.3  44.2 | peer
RF-CLIP + PAMR          | B/16 |  67.2  37.9  39.1  87.0  43.0  41.4  21.0  27.5  45.5 | peer
CASS                    | B/16 |  65.8  36.7  37.8  87.8  39.4  40.2  20.4  26.7  44.4 | peer
CLIPer, whole image     | B/16 |  66.4  37.5  39.2  85.5  37.0  41.6  21.5  27.6  44.5 | CLIPer
CLIPer, sliding         | B/16 |  66.5  38.3  40.0  86.0  38.7  42.4  22.0  28.6  45.3 | CLIPer
Trident                 | B/16 |  67.1  38.6  41.1  84.5  42.9  42.2  21.9  28.3  45.8 | peer
DSLO O.P.               | B/16 |  66.9  37.6     ?     ?  41.7     ?  22.8  28.6  46.2 | notes
DSLO M.V.               | B/16 |  67.8  38.3     ?     ?  43.3     ?  23.0  28.9  46.9 | notes
CorrCLIP, SAM2          | B/16 |  74.8  44.2  43.7  88.8  49.4  48.8  26.9  31.6  51.0 | CorrCLIP
CorrCLIP, EoMT          | B/16 |  76.0  45.4  46.6  90.6  48.0  50.4  26.7  34.5  52.3 | CorrCLIP
CorrCLIP, EntitySeg     | B/16 |  76.2  45.7  44.5  89.6  51.6  50.7  28.6  32.4  52.4 | CorrCLIP
CorrCLIP, journal       | B/16 |  75.8  45.9  45.4  89.9  53.7  50.8  28.6  32.6  52.8 | CorrCLIP
CorrCLIPv2, COCO bank   | B/16 |  82.2  50.8  54.6  93.6  58.7  56.3  33.2  38.5  58.5 | CorrCLIP
PEARL                   | B/16 |  64.1  35.1  37.3  86.9  37.6  38.6  19.4  26.6  43.2 | peer
GLA-CLIP                | B/16 |  66.3  36.1  37.7     ?  40.8     ?  20.0     ?  44.0 | peer
S2C2Seg on SCLIP        | B/16 |     ?     ?     ?     ?     ?     ?     ?     ?  47.9 | peer
S2C2Seg on ProxyCLIP    | B/16 |  72.8     ?     ?     ?     ?     ?     ?     ?  49.1 | peer
S2C2Seg on CorrCLIP     | B/16 |     ?     ?     ?     ?     ?     ?     ?     ?  51.2 | peer
CCAR on ResCLIP         | B/16 |  63.2  37.1  38.3  86.5  40.6  40.0  20.6  27.0  44.2 | CCAR
DSLO O.P.               | L/14 |     ?     ?     ?     ?     ?     ?     ?     ?  47.2 | notes
DSLO M.V.               | L/14 |  68.9  38.7     ?     ?  43.9     ?  23.4  29.2  47.8 | notes
SC-CLIP                 | L/14 |  65.0  36.9     ?     ?  41.3     ?  21.7  26.9  45.2 | notes
CLIPer, whole image     | L/14 |  71.6  39.0  44.4  90.3  41.6  44.0  24.5  29.7  48.1 | CLIPer
CLIPer, sliding         | L/14 |     ?     ?     ?     ?     ?     ?     ?     ?  48.6 | CLIPer
CorrCLIP                | L/14 |     ?     ?     ?     ?     ?     ?     ?     ?  53.6 | CorrCLIP
Trident, headline       | ?    |     ?     ?     ?     ?     ?     ?     ?     ?  48.6 | peer
FSeg-LLaVA 1.5          | –    |  68.0  30.6  42.0     –     –     –  16.9  21.2     – | peer
SCLIP, rerun            | B/16 |     –     –     –  81.5     –  34.1  16.5  22.9     – | rerun
NACLIP, rerun           | B/16 |     –     –     –  83.0     –  38.4  19.1  26.0     – | rerun
ResCLIP, rerun          | B/16 |     –     –     –  82.3     –  36.9  18.1  23.6     – | rerun
ProxyCLIP, rerun        | B/16 |     –     –     –  80.3     –  39.3  19.6  26.7     – | rerun
SC-CLIP, rerun          | B/16 |     –     –     –  84.3     –  40.2  20.1  26.6     – | rerun
CASS, rerun             | B/16 |     –     –     –  87.7     –  40.3  20.3  26.7     – | rerun
Trident, rerun          | B/16 |     –     –     –  83.7     –  41.0  20.9  27.6     – | rerun
CorrCLIP, rerun         | B/16 |     –     –     –  88.8     –  48.7  27.0  32.2     – | rerun
FreeDA, rerun           | B/16 |     –     –     –  86.2     –  43.4  23.2  28.8     – | rerun
"""

SOURCES = {
    "notes": "secondary notes on the DSLO paper, whose tables could not be had",
    "peer": "secondary notes on the method's own paper, or a later paper that quotes it",
    "rerun": "the official code run again by a benchmark project of 2026",
    "here": "measured by experiments.eval",
}

_REMARKS = {
    "CLIP": "PC60, Object, VOC20 recalled; the average fits",
    "ProxyCLIP": "VOC20, PC59, Stuff recalled; the average fits",
    "Trident": "VOC20, PC59, Stuff recalled; the average fits",
    "Trident, headline": "of which CLIP is not stated",
    "CLIPer, whole image": "Object is 5,000 pictures of COCO 2014, not val2017",
    "CLIPer, sliding": "Object is 5,000 pictures of COCO 2014, not val2017",
    "DSLO O.P.": "optimal path; on L/14 derived: velocity is 0.6 above",
    "DSLO M.V.": "maximum velocity",
    "CorrCLIP, journal": "MetaCLIP and RADIOv3",
    "CorrCLIPv2, COCO bank": "MetaCLIP and RADIOv3",
    "PEARL": "Stuff derived from the average",
    "S2C2Seg on SCLIP": "uses CLIPSeg, a trained segmenter",
    "S2C2Seg on ProxyCLIP": "uses CLIPSeg, a trained segmenter",
    "S2C2Seg on CorrCLIP": "uses CLIPSeg, a trained segmenter",
    "FSeg-LLaVA 1.5": "LLaVA and SAM-H",
    "CCAR on ResCLIP": "picks heads on 10 % of the target's training split",
}


class Row(NamedTuple):
    """A line of the table: a method, its mIoU in percent by benchmark and their average.

    What is not known is missing from `miou`, or None; `scale` is that of CLIP, "B/16" or "L/14";
    `source` is one of `SOURCES`, or the repository in whose README the numbers are; `partial` names
    the datasets of which not all pictures were taken.
    """

    method: str
    scale: str
    miou: dict[str, float]
    average: float | None
    source: str
    remark: str = ""
    partial: frozenset[str] = frozenset()


def _row(line: str) -> Row:
    method, scale, cells, source = (part.strip() for part in line.split("|"))
    *values, average = (None if cell in "?–" else float(cell) for cell in cells.split())
    known = zip(BENCHMARKS, values, strict=True)
    return Row(
        method=method,
        scale=scale,
        miou={name: value for name, value in known if value is not None},
        average=average,
        source=source,
        remark=_REMARKS.get(method, ""),
    )


PUBLISHED = tuple(map(_row, _TABLE.strip().splitlines()[1:]))
