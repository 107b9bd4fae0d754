"""Confusion matrix and mean intersection over union, as the field counts them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer


def confusion_matrix(
    labels: Integer[Array | np.ndarray, "..."],
    truth: Integer[Array | np.ndarray, "..."],
    num_classes: int,
    ignore: int = 255,
) -> Int[Array | np.ndarray, "C C"]:
    """Counts the pixels of each true class (row) given each label (column).

        matrix[t, p] = #{pixels: truth = t, labels = p, truth != ignore}

    Any shape serves, as long as both have it. Arrays of numpy are counted by numpy, in int64; those
    of JAX on their device, in int32, enough for one picture (2^31 pixels).

    Args:
        labels: predicted class of each pixel, in 0..C-1 wherever the truth is not `ignore`.
        truth: true class of each pixel, in 0..C-1 or `ignore`.
        num_classes: C.
        ignore: the true value of pixels that do not count.

    Raises:
        ValueError: if the shapes differ, an array is not of integers, or a value is out of range.
            Values are not known inside `jax.jit`: there, pixels out of range are not counted.
    """
    for name, array in (("labels", labels), ("truth", truth)):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"{name} are {array.dtype}, wanted integers: class indices below {num_classes}"
            )
    if labels.shape != truth.shape:
        raise ValueError(
            f"labels have shape {labels.shape}, truth has {truth.shape}: wanted the same; "
            "resize the labels to the true map, never the other way round"
        )
    matrix = _count(labels, truth, num_classes, ignore)
    if not isinstance(matrix, jax.core.Tracer):
        if int(matrix.sum()) != np.count_nonzero(np.asarray(truth) != ignore):
            _refuse(np.asarray(labels), np.asarray(truth), num_classes, ignore)
    return matrix


def mean_iou(matrix: Int[np.ndarray, "C C"]) -> tuple[float, Float[np.ndarray, "C"]]:
    """Takes the mean over classes of intersection over union, of a matrix with truth in rows.

        iou[c] = m[c, c] / (sum_p m[c, p] + sum_t m[t, c] - m[c, c])

    A class neither present nor predicted has an empty union: its iou is NaN and it does not enter
    the mean (NaN itself if no class has any pixel). These are mmsegmentation's mIoU semantics.

    Args:
        matrix: counts summed over the whole set; integers, or floats holding them.

    Returns:
        The mean and the iou of each class, in 0..1, float64.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"confusion matrix has shape {matrix.shape}, wanted [C, C]")
    if matrix.size and matrix.min() < 0:
        raise ValueError(
            f"confusion matrix holds {matrix.min()}, wanted counts of at least 0; "
            "sums over a set overflow int32, keep them in int64"
        )
    matrix = matrix.astype(np.float64)
    intersection = np.diagonal(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - intersection
    iou = np.divide(intersection, union, out=np.full(len(matrix), np.nan), where=union > 0)
    present = iou[union > 0]
    return float(present.mean()) if present.size else float("nan"), iou


def _count(labels: Any, truth: Any, num_classes: int, ignore: int) -> Any:
    xp = jnp if isinstance(labels, jax.Array) or isinstance(truth, jax.Array) else np
    labels, truth = labels.astype(xp.int32), truth.astype(xp.int32)
    inside = (labels >= 0) & (labels < num_classes) & (truth >= 0) & (truth < num_classes)
    cells = num_classes * num_classes
    cell = xp.where(inside & (truth != ignore), num_classes * truth + labels, cells).ravel()
    size = {"length": cells + 1} if xp is jnp else {"minlength": cells + 1}
    counts = xp.bincount(cell, **size)[:cells].reshape(num_classes, num_classes)
    return counts.astype(xp.int32 if xp is jnp else xp.int64)


def _refuse(labels: np.ndarray, truth: np.ndarray, num_classes: int, ignore: int) -> None:
    counted = truth != ignore
    for name, values in (("labels", labels[counted]), ("truth", truth[counted])):
        wrong = values[(values < 0) | (values >= num_classes)]
        if wrong.size:
            raise ValueError(
                f"{name} hold the value {wrong[0]} in {wrong.size} pixels, wanted "
                f"0..{num_classes - 1} for {num_classes} classes (or {ignore} in the truth for "
                "pixels that do not count)"
            )
