"""Stable Diffusion's self-attention as a source of patch-to-patch attention."""

from dsolo_jax.attention.stable_diffusion.config import SD1, SD2, StableDiffusionConfig
from dsolo_jax.attention.stable_diffusion.maps import (
    LAYERS,
    encode,
    layer_names,
    self_attention,
    squares,
)
from dsolo_jax.attention.stable_diffusion.weights import HUB_IDS, load, settings

__all__ = [
    "HUB_IDS",
    "LAYERS",
    "SD1",
    "SD2",
    "StableDiffusionConfig",
    "encode",
    "layer_names",
    "load",
    "self_attention",
    "settings",
    "squares",
]
