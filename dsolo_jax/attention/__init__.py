"""Where the patch graph comes from: each source gives A [N, N] on an r x r grid, rows sum to 1."""

from dsolo_jax.attention.grid import resample_attention, resample_maps

SOURCES = ("clip",)

__all__ = ["SOURCES", "resample_attention", "resample_maps"]
