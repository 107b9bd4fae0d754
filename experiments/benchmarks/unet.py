"""Stable Diffusion 2's denoiser, from latents to the graph: ours, and diffusers in torch."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import SD2, StableDiffusionConfig, unet, vae
from dsolo_jax.attention.stable_diffusion.model import mean_attention
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import precision
from experiments.benchmarks.timing import beside, compare, share_of_peak, xla_account
from experiments.benchmarks.vae import random_params, torch_device, torch_job

_CONFIG = SD2
_SIDE = 64
_TIMESTEP = 100


def run() -> list[dict]:
    """One row a baseline: seconds a picture, and XLA's account of ours.

    XLA counts one block of the attentions that run in blocks of queries: on CPU those at full
    resolution do, on accelerators none does for one picture.
    """
    config, dtype = _CONFIG.unet, encoder_dtype()
    params = random_params_at_timestep(_CONFIG, dtype)["unet"]
    shape = 1, _SIDE, _SIDE, config.in_channels
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    given = jnp.asarray(latents)
    layers = torch_layers(config)

    def graph(params, latents):
        with precision(params["conv_in"]["kernel"]):
            _, lookings = unet.denoise(params, config, latents)
            chosen = [lookings[layer] for layer in layers]
            return mean_attention(chosen, [1 / len(layers)] * len(layers), _SIDE)

    jitted = jax.jit(graph)
    seconds = compare(
        {"ours": lambda: jitted(params, given)} | _torch_jobs(latents, dtype), repeats=3
    )
    # jax still has the program that was timed.
    account = xla_account(graph, params, given)
    case = f"Stable Diffusion 2 {_SIDE}x{_SIDE}, {jnp.dtype(dtype).name}"
    row = {"stage": "unet", "case": case, **account}
    return beside(row | {"share_of_peak": share_of_peak(row["flops"], seconds["ours"])}, seconds)


def encoder_dtype() -> DTypeLike:
    """What the encoders are meant to run in on the device."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def random_params_at_timestep(config: StableDiffusionConfig, dtype: DTypeLike) -> Params:
    """Of the whole source, for `stable_diffusion.self_attention(..., timestep=None)`."""
    shape = config.text.max_position_embeddings, config.unet.cross_attention_dim
    params = {
        "vae": random_params(vae.parameter_shapes(config.vae), dtype),
        "unet": random_params(unet.parameter_shapes(config.unet), dtype),
        "prompt": jax.random.normal(jax.random.key(0), shape),
    }
    return stable_diffusion.at_timestep(params, config, _TIMESTEP)


def torch_layers(config: unet.UNetConfig) -> tuple[str, ...]:
    """up.0 and up.1 by diffusers' names."""
    last = len(config.up_block_types) - 1
    return tuple(f"up_blocks.{last}.attentions.{j}" for j in range(2))


def torch_unet(config: unet.UNetConfig, device: str, dtype: DTypeLike):
    """diffusers' UNet2DConditionModel."""
    import torch
    from diffusers import UNet2DConditionModel

    theirs = dataclasses.asdict(config)
    theirs["attention_head_dim"] = theirs.pop("num_heads")
    with torch.device(device):
        model = UNet2DConditionModel(**theirs).eval()
    return model.to(getattr(torch, jnp.dtype(dtype).name))


@contextlib.contextmanager
def capturing(model, layers: tuple[str, ...]) -> Iterator[list]:
    """softmax(qkᵀ/√d) of torch's self-attentions, mean over heads, as the model runs."""
    maps = []

    def hook(attention, args):
        query, key = (
            project(args[0]).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.to_q, attention.to_k)
        )
        maps.append((query @ key.mT * attention.scale).softmax(-1).mean(1))

    names = [f"{layer}.transformer_blocks.0.attn1" for layer in layers]
    hooks = [model.get_submodule(name).register_forward_pre_hook(hook) for name in names]
    try:
        yield maps
    finally:
        for handle in hooks:
            handle.remove()


def torch_prompt(config: StableDiffusionConfig, model, batch: int):
    """Random states of a prompt."""
    import torch

    shape = batch, config.text.max_position_embeddings, config.unet.cross_attention_dim
    return torch.randn(shape, device=model.device, dtype=model.dtype)


def _torch_jobs(latents: np.ndarray, dtype: DTypeLike) -> dict[str, Callable]:
    """The denoiser as it is used, and with its attention as softmax and products, maps captured."""
    device = torch_device()
    if device is None:
        return {}
    import torch
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    model = torch_unet(_CONFIG.unet, device, dtype)
    prompt, layers = torch_prompt(_CONFIG, model, len(latents)), torch_layers(_CONFIG.unet)
    given = torch.tensor(latents, device=device, dtype=model.dtype).permute(0, 3, 1, 2).contiguous()

    def whole():
        model.set_attn_processor(AttnProcessor2_0())
        return model(given, _TIMESTEP, prompt).sample

    def same_maps():
        model.set_attn_processor(AttnProcessor())
        with capturing(model, layers) as maps:
            model(given, _TIMESTEP, prompt)
        return sum(maps) / len(maps)

    return {
        "torch sdpa, whole UNet": torch_job(whole),
        "torch eager, same maps": torch_job(same_maps),
    }
