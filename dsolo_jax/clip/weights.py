"""CLIP's parameters: read from, and written to, the layout of transformers' CLIPModel."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax import checkpoints, hub
from dsolo_jax.assets import bundled
from dsolo_jax.checkpoints import Params, Row, convolution, linear, norm, rows
from dsolo_jax.clip import towers
from dsolo_jax.clip.config import (
    PREPROCESSOR,
    ClipConfig,
    config_json,
    preprocessor_json,
    read_config,
)
from dsolo_jax.utils.files import write_json

FILES = ("config.json", PREPROCESSOR, *checkpoints.weight_files())

_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "mlp.fc1": "expand",
    "mlp.fc2": "contract",
}

TABLE = (
    Row("vision_model.embeddings.class_embedding", "vision/class_embedding"),
    Row("vision_model.embeddings.patch_embedding.weight", "vision/patch_kernel", convolution),
    Row("vision_model.embeddings.position_embedding.weight", "vision/positions"),
    *norm("vision_model.pre_layrnorm", "vision/norm_pre"),
    *rows("vision_model.encoder.layers.{i}", "vision/blocks_{i}", _BLOCK),
    *norm("vision_model.post_layernorm", "vision/norm_post"),
    Row("visual_projection.weight", "vision/projection/kernel", linear),
    Row("text_model.embeddings.token_embedding.weight", "text/tokens"),
    Row("text_model.embeddings.position_embedding.weight", "text/positions"),
    *rows("text_model.encoder.layers.{i}", "text/blocks_{i}", _BLOCK),
    *norm("text_model.final_layer_norm", "text/norm_post"),
    Row("text_projection.weight", "text/projection/kernel", linear),
    Row("logit_scale", "logit_scale"),
)

# The text tower alone, in its own tree. transformers 5 leaves out the prefix of CLIPTextModel.
TEXT_TABLE = tuple(
    Row(row.source.removeprefix(prefix), row.target.removeprefix("text/"), row.transform)
    for prefix in ("", "text_model.")
    for row in TABLE
    if row.target.startswith("text/")
)

# Counters 0, 1, 2, ... that older files hold beside the weights.
IGNORE = ("*.position_ids",)


def load(source: str | os.PathLike, dtype: DTypeLike | None = None) -> tuple[ClipConfig, Params]:
    """Loads config and parameters of a CLIP checkpoint.

    Args:
        source: a folder in the layout of transformers' CLIPModel, a hub id, "miniature" or
            "miniature_dense".
        dtype: of the weights, and so of the activations; float32 if None, whatever the file holds.

    Raises:
        OSError: no such checkpoint, or a file of it is missing (see `checkpoints`).
        ValueError: another model's, of another architecture than its config says, or damaged.
    """
    directory = hub.folder(bundled(source, "clip"), FILES)
    config = read_config(directory)
    shapes = towers.parameter_shapes(config)
    return config, checkpoints.load(directory, TABLE, shapes, dtype, ignore=IGNORE)


def save(directory: str | os.PathLike, config: ClipConfig, params: Params) -> None:
    """Writes config, preprocessor_config and weights, which transformers' CLIPModel loads."""
    directory = Path(directory)
    checkpoints.write_tensors(directory / "model.safetensors", checkpoints.export(params, TABLE))
    write_json(directory / PREPROCESSOR, preprocessor_json(config))
    write_json(directory / "config.json", config_json(config))


def init(config: ClipConfig, key: jax.Array) -> Params:
    """Draws parameters: kernels of variance 1 / fan-in, so that no layer dies or explodes."""
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path == "logit_scale":
            return jnp.asarray(math.log(1 / 0.07), jnp.float32)
        if path.endswith(("bias", "scale")):
            return jnp.full(shape, float(path.endswith("scale")), jnp.float32)
        fan_in = math.prod(shape[:-1]) if path.endswith("kernel") else 1
        return jnp.asarray(random.standard_normal(shape, np.float32) / math.sqrt(fan_in))

    shapes = checkpoints.flatten(towers.parameter_shapes(config))
    return checkpoints.unflatten({path: leaf(path, s.shape) for path, s in shapes.items()})
