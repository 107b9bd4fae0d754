"""DINO's parameters, read from the layout of transformers' ViTModel and Dinov2Model."""

import os

from jax.typing import DTypeLike

from dsolo_jax import checkpoints, hub
from dsolo_jax.attention.dino import tower
from dsolo_jax.attention.dino.config import DinoConfig, read_config
from dsolo_jax.checkpoints import Params, Row, convolution, norm, rows

FILES = ("config.json", *checkpoints.weight_files())

_SHARED = (
    Row("embeddings.cls_token", "class_token"),
    Row("embeddings.register_tokens", "register_tokens"),
    Row("embeddings.position_embeddings", "positions"),
    Row("embeddings.patch_embeddings.projection.weight", "patch_kernel", convolution),
    Row("embeddings.patch_embeddings.projection.bias", "patch_bias"),
    Row("encoder.layer.{i}.layer_scale1.lambda1", "blocks_{i}/scale1"),
    Row("encoder.layer.{i}.layer_scale2.lambda1", "blocks_{i}/scale2"),
    *norm("layernorm", "norm_post"),
)
_ATTENTION = {
    "attention.attention.query": "query",
    "attention.attention.key": "key",
    "attention.attention.value": "value",
    "attention.output.dense": "out",
}
# By the way in and out of the MLP; each kind of tower has names of its own.
_NAMES = {
    "vit": {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    | {"intermediate.dense": "expand", "output.dense": "contract"},
    "gelu": {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "expand", "mlp.fc2": "contract"},
    "swiglu": {"norm1": "norm1", "norm2": "norm2"}
    | {"mlp.weights_in": "expand", "mlp.weights_out": "contract"},
}

# The pooler belongs to a classifier; masks are drawn in training only.
IGNORE = ("pooler.*", "embeddings.mask_token")


def table(config: DinoConfig) -> tuple[Row, ...]:
    """Gives the conversion table of one kind of tower."""
    dinov2 = "swiglu" if config.hidden_act == "swiglu" else "gelu"
    names = _NAMES["vit" if config.model_type == "vit" else dinov2]
    return (*_SHARED, *rows("encoder.layer.{i}", "blocks_{i}", _ATTENTION | names))


def settings(source: str | os.PathLike) -> DinoConfig:
    """Reads the config of a checkpoint, without its weights; see `load`."""
    return read_config(hub.folder(source, ("config.json",)))


def load(source: str | os.PathLike, dtype: DTypeLike | None = None) -> tuple[DinoConfig, Params]:
    """Loads config and parameters of a DINO, DINOv2 or DINOv2-with-registers checkpoint.

    Args:
        source: a folder in the layout of transformers' ViTModel, Dinov2Model or
            Dinov2WithRegistersModel, or a hub id, e.g. "facebook/dinov2-base".
        dtype: of the weights, and so of the activations; float32 if None, whatever the file holds.

    Raises:
        OSError: no such checkpoint, or a file of it is missing (see `checkpoints`).
        ValueError: another model's, of another architecture than its config says, or damaged.
    """
    config, directory = settings(source), hub.folder(source, FILES)
    shapes = tower.parameter_shapes(config)
    return config, checkpoints.load(directory, table(config), shapes, dtype, ignore=IGNORE)
