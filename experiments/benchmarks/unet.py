"""Stable Diffusion 2's denoiser, from latents to the graph: ours, and diffusers in torch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import SD2, StableDiffusionConfig, unet, vae
from dsolo_jax.attention.stable_diffusion.maps import mean_attention
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import precision
from experiments.benchmarks.timing import random_params, rows, torch_jobs, xla_account

TIMESTEP = 100
_SIDE = 64


def run() -> list[dict]:
    """One row a baseline: seconds a picture, and XLA's account of ours.

    XLA counts one block of the attentions that run in blocks of queries: on CPU those at full
    resolution do, on accelerators none does for one picture.
    """
    config, dtype, layers = SD2.unet, encoder_dtype(), torch_layers(SD2.unet)
    params = random_params_at_timestep(SD2, dtype)["unet"]
    shape = 1, _SIDE, _SIDE, config.in_channels
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)

    @jax.jit
    def graph(params, latents):
        with precision(params["conv_in"]["kernel"]):
            _, lookings = unet.denoise(params, config, latents)
            chosen = [lookings[layer] for layer in layers]
            return mean_attention(chosen, [1 / len(layers)] * len(layers), _SIDE)

    account = xla_account(graph, params, latents)
    jobs = {"ours": lambda: graph(params, latents)}
    jobs |= torch_jobs("unet", SD2, layers, latents, TIMESTEP, dtype)
    case = f"Stable Diffusion 2 {_SIDE}x{_SIDE}, {jnp.dtype(dtype).name}"
    return rows("unet", case, jobs, repeats=3, **account)


def encoder_dtype() -> DTypeLike:
    """What the encoders are meant to run in on the device."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def random_params_at_timestep(config: StableDiffusionConfig, dtype: DTypeLike) -> Params:
    """Random parameters of the whole source, for `self_attention(..., timestep=None)`."""
    shape = config.text.max_position_embeddings, config.unet.cross_attention_dim
    params = {
        "vae": random_params(vae.parameter_shapes(config.vae), dtype),
        "unet": random_params(unet.parameter_shapes(config.unet), dtype),
        "prompt": jax.random.normal(jax.random.key(0), shape),
    }
    return stable_diffusion.at_timestep(params, config, TIMESTEP)


def torch_layers(config: unet.UNetConfig) -> tuple[str, ...]:
    """up.0 and up.1 by diffusers' names."""
    last = len(config.up_block_types) - 1
    return tuple(f"up_blocks.{last}.attentions.{j}" for j in range(2))
