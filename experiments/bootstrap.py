"""How sure a mIoU is: scenes resampled with replacement, the same ones for all that is compared."""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Tally(NamedTuple):
    """What of confusion matrices decides the mIoU of any sum of them, by class."""

    intersection: Int[np.ndarray, "S C"]
    union: Int[np.ndarray, "S C"]

    @classmethod
    def of(cls, matrices: Int[np.ndarray, "S C C"]) -> "Tally":
        """Of confusion matrices, rows truth."""
        intersection = np.einsum("...cc->...c", matrices)
        return cls(intersection, matrices.sum(axis=-1) + matrices.sum(axis=-2) - intersection)


class Interval(NamedTuple):
    """An estimate between the bounds of its bootstrap replicates, 95 % if nothing else is said."""

    low: float
    estimate: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def draws(num_scenes: int, num_replicates: int = 2000, seed: int = 0) -> Int[np.ndarray, "R S"]:
    """Draws S scenes with replacement, R times: how often each scene is in each replicate."""
    return np.random.default_rng(seed).multinomial(
        num_scenes, np.full(num_scenes, 1 / num_scenes), size=num_replicates
    )


def replicates(tally: Tally, counts: Int[np.ndarray, "R S"]) -> Float[np.ndarray, "R"]:
    """Computes the mIoU in percent of each replicate.

    Intersection and union are sums over scenes, so a replicate's are products with its counts. A
    class that a replicate does not hold does not enter its mean, as in `metrics.mean_iou`.
    """
    intersection, union = (counts @ x.astype(np.float64) for x in tally)
    iou = np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)
    return 100 * np.nanmean(iou, axis=1)


def interval(tally: Tally, counts: Int[np.ndarray, "R S"]) -> Interval:
    """Bounds the set's mIoU in percent."""
    return _interval(partial(replicates, tally), counts)


def difference(
    a: Tally, b: Tally, counts: Int[np.ndarray, "R S"], comparisons: int = 1
) -> Interval:
    """Bounds the mIoU of `a` less that of `b`, of the same scenes in the same order, in points.

    The interval is widened so that all of `comparisons` hold together with 95 % (Bonferroni).
    """
    less = lambda counts: replicates(a, counts) - replicates(b, counts)  # noqa: E731
    return _interval(less, counts, comparisons)


def _interval(statistic, counts: Int[np.ndarray, "R S"], comparisons: int = 1) -> Interval:
    [whole] = statistic(np.ones((1, counts.shape[1])))
    tail = 2.5 / comparisons
    low, high = np.percentile(statistic(counts), [tail, 100 - tail])
    return Interval(float(low), float(whole), float(high))
