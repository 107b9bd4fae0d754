"""The rule by which readings are chosen, on tallies made up for it."""

import dataclasses

import numpy as np
import pytest

from dsolo_jax.readings import BUNDLES, Readings
from experiments import bootstrap, study
from experiments.bootstrap import Tally

SCENES = 60
BASE = Readings(tau=0.3, presence=0.5, temperature=0.1)
COUNTS = bootstrap.draws(SCENES, 300)
OPTIONS = {"tau": (0.1, 0.3, 0.7), "presence": (0.5, 1.0), "temperature": (0.1, 0.2)}


def world(quality, noise=0.0):
    """A measurement in which each scene's two classes have the IoU `quality(readings)`."""
    asked = []

    def measure(variants):
        asked.append(list(variants))
        found = {}
        for label, r in variants.items():
            seed = abs(hash((r.tau, r.presence, r.temperature))) % 2**32
            shares = quality(r) + noise * np.random.default_rng(seed).normal(size=(SCENES, 2))
            union = np.full((SCENES, 2), 1000)
            found[label] = Tally((union * shares).astype(int), union)
        return found

    return measure, asked


def test_gains_of_several_readings_are_taken_together():
    measure, _ = world(lambda r: 0.4 + 0.1 * (r.tau == 0.7) + 0.05 * (r.presence == 1.0))
    found, steps = study.search(BASE, OPTIONS, measure, COUNTS)
    assert (found.tau, found.presence, found.temperature) == (0.7, 1.0, 0.1)
    assert steps[0].taken == {"tau": 0.7, "presence": 1.0}
    assert steps[0].gains["tau=0.7"].estimate == pytest.approx(10, abs=0.2)
    assert steps[1].taken == {}  # a second round finds nothing


def test_what_hurts_together_leaves_the_best_alone():
    def quality(r):
        changed = (r.tau == 0.7, r.presence == 1.0)
        return {(True, False): 0.5, (False, True): 0.45, (True, True): 0.3}.get(changed, 0.4)

    found, steps = study.search(BASE, OPTIONS, world(quality)[0], COUNTS, rounds=1)
    assert steps[0].taken == {"tau": 0.7} and found == dataclasses.replace(BASE, tau=0.7)


def test_a_gain_within_noise_is_not_taken():
    measure, asked = world(lambda r: 0.4 + 0.001 * (r.tau == 0.1), noise=0.2)
    found, steps = study.search(BASE, {"tau": (0.1, 0.3)}, measure, COUNTS)
    assert found == BASE and steps[0].taken == {} and len(asked) == 1
    low, _, high = steps[0].gains["tau=0.1"]
    assert low < 0 < high


def test_rows_are_held_to_the_logits_of_their_own_start():
    found = Readings(start="kk", presence=2.0)
    chosen = {("robust", "clip", "velocity"): (found, [])}
    settings, compared = study.held_out(chosen)
    logits, propagate = compared["robust, clip, chosen, velocity"]
    assert settings[logits].method == "logits" and settings[propagate].method == "propagate"
    assert settings[logits].readings == Readings(start="kk", presence=0.0)
    assert settings[propagate].readings == found
    bundle = settings["robust, clip, bundle, velocity"]
    assert bundle == ("velocity", BUNDLES["robust"], (("attention", "clip"),))

    ious = dict.fromkeys(settings, 0.2) | {"robust, clip, chosen, velocity": 0.5, propagate: 0.4}
    tallies = {
        label: Tally(np.full((SCENES, 2), round(100 * iou)), np.full((SCENES, 2), 100))
        for label, iou in ious.items()
    }
    rows = {row.label: row for row in study.report(tallies, compared, COUNTS)}
    row = rows["robust, clip, chosen, velocity"]
    estimates = [interval.estimate for interval in row[1:]]
    np.testing.assert_allclose(estimates, [50, 30, 10])
    text = study.markdown(list(rows.values()), chosen)
    assert "| robust, clip, chosen, velocity | 50.00 [50.00, 50.00] | 30.00" in text


def test_a_start_turned_over_is_inverted():
    maps = np.random.default_rng(0).normal(size=(3, 50))
    assert study.rank_correlation(maps, maps) == pytest.approx(1)
    assert study.rank_correlation(maps, -maps) == pytest.approx(-1)


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).normal(size=(2, 3, 50))
    expected = np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert study.rank_correlation(a, b) == pytest.approx(expected)
