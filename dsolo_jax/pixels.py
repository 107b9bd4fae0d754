"""Scores on the grid to scores and labels of a picture's pixels, by the background rule."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from dsolo_jax import background, devices, upsample
from dsolo_jax.readings import Readings


class Labelling(NamedTuple):
    """Index of a class for each pixel; the scores of all of them if they were asked for, -inf those
    that a threshold on areas took away."""

    labels: Int[np.ndarray, "H W"]
    scores: Float[np.ndarray, "C H W"] | None


def batch_to_pixels(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    scores: Float[Array, "B C r r"],
    readings: Readings,
    decide: background.Decision | None = None,
    return_scores: bool = False,
) -> list[Callable[[], Labelling]]:
    """Starts the upsampling of a batch, on the devices that it is on: the functions of `to_pixels`.

    Scores behind those of the pictures are of none. Where it can, an accelerator takes all pictures
    that it has at once.
    """
    plain = not return_scores and (decide is None or decide.first() is None)
    if not (plain and upsample.takes(pictures, readings.upsample)):
        return [
            to_pixels(*pair, readings, decide, return_scores)
            for pair in zip(pictures, devices.each(scores), strict=False)
        ]
    fetches: list[Callable[[], Labelling]] = []
    for part in devices.parts(scores):
        own = pictures[len(fetches) :][: len(part)]
        if len(own):
            found = upsample.batch_labels(part, own, decide=decide, **_options(readings))
            labels, finite = functools.cache(found), _finite(part)
            fetches += [partial(_of_batch, labels, finite, i) for i in range(len(own))]
    return fetches


def _of_batch(labels: Callable[[], Sequence], finite: Bool[Array, "B"], index: int) -> Labelling:
    _check_finite(bool(np.asarray(finite)[index]))
    return Labelling(labels()[index], None)


def to_pixels(
    pixels: UInt8[np.ndarray, "H W 3"],
    scores: Float[Array, "C h w"],
    readings: Readings,
    decide: background.Decision | None = None,
    return_scores: bool = False,
) -> Callable[[], Labelling]:
    """Starts the upsampling of a picture's scores, on the device they are on.

    Returns:
        A function that waits for the result and fetches it.

    Raises:
        ValueError: from that function, scores that are not finite.
    """
    options = _options(readings)
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

    def result() -> Labelling:
        _check_finite(bool(finite))
        return Labelling(labels, upsampled) if return_scores else Labelling(fetch(), None)

    return result


def _options(readings: Readings) -> dict[str, Any]:
    names = {"form": "upsample", "spatial_sigma": "spatial_sigma", "range_sigma": "range_sigma"}
    return {name: getattr(readings, reading) for name, reading in names.items()}


@jax.jit
def _finite(scores: Float[Array, "*B C h w"]) -> Bool[Array, "*B"]:
    return jnp.all(jnp.isfinite(scores), axis=(-3, -2, -1))


def _check_finite(finite: bool) -> None:
    if not finite:
        raise ValueError(
            "the scores hold NaN or infinity: CLIP's cosines or the patch graph left the range "
            "of their dtype; load the model in float32, or give another checkpoint"
        )
