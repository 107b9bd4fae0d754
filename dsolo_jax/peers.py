"""The field's training-free methods by the same pieces as ours, and how each of them is run.

A peer is a start (what CLIP's last block does), a graph or none, a method of `dsolo.METHODS`,
readings, and changes to a benchmark's protocol. Nothing of it has a route of its own, so what a
peer does beyond these pieces is left out, and said at its place in `PEERS`.

Not here are SC-CLIP and ResCLIP: their last layer is no function of its own q, k and v alone. They
mix in maps or features of earlier layers, and ResCLIP those of a second pass.
"""

import dataclasses
from typing import Any, NamedTuple

from dsolo_jax.datasets.protocols import PROTOCOLS
from dsolo_jax.readings import Readings
from dsolo_jax.utils.checks import choose

Changes = dict[str, Any]


class Peer(NamedTuple):
    """A method of the field.

    readings: its own; with presence 0, as presence is ours.
    method: of `dsolo.METHODS`.
    attention: the source of its graph; "clip", of which nothing is asked, where it has none.
    kind: of that source, whose layers these are.
    layers: of the source; empty for the source's own.
    size: side of the square that the source sees, pixels; None for the source's own.
    grid: side of the solver's grid; None for the graph's own.
    scales: of CLIP, those with which the peer published.
    """

    readings: Readings
    method: str = "logits"
    attention: str = "clip"
    kind: str = "clip"
    layers: tuple[str, ...] = ()
    size: int | None = None
    grid: int | None = None
    scales: tuple[str, ...] = ("b16",)


def _readings(start: str, upsample: str = "bilinear") -> Readings:
    return dataclasses.replace(Readings(), start=start, presence=0.0, upsample=upsample)


# Cosines lie on CLIP's own grid; this one is finer than any that is used.
_FINE = 64
_BOTH = ("b16", "l14")

PEERS = {
    # Without the residual sum and the MLP, as the field's table of starts has it; MaskCLIP's own
    # code keeps both, by the copies of it in other repositories.
    "maskclip": Peer(_readings("maskclip"), grid=_FINE),
    "sclip": Peer(_readings("sclip"), grid=_FINE),
    "clearclip": Peer(_readings("clearclip"), grid=_FINE, scales=_BOTH),
    # PAMR is its repository's default; its paper has numbers without, too ("upsample=bilinear").
    "naclip": Peer(_readings("naclip", "pamr"), grid=_FINE),
    # DINO B/8 sees windows of 336 pixels as they are; Cityscapes' of 224 ours enlarges.
    "proxyclip": Peer(
        _readings("proxyclip"),
        attention="facebook/dino-vitb8",
        kind="dino",
        layers=("affinity",),
        size=336,
        scales=_BOTH,
    ),
    # Its CLIP mixes the values by the mean of all earlier blocks' attention, and averages the
    # probabilities of the features of all blocks: no start of ours. The nearest is clearclip, which
    # stands in for it. It propagates probabilities; ours are cosines. Its latent has noise.
    "cliper": Peer(
        _readings("clearclip"),
        method="logits_propagate",
        attention="sd2",
        kind="stable_diffusion",
        layers=("cliper",),
        size=512,
        scales=_BOTH,
    ),
    # CLIP-DINOiser, on which it is built, has the weights of LAION-2B; ours are OpenAI's, as for
    # every peer. Its DINO sees the picture with a short side of 448 pixels, ours squeezed to
    # 448 x 448.
    "lposs": Peer(
        _readings("maskclip_residual"),
        method="label_propagation",
        attention="dino",
        kind="dino",
        layers=("neighbours",),
        size=448,
    ),
}


def _threshold(probability: float, **others: Any) -> Changes:
    return {"background_rule": "threshold", "probability_threshold": probability, **others}


_WORDS: Changes = {"background_rule": "words"}

# The words that SCLIP, NACLIP and LPOSS have for the background of VOC, and LPOSS for COCO's.
_OF_VOC = (
    "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, "
    "lamp, door, window, wardrobe, ceiling, shelf, curtain, stair, floor, hill, rail, fence"
)
_OF_COCO = (
    "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, "
    "floor, hill, rail"
)

_USUAL = ""  # what holds for every benchmark that does not say otherwise

# github.com/wangf3014/SCLIP: clip_segmentor.py, configs/cfg_*.py
_SCLIP = {
    _USUAL: {"short_side": 336, "crop": 224, "stride": 112, "vocabulary": "naclip"},
    "voc21": _threshold(0.1, logit_scale=65.0, area_threshold=0.1),
    "context60": _threshold(0.1, logit_scale=50.0),
    "coco_object": _threshold(0.1, logit_scale=50.0),
    "coco_stuff": {"short_side": 448},
    "cityscapes": {"short_side": 560},
}

