"""A trained latent diffusion model as diffusers' StableDiffusionPipeline loads it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dsolo_jax import checkpoints
from dsolo_jax.attention.stable_diffusion import StableDiffusionConfig
from dsolo_jax.attention.stable_diffusion.weights import STEMS, unet_table, vae_table
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip.weights import TEXT_TABLE
from dsolo_jax.utils.files import write_json
from experiments.training.diffusion import SCHEDULE, SIZE


def save(
    folder: Path,
    config: StableDiffusionConfig,
    autoencoder: Params,
    denoiser: Params,
    tokenizer: Path,
) -> None:
    """Writes what diffusers' StableDiffusionPipeline loads, weights in float16.

    Args:
        config: with the vocabulary's size and the latents' scale that were trained with.
        autoencoder, denoiser: as the `init` functions lay them out.
        tokenizer: folder of `tokenizer.write_tokenizer`.
    """
    export, vae = checkpoints.export, {}
    for half, tree in autoencoder.items():
        vae |= export(tree, vae_table(half))
    parts = {
        "unet": export(denoiser["unet"], unet_table(config.unet)),
        "text_encoder": export(denoiser["text"], TEXT_TABLE),
        "vae": vae,
    }
    for name, tensors in parts.items():
        half = {key: tensor.astype(np.float16) for key, tensor in tensors.items()}
        checkpoints.write_tensors(folder / name / f"{STEMS[name]}.safetensors", half)
    for name, content in _settings(config).items():
        write_json(folder / name, content)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)


def _settings(config: StableDiffusionConfig) -> dict[str, Any]:
    """The JSON files of a pipeline, by name."""
    levels, end = len(config.vae.block_out_channels), config.text.eos_token_id
    unet, vae, text = (dataclasses.asdict(part) for part in (config.unet, config.vae, config.text))
    unet["attention_head_dim"] = unet.pop("num_heads")
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "requires_safety_checker": False,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {"_class_name": "UNet2DConditionModel"} | unet,
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "sample_size": SIZE,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "use_post_quant_conv": False,
        }
        | vae,
        "text_encoder/config.json": {
            "model_type": "clip_text_model",
            "bos_token_id": end - 1,
            "pad_token_id": end,
        }
        | text,
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }
        | SCHEDULE,
    }
