"""Joint bilateral upsampling of 64 x 64 scores to labels, against torch loops of the usual kind."""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax.upsample import upsample_labels
from experiments.benchmarks.timing import compare, xla_account

_GRID = 64

# Both filters are held against the dense loop, the form the method's authors inherit (M2N2). It is
# timed on every 16th offset of its window, and its time without any is not scaled.
_EVERY = 16

# form, classes, H, W, baseline, repeats
_CASES = [
    ("bilinear", 21, 375, 500, "interpolate", 7),
    ("kopf", 21, 375, 500, "dense loop", 7),
    ("dense", 21, 375, 500, "dense loop", 3),
    ("kopf", 150, 375, 500, "dense loop", 3),
    ("dense", 150, 375, 500, "dense loop", 1),
    ("kopf", 150, 3000, 4000, None, 1),
]


def run() -> list[dict[str, Any]]:
    """One flat row a case; without torch the baseline's fields are None.

    `seconds` are medians, `ratio` is ours over the baseline's. XLA's flops and bytes count the loop
    over blocks of rows once.
    """
    return [_row(*case) for case in _CASES]


def _row(form: str, C: int, H: int, W: int, baseline: str | None, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(C, _GRID, _GRID)).astype(np.float32)
    blobs = jnp.asarray(rng.integers(0, 256, (12, 16, 3)), jnp.float32)
    guide = np.asarray(jax.image.resize(blobs, (H, W, 3), "linear").astype(jnp.uint8))
    arguments = jnp.asarray(scores), jnp.asarray(guide), jnp.array([H, W])
    ours = functools.partial(upsample_labels, form=form)
    jobs: dict[str, Callable[[], Any]] = {"ours": lambda: ours(*arguments)}
    if baseline and importlib.util.find_spec("torch"):
        jobs["interpolate"] = lambda: _interpolate(scores, H, W).argmax(0)
        if baseline == "dense loop":
            jobs["dense loop"] = lambda: dense_loop(scores, guide, every=_EVERY).argmax(0)
    seconds = compare(jobs, repeats=repeats)
    theirs = seconds.get("interpolate")
    if "dense loop" in seconds:
        offsets = len(_window(H, W))
        scale = offsets / len(range(0, offsets, _EVERY))
        theirs += scale * (seconds["dense loop"] - seconds["interpolate"])
    return {
        "stage": "upsample",
        "case": f"{form}, {C} classes, {W} x {H}",
        "seconds": seconds["ours"],
        "baseline": theirs and f"torch, {baseline}",
        "baseline_seconds": theirs,
        "ratio": theirs and seconds["ours"] / theirs,
        **xla_account(ours, *arguments),
    }


def _window(H: int, W: int) -> list[tuple[int, int, float]]:
    """Offsets (dy, dx) in pixels and their weights: sigma one patch, cut at the disc of 3 sigma."""
    reach_y, reach_x = 3 * H // _GRID, 3 * W // _GRID
    squared = {
        (dy, dx): (dy * _GRID / H) ** 2 + (dx * _GRID / W) ** 2
        for dy in range(-reach_y, reach_y + 1)
        for dx in range(-reach_x, reach_x + 1)
    }
    return [(dy, dx, math.exp(-d / 2)) for (dy, dx), d in squared.items() if d <= 9 * (1 + 1e-6)]


def dense_loop(scores: np.ndarray, guide: np.ndarray, *, every: int = 1) -> np.ndarray:
    """Scores [C, H, W] of M2N2's filter: a pass over the picture for each offset of the window."""
    import torch

    colours = torch.tensor(guide).permute(2, 0, 1).float() / 255
    _, H, W = colours.shape
    picture = _interpolate(scores, H, W)
    total, weights = torch.zeros_like(picture), torch.zeros(H, W)
    for dy, dx, spatial in _window(H, W)[::every]:
        here = slice(max(-dy, 0), min(H - dy, H)), slice(max(-dx, 0), min(W - dx, W))
        there = slice(max(dy, 0), min(H + dy, H)), slice(max(dx, 0), min(W + dx, W))
        contrast = (colours[:, *here] - colours[:, *there]).square().sum(0)
        weight = spatial * torch.exp(-contrast / (2 * 0.1**2))
        weights[here] += weight
        total[:, *here] += weight * picture[:, *there]
    return (total / weights).numpy()


def _interpolate(scores: np.ndarray, H: int, W: int):
    import torch

    low = torch.from_numpy(scores)[None]
    return torch.nn.functional.interpolate(low, (H, W), mode="bilinear", align_corners=False)[0]


if __name__ == "__main__":
    for row in run():
        print(row)
