"""The field's background rule: its words, and its threshold against plain probabilities."""

import numpy as np
import pytest

from dsolo_jax import vocabulary
from dsolo_jax.background import (
    BACKGROUND_WORDS,
    Decision,
    Threshold,
    decision,
    with_background,
)


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
