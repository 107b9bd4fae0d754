"""Stable Diffusion's self-attention as a source of patch-to-patch attention."""

from dsolo_jax.attention.stable_diffusion.config import SD1, SD2, StableDiffusionConfig
from dsolo_jax.attention.stable_diffusion.model import (
    at_timestep,
    encode,
    layer_names,
    pixels_per_patch,
    self_attention,
    size_multiple,
)
from dsolo_jax.attention.stable_diffusion.weights import HUB_IDS, load

__all__ = [
    "HUB_IDS",
    "SD1",
    "SD2",
    "StableDiffusionConfig",
    "at_timestep",
    "encode",
    "layer_names",
    "load",
    "pixels_per_patch",
    "self_attention",
    "size_multiple",
]
