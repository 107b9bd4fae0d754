"""Stable Diffusion in torch, by diffusers and transformers: random weights, and its maps."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dsolo_jax.attention.stable_diffusion.config import (
    SD1,
    SD2,
    StableDiffusionConfig,
    UNetConfig,
    VAEConfig,
)
from dsolo_jax.clip import TextConfig


class Kind(NamedTuple):
    """Sizes, the token that the tokenizer pads with, and how sharply self-attention looks.

    gain: of its queries and keys, whose logits have variance gain⁴; without it the maps of the
        large networks would be nearly flat.
    """

    config: StableDiffusionConfig
    padding: str
    gain: float = 2.0


KINDS = {
    "sd2": Kind(SD2, "!"),
    "sd1": Kind(SD1, "<|endoftext|>"),
    # Stable Diffusion 2 with three resolutions.
    "tiny": Kind(
        StableDiffusionConfig(
            UNetConfig(
                block_out_channels=(32, 64, 64),
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                num_heads=(2, 4, 4),
                cross_attention_dim=24,
                use_linear_projection=True,
                norm_num_groups=8,
            ),
            VAEConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=2, norm_num_groups=8),
            TextConfig(
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                hidden_act="gelu",
                eos_token_id=2,
            ),
        ),
        "!",
        gain=1.4,
    ),
}


class Models(NamedTuple):
    """The networks of a checkpoint, and its tokenizer."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer


def build(kind: Kind, tokenizer: str | os.PathLike, seed: int) -> Models:
    """Random networks in which every part matters.

    Args:
        kind: sizes and padding.
        tokenizer: folder of one of CLIP's, which decides the size of the vocabulary.
        seed: of the weights.
    """
    config = kind.config
    length = config.text.max_position_embeddings
    tokenizer = CLIPTokenizer.from_pretrained(
        tokenizer, pad_token=kind.padding, model_max_length=length
    )
    # The ids of start and end are wrong in every config on the hub, and nothing reads them.
    text = dataclasses.asdict(config.text) | {"vocab_size": len(tokenizer), "bos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = Models(
            unet(config.unet), vae(config.vae), CLIPTextModel(CLIPTextConfig(**text)), tokenizer
        )
        for model in models[:3]:
            _randomise(model.eval(), kind.gain)
    return models


def unet(config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' denoiser of our sizes."""
    theirs = dataclasses.asdict(config)
    return UNet2DConditionModel(attention_head_dim=theirs.pop("num_heads"), **theirs)


def vae(config: VAEConfig) -> AutoencoderKL:
    """diffusers' autoencoder of our sizes."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        **dataclasses.asdict(config),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


@torch.no_grad()
def _randomise(model: nn.Module, gain: float) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.normal_(1, 0.2)
            module.bias.normal_(0, 0.2)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.5)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            looks = name.endswith(("attn1.to_q", "attn1.to_k"))
            module.weight.normal_(0, (gain if looks else 1) / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                module.bias.normal_(0, 0.1)


def save(models: Models, folder: str | os.PathLike, variant: str | None = None) -> None:
    """Writes them as diffusers does: model_index.json and a folder for each.

    Args:
        variant: of the files' names, "fp16" on the hub where the weights are in float16.
    """
    pipeline = StableDiffusionPipeline(
        **models._asdict(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, variant=variant)


class TorchMaps(NamedTuple):
    """What torch makes of pictures."""

    latents: np.ndarray  # [B, h, w, L]
    noise: np.ndarray  # [B, h, w, L]
    maps: dict[str, np.ndarray]  # of each self-attention [B, n, n], by its module's name


@torch.inference_mode()
def torch_maps(
    models: Models, pixels: np.ndarray, timestep: int, only: str = "", each_head: bool = False
) -> TorchMaps:
    """Latents, the denoiser's output, and softmax(qkᵀ/√d) averaged over heads, of all layers.

    Args:
        pixels: [B, H, W, 3] in -1..1.
        only: the first part of the names of the layers that are captured; "" is all.
    """
    given = torch.tensor(pixels).permute(0, 3, 1, 2)
    latents = models.vae.encode(given).latent_dist.mode() * models.vae.config.scaling_factor
    length = models.tokenizer.model_max_length
    token_ids = models.tokenizer(
        "", padding="max_length", max_length=length, return_tensors="pt"
    ).input_ids
    prompt = models.text_encoder(token_ids)[0].expand(len(pixels), -1, -1)
    with capturing(models.unet, only, each_head) as maps:
        noise = models.unet(latents, timestep, prompt).sample
    latents, noise = (x.permute(0, 2, 3, 1).numpy() for x in (latents, noise))
    return TorchMaps(latents, noise, {name: found.numpy() for name, found in maps.items()})


@contextlib.contextmanager
def capturing(
    model: UNet2DConditionModel, only: str | tuple[str, ...] = "", each_head: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Softmax(qkᵀ/√d), mean over heads, of the self-attentions as the model runs, by their names.

    Args:
        only: the first part of the names of the layers that are captured; "" is all.
        each_head: [B, K, n, n] instead of the mean.
    """
    suffix, maps = ".transformer_blocks.0.attn1", {}

    def capture(name: str):
        def hook(attention, args):
            query, key = (
                project(args[0]).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                for project in (attention.to_q, attention.to_k)
            )
            found = (query @ key.mT * attention.scale).softmax(-1)
            maps[name] = found if each_head else found.mean(1)

        return hook

    hooks = [
        module.register_forward_pre_hook(capture(name.removesuffix(suffix)))
        for name, module in model.named_modules()
        if name.startswith(only) and name.endswith(suffix)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Frobenius error of A over the deviation of what was expected from uniform."""
    uniform = 1 / expected.shape[-1]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - uniform))
