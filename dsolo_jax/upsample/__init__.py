"""Scores of the patches to scores and labels of the pixels, guided by the picture's colours."""

from dsolo_jax.upsample.bilateral import (
    FORMS,
    Strip,
    idle_strip,
    joint_bilateral_upsample,
    strip_labels,
    strip_length,
    strip_scores,
    strips,
    tile_pixels,
    upsample_labels,
)

__all__ = [
    "FORMS",
    "Strip",
    "idle_strip",
    "joint_bilateral_upsample",
    "strip_labels",
    "strip_length",
    "strip_scores",
    "strips",
    "tile_pixels",
    "upsample_labels",
]
