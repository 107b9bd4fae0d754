"""Scores of the patches to scores and labels of the pixels, guided by the picture's colours."""

from dsolo_jax.upsample.strips import joint_bilateral, labels, scores
from dsolo_jax.upsample.weights import FORMS

__all__ = ["FORMS", "joint_bilateral", "labels", "scores"]
