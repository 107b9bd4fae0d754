"""Resampled scenes against the plain way: repeat them, sum them, take the mIoU."""

import numpy as np
import pytest

from dsolo_jax import metrics
from experiments import bootstrap
from experiments.bootstrap import Tally

SCENES, CLASSES = 12, 4


@pytest.fixture(scope="module")
def matrices():
    """Of two methods, one better; the last class is rare, the third never occurs."""
    random = np.random.default_rng(0)
    scenes = random.integers(0, 50, (2, SCENES, CLASSES, CLASSES))
    scenes[1] += 60 * np.eye(CLASSES, dtype=int)
    scenes[:, :, 2], scenes[:, :, :, 2] = 0, 0
    scenes[:, 1:, 3], scenes[:, 1:, :, 3] = 0, 0
    return scenes


def test_replicates_are_repeated_scenes_summed(matrices):
    counts = bootstrap.draws(SCENES, 40, seed=1)
    assert counts.shape == (40, SCENES) and (counts.sum(axis=1) == SCENES).all()
    assert (counts[:, 0] == 0).any()  # some replicate lacks the rare class
    for scenes in matrices:
        expected = [
            100 * metrics.mean_iou(np.repeat(scenes, count, axis=0).sum(axis=0))[0]
            for count in counts
        ]
        np.testing.assert_allclose(bootstrap.replicates(Tally.of(scenes), counts), expected)


def test_an_interval_holds_the_middle_of_its_replicates(matrices):
    counts = bootstrap.draws(SCENES, 1000)
    found = bootstrap.interval(Tally.of(matrices[0]), counts)
    assert found.estimate == pytest.approx(100 * metrics.mean_iou(matrices[0].sum(axis=0))[0])
    values = bootstrap.replicates(Tally.of(matrices[0]), counts)
    inside = (values >= found.low) & (values <= found.high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


def test_differences_are_paired(matrices):
    worse, better = map(Tally.of, matrices)
    counts = bootstrap.draws(SCENES, 500)
    gain = bootstrap.difference(better, worse, counts)
    assert gain.low > 0
    back = bootstrap.difference(worse, better, counts)
    np.testing.assert_allclose((back.high, back.estimate, back.low), -np.array(gain))
    assert bootstrap.difference(worse, worse, counts) == (0, 0, 0)


def test_several_comparisons_at_once_are_wider(matrices):
    """Bonferroni: of each the share of tails that k of them may have together."""
    a, b = map(Tally.of, matrices)
    counts = bootstrap.draws(SCENES, 4000)
    gains = bootstrap.replicates(b, counts) - bootstrap.replicates(a, counts)
    one = bootstrap.difference(b, a, counts)
    for comparisons in (1, 3, 18):
        found = bootstrap.difference(b, a, counts, comparisons)
        bounds = np.quantile(gains, [0.025 / comparisons, 1 - 0.025 / comparisons])
        np.testing.assert_allclose((found.low, found.high), bounds)
        assert found.estimate == one.estimate and found.low <= one.low <= one.high <= found.high
