"""Scores of the patches to scores and labels of the pixels, guided by the picture's colours."""

from dsolo_jax.upsample.batches import batch_labels, takes
from dsolo_jax.upsample.strips import FORMS, areas, joint_bilateral, labels, scores

__all__ = ["FORMS", "areas", "batch_labels", "joint_bilateral", "labels", "scores", "takes"]
