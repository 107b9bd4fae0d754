"""DINO's last attention map: ours, and transformers in torch where it is installed."""

import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax.attention import dino
from dsolo_jax.attention.dino.model import parameter_shapes
from experiments.benchmarks.timing import compare, xla_account

# name, config, side of the square picture
_CASES = (
    ("DINOv2 B/14", dino.DINOV2_B14, 518),
    ("DINO B/16", dino.DINO_B16, 512),
)


def run() -> Iterator[dict]:
    """One row a model: seconds a picture, and XLA's account of ours."""
    for name, config, side in _CASES:
        pixels = np.random.default_rng(0).standard_normal((1, side, side, 3), np.float32)
        yield _row(f"{name} {side}x{side}", config, pixels)


def _row(case: str, config: dino.DinoConfig, pixels: np.ndarray) -> dict:
    # The time does not depend on the values.
    params = jax.tree.map(
        lambda leaf: 0.02 * jax.random.normal(jax.random.key(0), leaf.shape),
        parameter_shapes(config),
    )
    given = jnp.asarray(pixels)

    def attention(params, pixels):
        return dino.self_attention(params, config, pixels)

    jitted = jax.jit(attention)
    baselines = _torch_jobs(config, pixels)
    seconds = compare({"ours": lambda: jitted(params, given)} | baselines)
    row = {
        "stage": "dino",
        "case": case,
        "seconds": seconds["ours"],
        **xla_account(attention, params, given),
    }
    for name in baselines:
        row |= {
            "baseline": name,
            "baseline_seconds": seconds[name],
            "ratio": seconds["ours"] / seconds[name],
        }
    return row


def _torch_jobs(config: dino.DinoConfig, pixels: np.ndarray) -> dict[str, Callable]:
    """transformers' tower; of its attentions only eager gives maps, and those of all layers."""
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("transformers"):
        return {}
    import torch
    from transformers import AutoConfig, AutoModel

    theirs = AutoConfig.for_model(
        config.model_type, image_size=config.image_size, patch_size=config.patch_size
    )
    model = AutoModel.from_config(theirs, attn_implementation="eager").eval()
    given = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()
    # DINOv2 always resamples its positions, and knows no such argument.
    options = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}

    def run():
        with torch.inference_mode():
            maps = model(given, output_attentions=True, **options).attentions
            attention = maps[-1].mean(1)[:, 1:, 1:]
            return attention / attention.sum(-1, keepdim=True)

    return {"torch eager": run}
