"""The field's background rule: its words, and its threshold against plain probabilities."""

import numpy as np
import pytest

from dsolo_jax import pixels, upsample, vocabulary
from dsolo_jax.background import (
    BACKGROUND_WORDS,
    Decision,
    Threshold,
    decision,
    with_background,
)
from dsolo_jax.readings import resolve
from dsolo_jax.upsample import strips


def test_background_leaves_the_users_words_to_their_classes():
    words = with_background(vocabulary.parse(["cat", "sky, cloud"]))
    assert words.classes == ("background", "cat", "sky")
    assert words.queries[-3:] == ("cat", "sky", "cloud") and words.query_class[-3:] == (1, 2, 2)
    assert set(words.queries[:-3]) == set(BACKGROUND_WORDS) - {"sky", "cloud"}
    assert set(words.query_class[:-3]) == {0}


def probabilities(scores, scale):
    e = np.exp(scale * (scores - scores.max(axis=0)))
    return e / e.sum(axis=0)


@pytest.mark.parametrize("probability, scale", [(0.25, 10), (0.4, 40), (0.6, 55)])
def test_the_threshold_is_the_fields_rule_on_probabilities(probability, scale):
    """softmax over the queries, largest of each class, argmax; below the threshold class 0."""
    query_class = np.array([0, 0, 0, 1, 2, 2, 3, 4])
    scores = np.random.default_rng(0).normal(0.2, 0.05, (8, 40, 50))
    p = probabilities(scores, scale)
    of_class = np.stack([p[query_class == c].max(axis=0) for c in range(5)])
    expected = np.where(of_class.max(axis=0) < probability, 0, of_class.argmax(axis=0))
    decide = Decision(tuple(query_class.tolist()), 5, Threshold(probability, scale))
    ours = np.asarray(decide(scores.astype(np.float32))).argmax(axis=0)
    clear = np.abs(of_class.max(axis=0) - probability) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours[clear], expected[clear])
    assert 0.1 < (of_class.max(axis=0) < probability).mean() < 0.9


def test_the_threshold_leaves_the_other_scores_as_they_are():
    scores = np.random.default_rng(1).normal(size=(4, 30)).astype(np.float32)
    decided = np.asarray(Decision((0, 1, 2, 2), 3, Threshold(0.6, 2.0))(scores))
    np.testing.assert_array_equal(decided[1], scores[1])
    np.testing.assert_array_equal(decided[2], scores[2:].max(axis=0))
    assert (decided[0] >= scores[0]).all() and (decided[0] > scores[0]).any()


def test_logits_stay_those_of_queries_up_to_the_pixels_and_no_others():
    words, threshold = vocabulary.parse(["other", "sky, cloud"]), Threshold(0.1)
    assert decision(words, "logits", None) == decision(words, "velocity", None) == (words, None)
    solved, decide = decision(words, "logits", threshold)
    assert solved.classes == solved.queries == words.queries and solved.query_class == (0, 1, 2)
    assert (decide.query_class, decide.num_classes) == ((0, 1, 1), 2)
    solved, decide = decision(words, "velocity", threshold)
    assert solved == words and (decide.query_class, decide.num_classes) == ((0, 1), 2)
    assert decide.threshold == threshold


@pytest.mark.parametrize("form", ["bilinear", "pamr"])
@pytest.mark.parametrize("area", [0.0, 0.1, 0.25, 0.9])
@pytest.mark.parametrize("probability", [None, 0.35])
def test_the_area_threshold_is_sclips(probability, area, form):
    """From all probabilities: areas of the argmax, small classes to 0, argmax, threshold."""
    query_class, scale = np.array([0, 0, 1, 2, 2, 3, 4]), 9.0
    random = np.random.default_rng(2)
    # Some classes are rarer than others, and one is nowhere.
    scores = (
        random.normal(0.2, 0.1, (7, 6, 7)) - np.array([0, 0, 0, 0.05, 0.1, 0.12, 9])[:, None, None]
    )
    scores, picture = scores.astype(np.float32), random.integers(0, 256, (40, 52, 3), np.uint8)

    p = probabilities(upsample.scores(scores, picture, form=form).astype(np.float64), scale)
    of_class = np.stack([p[query_class == c].max(axis=0) for c in range(5)])
    areas = np.bincount(of_class.argmax(axis=0).ravel(), minlength=5)[1:]
    removed = areas <= area * areas.sum()
    of_class[1:][removed] = 0
    expected = of_class.argmax(axis=0)
    if probability is not None:
        assert 0.02 < (of_class.max(axis=0) < probability).mean() < 1
        expected[of_class.max(axis=0) < probability] = 0
    assert 1 <= removed.sum() <= 4

    decide = Decision(tuple(query_class.tolist()), 5, Threshold(probability, scale, area))
    readings = resolve(f"robust,upsample={form}")
    labels, none = pixels.to_pixels(picture, scores, readings, decide)()
    np.testing.assert_array_equal(labels, expected)
    labels, found = pixels.to_pixels(picture, scores, readings, decide, return_scores=True)()
    np.testing.assert_array_equal(labels, expected)
    assert none is None and (np.isneginf(found[1:]).all(axis=(1, 2)) == removed).all()


def test_which_classes_are_removed_is_no_other_program():
    random, decide = np.random.default_rng(0), Decision((0, 1, 2), 3, Threshold(0.3, 9.0, 0.2))
    picture, kept = random.integers(0, 256, (30, 33, 3), np.uint8), set()
    for _ in range(6):
        scores = random.normal(size=(3, 1, 1)).astype(np.float32) + np.zeros((3, 3, 4), np.float32)
        scores += 0.6 * random.normal(size=scores.shape).astype(np.float32)
        _, found = pixels.to_pixels(
            picture, scores, resolve("robust"), decide, return_scores=True
        )()
        kept.add(tuple(np.isfinite(found).all(axis=(1, 2)).tolist()))
        compiled = strips._program._cache_size()
        first = compiled if len(kept) == 1 else first
        assert compiled == first
    assert len(kept) > 1


def test_areas_are_the_pixels_of_each_label():
    scores = np.random.default_rng(0).normal(size=(4, 5, 5)).astype(np.float32)
    picture = np.random.default_rng(1).integers(0, 256, (41, 37, 3), np.uint8)
    for form in ("bilinear", "pamr"):
        labels = upsample.labels(scores, picture, form=form)()
        areas = upsample.areas(scores, picture, form=form, num_labels=6)
        np.testing.assert_array_equal(areas, np.bincount(labels.ravel(), minlength=6))