# How each peer runs the benchmarks, as changes to the fields of their protocols. What is not named
# is the benchmark's own; without a crop the picture is taken whole.
PUBLISHED: dict[str, dict[str, Changes]] = {
    # Its own protocol was not read. This is the one by which later papers run it again, as far as
    # it is known: SCLIP's without the area threshold.
    "maskclip": _SCLIP | {"voc21": _threshold(0.1, logit_scale=65.0)},
    "sclip": _SCLIP,
    # github.com/mc-lan/ClearCLIP: clearclip_segmentor.py, configs/cfg_*.py, cls_voc21.txt. Its
    # files for COCO-Stuff and ADE20K, and its other lists of names, could not be had.
    "clearclip": {
        _USUAL: {"short_side": 448, "crop": 448, "stride": 224},
        "voc21": _threshold(
            0.5, logit_scale=50.0, vocabulary="proxyclip", background_words="background"
        ),
        "context60": _threshold(0.15, logit_scale=50.0),
        "coco_object": _threshold(0.4, logit_scale=50.0),
        "cityscapes": {"crop": 224},
    },
    # github.com/sinahmr/NACLIP: naclip.py, configs/cfg_*.py of commit defb7c9 (earlier ones have
    # windows on VOC too, and 448 pixels for COCO-Stuff).
    "naclip": {
        _USUAL: {"short_side": 336, "crop": 224, "stride": 112, "vocabulary": "naclip"},
        "voc21": _threshold(0.1, logit_scale=40.0, crop=None, stride=None),
        "voc20": {"crop": None, "stride": None},
        "context60": _threshold(0.1, logit_scale=40.0),
        "coco_object": _threshold(0.1, logit_scale=40.0),
        "cityscapes": {"short_side": 560},
    },
    # github.com/mc-lan/ProxyCLIP: proxyclip_segmentor.py, configs/cfg_*.py. Those of VOC20 and
    # Context59 could not be had; 336 pixels are from secondary notes on its code.
    "proxyclip": {
        _USUAL: {"short_side": 336, "crop": 336, "stride": 112, "vocabulary": "proxyclip"},
        "voc21": _threshold(0.2, logit_scale=40.0),
        "context60": _threshold(0.15, logit_scale=40.0),
        "coco_object": _threshold(0.25, logit_scale=40.0),
        "cityscapes": {"short_side": 448, "crop": 224},
        "ade20k": {"short_side": 448},
    },
    # github.com/linsun449/cliper.code: util/args.py, scripts/config/vit-b-16/*.yaml. Its thresholds
    # are on classes of a picture and on maps over their largest value, which no rule of ours is;
    # its lists of names are not ours either. Its Object is COCO 2014, its VOC21 the augmented set.
    "cliper": {
        _USUAL: {"short_side": 336},
        "voc21": _WORDS,
        "context60": _WORDS,
        "coco_object": _WORDS,
        "cityscapes": {"short_side": 560},
    },
    # github.com/vladan-stojnic/LPOSS: segmentation/configs/_base_/datasets/*.py, segmentation/
    # datasets/*.py. It encodes windows of 224 pixels, stride 112, and joins all of them in one
    # graph over the whole picture. Windows that go through ours by themselves would cut that graph,
    # so the picture is taken whole. Its names are the official ones, written with spaces.
    "lposs": {
        _USUAL: {"short_side": 448, "vocabulary": "plain"},
        "voc21": _WORDS | {"background_words": _OF_VOC},
        "context60": _WORDS,
        "coco_object": _WORDS | {"background_words": _OF_COCO},
    },
}


def published(
    peer: str, dataset: str, *, short_side: int | None = None, patch: int = 16
) -> Changes:
    """Gives the changes to a dataset's protocol by which the peer ran it.

    For a dataset that none of them ran, a folder or the miniature world, these are windows alone:
    the peer's usual crop and stride as shares of its short side, rounded to CLIP's patch.

    Args:
        peer: of `PEERS`.
        dataset: of `datasets.PROTOCOLS`.
        short_side: of such a dataset's pictures in CLIP; the protocol's if None.
        patch: of CLIP, pixels.

    Returns:
        Fields of `datasets.Protocol` and their values.

    Raises:
        ValueError: an unknown peer or dataset.

    >>> published("proxyclip", "cityscapes")["crop"]
    224
    >>> published("sclip", "miniature", short_side=112)
    {'crop': 80, 'stride': 32}
    """
    table = PUBLISHED[choose("peer", peer, PEERS)]
    choose("dataset", dataset, PROTOCOLS)
    usual = table[_USUAL]
    if dataset not in _UNPUBLISHED:
        return {
            field: value
            for field, value in (usual | table.get(dataset, {})).items()
            if value is not None
        }
    side = short_side or PROTOCOLS[dataset].short_side
    shares = {field: usual[field] / usual["short_side"] for field in _WINDOW if field in usual}
    return {field: max(round(x * side / patch), 1) * patch for field, x in shares.items()}


_UNPUBLISHED = ("miniature", "folder")
_WINDOW = ("crop", "stride")
