"""Where the patch graph comes from: each source gives A [N, N] on an r x r grid, rows sum to 1."""

from dsolo_jax.attention import appearance, clip, dino, stable_diffusion
from dsolo_jax.attention.sources import SOURCES, Source, graph, layer_names, load
from dsolo_jax.resample import resample_attention, resample_maps

__all__ = [
    "SOURCES",
    "Source",
    "appearance",
    "clip",
    "dino",
    "graph",
    "layer_names",
    "load",
    "resample_attention",
    "resample_maps",
    "stable_diffusion",
]
