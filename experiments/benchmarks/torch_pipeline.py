"""The pipeline's work in torch, as its peers write it: diffusers, transformers, plain loops.

Needs torch, diffusers and transformers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.typing import DTypeLike
from torch.nn.functional import interpolate, normalize
from transformers import CLIPVisionConfig, CLIPVisionModel

from dsolo_jax.attention.stable_diffusion import StableDiffusionConfig
from dsolo_jax.clip import ClipConfig
from dsolo_jax.pipeline import Encoded, Model
from dsolo_jax.readings import Readings
from experiments.benchmarks.timing import compare
from experiments.benchmarks.unet import capturing, torch_layers, torch_prompt, torch_unet
from experiments.benchmarks.vae import torch_job, torch_vae


def timer(
    model: Model, timestep: int, device: str, dtype: DTypeLike, repeats: int
) -> Callable[..., dict[str, float]]:
    """A function that times the stages for a batch, with networks of `model`'s sizes.

    Its arguments: our own `Encoded`, so that the solver's steps are as many as ours; the pictures,
    uint8 [B, S, S, 3]; the text [C, D]; their patch grid in CLIP. It returns median seconds of each
    stage, and of none where the GPU's memory does not suffice.
    """
    graph = _graph(model.source.config, timestep, device, dtype)
    cosines = _cosines(model.config, model.grid, device, dtype)
    readings, patch = model.readings, model.config.vision.patch_size

    def seconds(
        encoded: Encoded, pixels: np.ndarray, text: jax.Array, grid: tuple[int, int]
    ) -> dict[str, float]:
        squares = torch.tensor(pixels, device=device).permute(0, 3, 1, 2) / 127.5 - 1
        resized = interpolate(squares, [patch * side for side in grid], mode="bilinear")
        words = torch.tensor(np.asarray(text), device=device)
        maps, attention, presence = (torch.tensor(np.asarray(x), device=device) for x in encoded)

        def scores() -> torch.Tensor:
            steps = _velocity(maps, attention, readings)
            return readings.presence * presence[..., None] - readings.temperature * steps.log1p()

        found = scores().unflatten(-1, (model.grid, model.grid))

        def labels() -> np.ndarray:
            """Bilinear, as most peers do; ours are joint bilateral."""
            upsampled = interpolate(found, pixels.shape[1:3], mode="bilinear")
            return upsampled.argmax(1).int().cpu().numpy()

        stages = {
            "graph": lambda: graph(squares),
            "CLIP": lambda: cosines(resized, words),
            "solver": scores,
            "pixels": labels,
        }
        try:
            jobs = {name: torch_job(job) for name, job in stages.items()}
            medians = compare(jobs, repeats=repeats)
        except torch.OutOfMemoryError:
            return {}
        return medians | {"whole": sum(medians.values())}

    return seconds


def _graph(
    config: StableDiffusionConfig, timestep: int, device: str, dtype: DTypeLike
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pictures [B, 3, 8r, 8r] in -1..1 to A [B, N, N], with sdpa, the two maps captured."""
    model = torch_unet(config.unet, device, dtype)
    autoencoder = torch_vae(config.vae, device).to(model.dtype)
    layers = torch_layers(config.unet)

    def graph(pixels: torch.Tensor) -> torch.Tensor:
        latents = autoencoder.encode(pixels.to(model.dtype)).latent_dist.mode()
        prompt = torch_prompt(config, model, len(pixels))
        with capturing(model, layers) as maps:
            model(latents * config.vae.scaling_factor, timestep, prompt)
        return (sum(maps) / len(maps)).float()

    return graph


def _cosines(
    config: ClipConfig, side: int, device: str, dtype: DTypeLike
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pictures and text [C, D] to cosines [B, C, r · r], with sdpa."""
    theirs = CLIPVisionConfig(patch_size=config.vision.patch_size)
    model = CLIPVisionModel._from_config(theirs, attn_implementation="sdpa")
    projection = torch.nn.Linear(theirs.hidden_size, config.projection_dim, bias=False)
    options = {"device": device, "dtype": getattr(torch, jnp.dtype(dtype).name)}
    model, projection = model.to(**options).eval(), projection.to(**options)

    def cosines(pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        given = pixels.to(options["dtype"])
        tokens = model(given, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        patches = normalize(projection(tokens).float(), dim=-1)
        h, w = (size // config.vision.patch_size for size in pixels.shape[2:])
        maps = torch.einsum("cd,bnd->bcn", text, patches).unflatten(-1, (h, w))
        return interpolate(maps, (side, side), mode="bilinear").flatten(2)

    return cosines


def _velocity(cosines: torch.Tensor, attention: torch.Tensor, readings: Readings) -> torch.Tensor:
    """Steps [B, C, N] until saturation, M2N2's loops: IPF on the matrix, then steps one by one."""
    transition = attention
    for _ in range(readings.ipf_iters):
        transition = transition / transition.sum(-2, keepdim=True)
        transition = transition / transition.sum(-1, keepdim=True)
    low, high = cosines.amin(-1, keepdim=True), cosines.amax(-1, keepdim=True)
    p = (cosines - low) / (high - low)
    p = torch.where(p >= readings.suppress_below, p, 0)
    steps = torch.where(p > readings.tau, 0, float(readings.max_steps))
    for step in range(readings.max_steps):
        missing = steps == readings.max_steps
        if not missing.any():
            break
        after = p @ transition
        after = after / after.amax(-1, keepdim=True)
        crossing = step + (readings.tau - p) / (after - p)
        steps = torch.where(missing & (after > readings.tau), crossing, steps)
        p = after
    return steps
