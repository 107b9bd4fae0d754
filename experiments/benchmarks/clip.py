"""CLIP's image tower, B/16: ours, and transformers in torch where it is installed."""

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import clip
from experiments.benchmarks.timing import compare, xla_account

_SIZES = ((336, 336), (336, 448))


def _torch_jobs(pixels: np.ndarray) -> dict[str, Callable]:
    """transformers' tower with each of its attentions; its last layer norm and projection lack."""
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("transformers"):
        return {}
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    given = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()

    def job(implementation: str) -> Callable:
        config = CLIPVisionConfig(patch_size=clip.VIT_B16.vision.patch_size)
        model = CLIPVisionModel._from_config(config, attn_implementation=implementation).eval()

        def run():
            with torch.inference_mode():
                model(given, interpolate_pos_encoding=True)

        return run

    return {f"torch {name}": job(name) for name in ("sdpa", "eager")}


def run() -> list[dict]:
    """One row a size and baseline: seconds a picture, and XLA's account of ours."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))

    def encode(params, pixels):
        return clip.encode_image(params, config, pixels)

    rows = []
    for height, width in _SIZES:
        pixels = np.random.default_rng(0).standard_normal((1, height, width, 3), np.float32)
        given = jnp.asarray(pixels)
        jitted = jax.jit(encode)
        baselines = _torch_jobs(pixels)
        ours = {"ours": lambda jitted=jitted, given=given: jitted(params, given)}
        seconds = compare(ours | baselines)
        row = {
            "stage": "clip",
            "case": f"ViT-B/16 {height}x{width}",
            "seconds": seconds["ours"],
            **xla_account(encode, params, given),
        }
        rows += [
            row
            | {
                "baseline": name,
                "baseline_seconds": seconds[name],
                "ratio": seconds["ours"] / seconds[name],
            }
            for name in baselines
        ] or [row]
    return rows
