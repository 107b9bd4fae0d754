"""Scores on the grid to scores and labels of a picture's pixels, by the background rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from dsolo_jax import background, upsample
from dsolo_jax.readings import Readings


class Result(NamedTuple):
    """Index of a class for each pixel; the scores of all of them if they were asked for, -inf those
    that a threshold on areas took away."""

    labels: Int[np.ndarray, "H W"]
    scores: Float[np.ndarray, "C H W"] | None


def to_pixels(
    pixels: UInt8[np.ndarray, "H W 3"],
    scores: Float[Array, "C r r"],
    readings: Readings,
    decide: background.Decision | None = None,
    return_scores: bool = False,
) -> Callable[[], Result]:
    """Starts the upsampling of a picture's scores, on the device they are on.

    Returns:
        A function that waits for the result and fetches it.

    Raises:
        ValueError: from that function, scores that are not finite.
    """
    options: dict[str, Any] = {"form": readings.upsample}
    options |= {name: getattr(readings, name) for name in ("spatial_sigma", "range_sigma")}
    if decide is not None:
        if (first := decide.first()) is not None:  # a threshold on areas takes the picture twice
            each: dict[str, Any] = {"decide": first, "num_labels": decide.num_classes}
            options["given"] = (decide.kept(upsample.areas(scores, pixels, **each, **options)),)
        options["decide"] = decide
    finite = _finite(scores)  # dispatched here, fetched with the result
    if return_scores:
        upsampled = upsample.scores(scores, pixels, **options)
        labels = upsampled.argmax(axis=0).astype(np.int32)
    else:
        fetch = upsample.labels(scores, pixels, **options)

    def result() -> Result:
        if not finite:
            raise ValueError(
                "the scores hold NaN or infinity: CLIP's cosines or the patch graph left the range "
                "of their dtype; load the model in float32, or give another checkpoint"
            )
        return Result(labels, upsampled) if return_scores else Result(fetch(), None)

    return result


@jax.jit
def _finite(scores: Float[Array, "C r r"]) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(scores))
