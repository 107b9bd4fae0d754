"""dsolo_jax: training-free open-vocabulary semantic segmentation in JAX."""

__version__ = "0.1.0"
