"""Confusion matrix and mean intersection over union, as the field counts them."""

import numpy as np
from jaxtyping import Array, Float, Int, Integer


def confusion_matrix(
    labels: Integer[Array | np.ndarray, "H W"],
    truth: Integer[Array | np.ndarray, "H W"],
    num_classes: int,
    ignore: int = 255,
) -> Int[np.ndarray, "C C"]:
    """Counts on the host the pixels of each true class (row) given each label (column).

        matrix[t, p] = #{pixels: truth = t, labels = p, truth != ignore}

    Args:
        labels: predicted class of each pixel, in 0..C-1 wherever the truth is not `ignore`; of any
            shape.
        truth: true class of each pixel, in 0..C-1 or `ignore`; of the same shape.
        num_classes: C.
        ignore: the true value of pixels that do not count.

    Returns:
        int64.

    Raises:
        ValueError: shapes that differ, an array that is not of integers, a value out of range.
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.shape != truth.shape:
        raise ValueError(
            f"labels have shape {labels.shape}, truth has {truth.shape}: wanted the same; "
            "resize the labels to the true map, never the other way round"
        )
    counted = truth != ignore
    for name, array in (("labels", labels), ("truth", truth)):
        if array.dtype.kind not in "iu":
            raise ValueError(
                f"{name} are {array.dtype}, wanted integers: class indices below {num_classes}"
            )
        wrong = array[counted & ((array < 0) | (array >= num_classes))]
        if wrong.size:
            raise ValueError(
                f"{name} hold the value {wrong[0]} in {wrong.size} pixels, wanted "
                f"0..{num_classes - 1} for {num_classes} classes (or {ignore} in the truth for "
                "pixels that do not count)"
            )
    true, predicted = (array[counted].astype(np.int64) for array in (truth, labels))
    return np.bincount(num_classes * true + predicted, minlength=num_classes**2).reshape(
        num_classes, num_classes
    )


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
