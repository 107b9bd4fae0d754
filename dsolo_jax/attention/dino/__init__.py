"""DINO's image towers as a source of patch-to-patch attention."""

from dsolo_jax.attention.dino.config import DINO_B16, DINOV2_B14, DinoConfig
from dsolo_jax.attention.dino.model import (
    MEAN,
    STD,
    layer_names,
    patch_features,
    self_attention,
)
from dsolo_jax.attention.dino.weights import load

__all__ = [
    "DINOV2_B14",
    "DINO_B16",
    "MEAN",
    "STD",
    "DinoConfig",
    "layer_names",
    "load",
    "patch_features",
    "self_attention",
]
