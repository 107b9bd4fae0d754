"""dsolo_jax: training-free open-vocabulary semantic segmentation in JAX."""

from dsolo_jax import attention, clip, metrics, solver, upsample, vocabulary
from dsolo_jax.pipeline import (
    PRESETS,
    Model,
    Picture,
    Result,
    load,
    prepare,
    segment,
    segment_batch,
)
from dsolo_jax.readings import METHODS, Readings

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "PRESETS",
    "Model",
    "Picture",
    "Readings",
    "Result",
    "attention",
    "clip",
    "load",
    "metrics",
    "prepare",
    "segment",
    "segment_batch",
    "solver",
    "upsample",
    "vocabulary",
]
