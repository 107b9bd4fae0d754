"""Stable Diffusion 2's image encoder: ours, and diffusers in torch where it is installed."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import SD2, vae
from dsolo_jax.checkpoints import Params
from experiments.benchmarks.timing import beside, compare, share_of_peak, xla_account

_CONFIG = SD2
_SIDE = 512


def run() -> list[dict]:
    """One row a baseline: seconds a picture in float32, and XLA's account of ours."""
    params = {"vae": random_params(vae.parameter_shapes(_CONFIG.vae))}
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, _SIDE, _SIDE, 3)).astype(np.float32)
    given = jnp.asarray(pixels)

    def encode(params, pixels):
        return stable_diffusion.encode(params, _CONFIG, pixels)

    jitted = jax.jit(encode)
    seconds = compare({"ours": lambda: jitted(params, given)} | _torch_jobs(pixels), repeats=3)
    # jax still has the program that was timed.
    account = xla_account(encode, params, given)
    row = {"stage": "vae", "case": f"Stable Diffusion 2 {_SIDE}x{_SIDE}, float32", **account}
    return beside(row | {"share_of_peak": share_of_peak(row["flops"], seconds["ours"])}, seconds)


def random_params(shapes: Params, dtype: DTypeLike = jnp.float32) -> Params:
    """Kernels of variance 1 / fan-in, which keep activations finite; norms and biases as at first.

    Args:
        shapes: nested dicts of `jax.ShapeDtypeStruct`s.
    """
    random = np.random.default_rng(0)

    def leaf(path: tuple, shape: tuple[int, ...]) -> jax.Array:
        if len(shape) == 1:
            return jnp.full(shape, float(path[-1].key == "scale"), dtype)
        values = random.standard_normal(shape, np.float32)
        values /= np.float32(math.sqrt(math.prod(shape[:-1])))
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(lambda path, x: leaf(path, x.shape), shapes)


def torch_device() -> str | None:
    """Where torch runs beside jax: on the same kind of device; None if it or diffusers cannot."""
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("diffusers"):
        return None
    import torch

    devices = {"cpu": "cpu"} | ({"gpu": "cuda"} if torch.cuda.is_available() else {})
    return devices.get(jax.default_backend())


def torch_job(function: Callable[[], Any]) -> Callable[[], None]:
    """`function` without gradients, waited for; float32 means float32, as it does in ours."""
    import torch

    torch.backends.cudnn.allow_tf32 = False

    def run():
        with torch.inference_mode():
            function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def torch_vae(config: vae.VAEConfig, device: str):
    """diffusers' AutoencoderKL without its decoder."""
    import torch
    from diffusers import AutoencoderKL

    levels = len(config.block_out_channels)
    with torch.device(device):
        model = AutoencoderKL(
            **dataclasses.asdict(config),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        ).eval()
    del model.decoder
    return model


def _torch_jobs(pixels: np.ndarray) -> dict[str, Callable]:
    device = torch_device()
    if device is None:
        return {}
    import torch

    model = torch_vae(_CONFIG.vae, device)
    given = torch.tensor(pixels, device=device).permute(0, 3, 1, 2).contiguous()
    return {"torch sdpa": torch_job(lambda: model.encode(given).latent_dist.mode())}
