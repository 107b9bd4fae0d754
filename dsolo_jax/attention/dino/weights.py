"""DINO's parameters, read from the layout of transformers' ViTModel and Dinov2Model."""

import os

from jax.typing import DTypeLike

from dsolo_jax import checkpoints, hub
from dsolo_jax.attention.dino import tower
from dsolo_jax.attention.dino.config import DinoConfig, read_config
from dsolo_jax.checkpoints import Params, Row, convolution, layer, norm

FILES = ("config.json", *checkpoints.weight_files())

_SOURCE, _TARGET = "encoder.layer.{i}", "blocks_{i}"


def _dense(source: str, target: str) -> tuple[Row, ...]:
    return layer(f"{_SOURCE}.{source}", f"{_TARGET}/{target}")


_SHARED = (
    Row("embeddings.cls_token", "class_token"),
    Row("embeddings.register_tokens", "register_tokens"),
    Row("embeddings.position_embeddings", "positions"),
    Row("embeddings.patch_embeddings.projection.weight", "patch_kernel", convolution),
    Row("embeddings.patch_embeddings.projection.bias", "patch_bias"),
    *_dense("attention.attention.query", "query"),
    *_dense("attention.attention.key", "key"),
    *_dense("attention.attention.value", "value"),
    *_dense("attention.output.dense", "out"),
    *norm("layernorm", "norm_post"),
)

_DINO = (
    *_SHARED,
    *norm(f"{_SOURCE}.layernorm_before", f"{_TARGET}/norm1"),
    *norm(f"{_SOURCE}.layernorm_after", f"{_TARGET}/norm2"),
    *_dense("intermediate.dense", "expand"),
    *_dense("output.dense", "contract"),
)

_DINOV2 = (
    *_SHARED,
    *norm(f"{_SOURCE}.norm1", f"{_TARGET}/norm1"),
    *norm(f"{_SOURCE}.norm2", f"{_TARGET}/norm2"),
    Row(f"{_SOURCE}.layer_scale1.lambda1", f"{_TARGET}/scale1"),
    Row(f"{_SOURCE}.layer_scale2.lambda1", f"{_TARGET}/scale2"),
)

_MLP = (*_dense("mlp.fc1", "expand"), *_dense("mlp.fc2", "contract"))
_SWIGLU = (*_dense("mlp.weights_in", "expand"), *_dense("mlp.weights_out", "contract"))

# The pooler belongs to a classifier; masks are drawn in training only.
IGNORE = ("pooler.*", "embeddings.mask_token")


def table(config: DinoConfig) -> tuple[Row, ...]:
    """Gives the conversion table of one kind of tower."""
    if config.model_type == "vit":
        return _DINO
    return (*_DINOV2, *(_SWIGLU if config.hidden_act == "swiglu" else _MLP))


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
