"""Stable Diffusion's sizes, by the names and defaults of diffusers' own config.json files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsolo_jax.clip.config import TextConfig, read_text_config
from dsolo_jax.utils.configs import read_json, require, section

_COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer")

ATTENDING_DOWN, ATTENDING_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_DOWN_BLOCKS, _UP_BLOCKS = (ATTENDING_DOWN, "DownBlock2D"), (ATTENDING_UP, "UpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The denoiser.

    num_heads: of each resolution; what diffusers calls attention_head_dim, a misnomer that its
        checkpoints have to keep (diffusers issue 2011).
    sample_size: side of the latents that it was trained on.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*(ATTENDING_DOWN,) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *(ATTENDING_UP,) * 3)
    layers_per_block: int = 2
    num_heads: tuple[int, ...] = dataclasses.field(
        default=(8, 8, 8, 8), metadata={"key": "attention_head_dim"}
    )
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int = 64


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The autoencoder, of which the encoder is used."""

    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True


@dataclasses.dataclass(frozen=True)
class StableDiffusionConfig:
    """What of a pipeline is used."""

    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig


_VAE = VAEConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)

SD1 = StableDiffusionConfig(
    UNetConfig(cross_attention_dim=768),
    _VAE,
    TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2),
)
SD2 = StableDiffusionConfig(
    UNetConfig(num_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True),
    _VAE,
    TextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
        eos_token_id=2,
    ),
)

# The values of keys that the modules here implement.
_UNET_SUPPORTED = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu",),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "transformer_layers_per_block": (1,),
    # Of num_attention_heads diffusers too wants none.
    **dict.fromkeys(
        "addition_embed_type class_embed_type cross_attention_norm encoder_hid_dim "
        "encoder_hid_dim_type num_attention_heads num_class_embeds time_cond_proj_dim "
        "time_embedding_act_fn time_embedding_dim timestep_post_act".split(),
        (None,),
    ),
}
_VAE_SUPPORTED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu",),
    "in_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
}


def read_config(directory: Path) -> StableDiffusionConfig:
    """The config of a checkpoint in the layout of diffusers' StableDiffusionPipeline; ValueError if
    it is another pipeline's (XL, 3, inpainting, ...), or a key has an unusable value."""
    _check_components(directory)
    unet = _read_unet(directory / "unet" / "config.json")
    vae = _read_vae(directory / "vae" / "config.json")
    text = read_text_config(directory / "text_encoder")
    if unet.in_channels != vae.latent_channels or unet.cross_attention_dim != text.hidden_size:
        raise ValueError(
            f"{directory}: the UNet takes {unet.in_channels} channels and a prompt of width "
            f"{unet.cross_attention_dim}, but the VAE gives {vae.latent_channels} and the text "
            f"encoder {text.hidden_size}: an inpainting, depth or upscaling checkpoint, or parts "
            "of different ones; give a text-to-image checkpoint"
        )
    return StableDiffusionConfig(unet, vae, text)


def _check_components(directory: Path) -> None:
    path = directory / "model_index.json"
    content = read_json(path)
    # A component is a pair (library, class), of nulls where it is left out.
    there = [key for key, value in content.items() if isinstance(value, list) and any(value)]
    if not set(_COMPONENTS).issubset(there) or "text_encoder_2" in there:
        raise ValueError(
            f"{path}: a {content.get('_class_name')} of {', '.join(there)}; wanted "
            f"Stable Diffusion 1.x or 2.x, of {', '.join(_COMPONENTS)}"
        )
    missing = [name for name in _COMPONENTS if not (directory / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{directory} holds no {' and no '.join(missing)}, which its {path.name} names; "
            "fetch the checkpoint again"
        )


def _read_unet(path: Path) -> UNetConfig:
    content = read_json(path)
    require(content, _UNET_SUPPORTED, str(path))
    heads = content.get("attention_head_dim", 8)
    listed = heads if isinstance(heads, list) else [heads]
    side = content.get("sample_size") or UNetConfig.sample_size  # diffusers writes null by default
    changes = {"attention_head_dim": listed, "sample_size": side}
    config = section(UNetConfig, content | changes, str(path))
    widths = config.block_out_channels
    if heads is not listed:
        config = dataclasses.replace(config, num_heads=config.num_heads * len(widths))
    _check_blocks(path, "down_block_types", [*config.down_block_types], _DOWN_BLOCKS, widths)
    _check_blocks(path, "up_block_types", [*config.up_block_types], _UP_BLOCKS, widths)
    _check_divides(path, "attention_head_dim", config.num_heads, widths)
    _check_divides(path, "norm_num_groups", (config.norm_num_groups,) * len(widths), widths)
    return config


def _read_vae(path: Path) -> VAEConfig:
    content = read_json(path)
    require(content, _VAE_SUPPORTED, str(path))
    config, block = section(VAEConfig, content, str(path)), "DownEncoderBlock2D"
    widths = config.block_out_channels
    _check_blocks(
        path, "down_block_types", content.get("down_block_types", [block]), [block], widths
    )
    _check_divides(path, "norm_num_groups", (config.norm_num_groups,) * len(widths), widths)
    return config


def _check_blocks(
    path: Path, key: str, found: Any, known: Sequence[str], widths: Sequence[int]
) -> None:
    listed = isinstance(found, list) and len(found) == len(widths)
    if not listed or any(block not in known for block in found):
        raise ValueError(
            f"{path}: {key} is {found}, wanted {len(widths)} (one for each of "
            f"block_out_channels) of {', '.join(known)}; other architectures are not implemented"
        )


def _check_divides(path: Path, key: str, parts: Sequence[int], widths: Sequence[int]) -> None:
    if len(parts) != len(widths) or any(w % n for n, w in zip(parts, widths, strict=True)):
        raise ValueError(
            f"{path}: {key} {list(parts)} does not divide block_out_channels {list(widths)}; "
            "restore the checkpoint's config"
        )
