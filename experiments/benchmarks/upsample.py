"""Joint bilateral upsampling of scores to labels, against torch loops of the usual kind."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import upsample
from experiments.benchmarks.timing import beside, compare

# The dense loop, the form the method's authors inherit (M2N2), is what both filters are held
# against. It is timed on every 16th offset of its window, and its time without any is not scaled.
_EVERY = 16

# form, classes, side of the grid, H, W, baseline, repeats
_CASES = [
    ("bilinear", 21, 64, 375, 500, "interpolate", 7),
    ("kopf", 21, 64, 375, 500, "dense loop", 7),
    ("dense", 21, 64, 375, 500, "dense loop", 3),
    ("kopf", 150, 64, 375, 500, "dense loop", 3),
    ("dense", 150, 64, 375, 500, "dense loop", 1),
    ("kopf", 12, 14, 112, 112, "dense loop", 7),
    ("kopf", 150, 64, 3000, 4000, None, 1),
]


def run() -> Iterator[dict[str, Any]]:
    """Times `upsample.labels`, from scores on the device and a picture to labels on the host."""
    for form, classes, side, H, W, baseline, repeats in _CASES:
        random = np.random.default_rng(0)
        scores = jnp.asarray(random.standard_normal((classes, side, side), np.float32))
        blobs = jnp.asarray(random.integers(0, 256, (12, 16, 3)), jnp.float32)
        pixels = np.asarray(jax.image.resize(blobs, (H, W, 3), "linear").astype(jnp.uint8))
        case = f"{form}, {classes} classes, {side} x {side} to {W} x {H}"
        yield {"stage": "upsample", "case": case} | _times(scores, pixels, form, baseline, repeats)


def _times(
    scores: jax.Array, pixels: np.ndarray, form: str, baseline: str | None, repeats: int
) -> dict[str, Any]:
    """Medians; without torch there is no baseline."""
    jobs = {"ours": lambda: upsample.labels(scores, pixels, form=form)()}
    try:
        from tests.oracles import upsampling
    except ImportError:
        baseline = None
    low, size = np.asarray(scores), pixels.shape[:2]
    if baseline:
        jobs["interpolate"] = lambda: upsampling.interpolate(low, size).argmax(0)
    if baseline == "dense loop":
        jobs[baseline] = lambda: upsampling.dense_loop(low, pixels, every=_EVERY).argmax(0)
    seconds = compare(jobs, repeats=repeats)
    row = {"seconds": seconds["ours"]}
    if not baseline:
        return row
    theirs = seconds["interpolate"]
    if baseline == "dense loop":
        offsets = len(upsampling.window(low.shape[1:], size))
        theirs += (seconds[baseline] - theirs) * offsets / len(range(0, offsets, _EVERY))
    return row | beside(seconds["ours"], f"torch, {baseline}", theirs)
