"""The forms of Stable Diffusion's 3 x 3 convolution, and torch's where it is installed."""

import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax.attention.stable_diffusion import convolution
from experiments.benchmarks.timing import beside, compare

# Positions to the side, channels in, channels out: of the VAE at 512 pixels, then of the UNet.
_CASES = (
    (512, 128, 128),
    (256, 256, 256),
    (128, 512, 512),
    (64, 512, 512),
    (64, 320, 320),
    (32, 640, 640),
    (16, 1280, 1280),
    (8, 1280, 1280),
)


def run() -> Iterator[dict]:
    """A row a case and other form: ours is the one that `convolve` takes."""
    for side, inputs, outputs in _CASES:
        random = np.random.default_rng(0)
        x = random.standard_normal((1, side, side, inputs), np.float32)
        kernel = random.standard_normal((3, 3, inputs, outputs), np.float32)
        given = jnp.asarray(x), jnp.asarray(kernel)
        forms = {"ours": convolution.convolve, "XLA": _xla, "gathered": convolution.gathered}
        if side % 16 == 0:
            forms["Winograd"] = convolution.winograd
        jobs = {name: _job(form, given) for name, form in forms.items()}
        case = f"{side}x{side}, {inputs} to {outputs} channels"
        seconds = compare(jobs | _torch_job(x, kernel), repeats=3)
        yield from beside({"stage": "convolution", "case": case}, seconds)


def _job(form: Callable, given: tuple[jax.Array, jax.Array]) -> Callable:
    jitted = jax.jit(form)
    return lambda: jitted(*given)


def _xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _torch_job(x: np.ndarray, kernel: np.ndarray) -> dict[str, Callable]:
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    image = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    weight = torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()
    return {"torch": lambda: torch.nn.functional.conv2d(image, weight, padding=1)}
