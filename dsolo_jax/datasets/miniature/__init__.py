"""A small drawn world: textured stuff and things with exact labels, and sentences about them."""

from dsolo_jax.datasets.miniature.captions import captions
from dsolo_jax.datasets.miniature.dataset import COUNTS, NAME, load, prepare
from dsolo_jax.datasets.miniature.scenes import SPLITS, Item, Scene, draw
from dsolo_jax.datasets.miniature.words import CLASSES, NUM_STUFF

__all__ = [
    "CLASSES",
    "COUNTS",
    "NAME",
    "NUM_STUFF",
    "SPLITS",
    "Item",
    "Scene",
    "captions",
    "draw",
    "load",
    "prepare",
]
