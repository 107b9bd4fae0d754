"""dsolo_jax: training-free open-vocabulary semantic segmentation in JAX."""

from dsolo_jax import attention, clip, export, metrics, pipeline, solver, upsample, vocabulary
from dsolo_jax.model import PRESETS, Model, load
from dsolo_jax.pipeline import Encoded, encode, segment
from dsolo_jax.readings import Readings
from dsolo_jax.results import Result
from dsolo_jax.solver.discrepancy import METHODS, discrepancy

__version__ = "0.2.0"

__all__ = [
    "METHODS",
    "PRESETS",
    "Encoded",
    "Model",
    "Readings",
    "Result",
    "attention",
    "clip",
    "discrepancy",
    "encode",
    "export",
    "load",
    "metrics",
    "pipeline",
    "segment",
    "solver",
    "upsample",
    "vocabulary",
]
