"""Refinement around the solver: weak patches suppressed before it, scores upsampled after it."""

from dsolo_jax.refine.bilateral import FORMS, joint_bilateral_upsample, upsample_labels
from dsolo_jax.refine.suppression import RULES, suppress

__all__ = ["FORMS", "RULES", "joint_bilateral_upsample", "suppress", "upsample_labels"]
