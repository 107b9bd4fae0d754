"""The benchmarks' official layouts, written small: label maps of class indices become the files
that the authors of each benchmark would have published, by codings written out here anew."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

IGNORE = 255

# COCO's category ids of its 80 things (instances_val2017.json); the files hold them less 1.
COCO_THINGS = [
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83),
    *range(84, 91),
]  # fmt: skip
COCO_IDS = [id - 1 for id in COCO_THINGS] + [*range(91, 182)]

# Cityscapes' label ids in order of train ids: road, sidewalk, building, ..., bicycle.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]

# Numbers of the 59 classes among PASCAL Context's 459 labels, unordered as mmsegmentation has them.
CONTEXT_NUMBERS = [
    2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162, 420,
    454, 295, 296, 427, 44, 45, 46, 308, 59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34,
    207, 80, 355, 85, 347, 220, 349, 360, 98, 187, 104, 105, 366, 189, 368, 113, 115,
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
    """One official way of laying out a benchmark.

    Attributes:
        benchmark: its name here.
        image, labels: path of an example's files below the root, with "{}" for its id.
        ids: of three examples, in order.
        stored: the value the files hold for each class index.
        ignored: the value for pixels without a class; None where there is no such value.
        truth_of_ignored: what the benchmark makes of those.
        list: path of the file that lists the ids, if there is one.
        at: folder below the root that is given as source.
        flag: --labels of experiments.prepare.
    """

    benchmark: str
    image: str
    labels: str
    ids: tuple[str, ...]
    stored: list[int]
    ignored: int
    truth_of_ignored: int = IGNORE
    list: str | None = None
    at: str = "."
    flag: str | None = None


_VOC_IDS = ("2007_000033", "2008_000042", "2011_003256")
_COCO_IDS = ("000000000139", "000000039769", "000000581781")
_CITY_IDS = (
    "frankfurt_000000_000294",
    "lindau_000001_000019",
    "munster_000173_000019",
)


def _voc(benchmark, at=".", root="VOCdevkit/VOC2012", labels="SegmentationClass", flag=None):
    return Layout(
        benchmark,
        f"{root}/JPEGImages/{{}}.jpg",
        f"{root}/{labels}/{{}}.png",
        _VOC_IDS,
        [*range(21)] if benchmark == "voc21" else [*range(1, 21)],
        255 if benchmark == "voc21" else 0,
        list=f"{root}/ImageSets/Segmentation/val.txt",
        at=at,
        flag=flag,
    )


def _context(benchmark, labels, numbers, ids, at="."):
    root = "VOCdevkit/VOC2010"
    with_background = benchmark == "context60"
    return Layout(
        benchmark,
        f"{root}/JPEGImages/{{}}.jpg",
        f"{root}/{labels}",
        _VOC_IDS,
        [0, *numbers] if with_background else numbers,
        # 459 labels: 430 is none of the 59.
        (430 if ".mat" in labels else 0),
        truth_of_ignored=0 if with_background else IGNORE,
        list=f"{root}/ImageSets/{ids}/val.txt",
        at=at,
    )


def _coco(benchmark, image, labels, stored, ignored=255):
    object = benchmark == "coco_object"
    return Layout(benchmark, image, labels, _COCO_IDS, stored, ignored, 0 if object else IGNORE)


_COCO_UNPACKED = ("val2017/{}.jpg", "stuffthingmaps_trainval2017/val2017/{}.png")
_COCO_MMSEG = ("images/val2017/{}.jpg", "annotations/val2017/{}")
_DETAIL = ("trainval/{}.mat", sorted(CONTEXT_NUMBERS), "Main")
_MMSEG_CONTEXT = ("SegmentationClassContext/{}.png", [*range(1, 60)], "SegmentationContext")
# The object benchmark's background, class 0, is stored as any stuff, such as 181 (wood).
_OBJECT = [181, *COCO_IDS[:80]]


def _cityscapes(labels, stored, folders=("", "")):
    image, gt = folders
    return Layout(
        "cityscapes",
        f"{image}leftImg8bit/val/{{city}}/{{}}_leftImg8bit.png",
        f"{gt}gtFine/val/{{city}}/{{}}_gtFine_{labels}.png",
        _CITY_IDS,
        stored,
        3 if labels == "labelIds" else 255,  # 3: out of roi
    )


LAYOUTS = {
    "voc21 unpacked": _voc("voc21", at="VOCdevkit"),
    "voc21 itself": _voc("voc21", at="VOCdevkit/VOC2012"),
    "voc21 augmented": _voc("voc21", labels="SegmentationClassAug", flag="SegmentationClassAug"),
    "voc20": _voc("voc20"),
    "context60 mmsegmentation": _context("context60", *_MMSEG_CONTEXT, at="VOCdevkit"),
    "context60 original": _context("context60", *_DETAIL, at="VOCdevkit/VOC2010"),
    "context59 mmsegmentation": _context("context59", *_MMSEG_CONTEXT),
    "context59 original": _context("context59", *_DETAIL),
    "coco_object unpacked": _coco("coco_object", *_COCO_UNPACKED, _OBJECT),
    "coco_object in one folder": _coco("coco_object", "val2017/{}.jpg", "val2017/{}.png", _OBJECT),
    "coco_object labelTrainIds": _coco(
        "coco_object",
        _COCO_MMSEG[0],
        _COCO_MMSEG[1] + "_labelTrainIds.png",
        [170, *range(80)],
    ),
    "coco_object converted": _coco(
        "coco_object",
        _COCO_MMSEG[0],
        _COCO_MMSEG[1] + "_instanceTrainIds.png",
        [*range(81)],
        ignored=0,
    ),
    "coco_stuff unpacked": _coco("coco_stuff", *_COCO_UNPACKED, COCO_IDS),
    "coco_stuff mmsegmentation": _coco(
        "coco_stuff", _COCO_MMSEG[0], _COCO_MMSEG[1] + "_labelTrainIds.png", [*range(171)]
    ),
    "cityscapes unpacked": _cityscapes("labelIds", CITYSCAPES_IDS),
    "cityscapes in two folders": _cityscapes(
        "labelIds", CITYSCAPES_IDS, ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/")
    ),
    "cityscapes mmsegmentation": _cityscapes("labelTrainIds", [*range(19)]),
    "ade20k": Layout(
        "ade20k",
        "ADEChallengeData2016/images/validation/{}.jpg",
        "ADEChallengeData2016/annotations/validation/{}.png",
        tuple(f"ADE_val_{i:08d}" for i in (1, 2, 3)),
        [*range(1, 151)],
        0,
    ),
}


def write(layout: Layout, root: Path, maps: list[np.ndarray]) -> None:
    """Writes one picture for each label map [H, W] of class indices or `IGNORE`."""
    lookup = np.full(256, layout.ignored, np.uint16)
    lookup[: len(layout.stored)] = layout.stored
    for number, (id, labels) in enumerate(zip(layout.ids, maps, strict=False)):
        city = id.split("_")[0]
        image, map_path = (
            root / path.format(id, city=city) for path in (layout.image, layout.labels)
        )
        image.parent.mkdir(parents=True, exist_ok=True)
        map_path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(number).integers(0, 256, (*labels.shape, 3), np.uint8)
        Image.fromarray(picture).save(image)
        stored = lookup[labels]
        if map_path.suffix == ".mat":
            savemat(map_path, {"LabelMap": stored})
        else:
            Image.fromarray(stored.astype(np.uint8)).save(map_path)
    if layout.list:
        path = root / layout.list
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{id}\n" for id, _ in zip(layout.ids, maps, strict=False)))
