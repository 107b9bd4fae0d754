"""Refinement around the solver: weak patches suppressed before it, scores upsampled after it."""

from dsolo_jax.refine.bilateral import (
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
from dsolo_jax.refine.suppression import RULES, suppress

__all__ = [
    "FORMS",
    "RULES",
    "Strip",
    "idle_strip",
    "joint_bilateral_upsample",
    "strip_labels",
    "strip_length",
    "strip_scores",
    "strips",
    "suppress",
    "tile_pixels",
    "upsample_labels",
]
