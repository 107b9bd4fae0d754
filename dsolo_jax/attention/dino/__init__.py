"""DINO's image towers as a source of patch-to-patch attention."""

from dsolo_jax.attention.dino.config import DINO_B16, DINOV2_B14, DinoConfig
from dsolo_jax.attention.dino.tower import LAYERS, layer_names, self_attention, squares
from dsolo_jax.attention.dino.weights import load, settings

__all__ = [
    "DINOV2_B14",
    "DINO_B16",
    "LAYERS",
    "DinoConfig",
    "layer_names",
    "load",
    "self_attention",
    "settings",
    "squares",
]
