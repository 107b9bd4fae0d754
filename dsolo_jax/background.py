"""The field's background rule, whole: words that stand for it, and a threshold on probability.

Where a benchmark has a background, it is class 0. It is scored by its words, as every class is by
its own; and the field's methods, which score by logits, add a threshold (`Threshold`).
"""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Float

from dsolo_jax.vocabulary import Vocabulary, fold

# What a background class is called by, where a benchmark has one: NACLIP's list for VOC21.
BACKGROUND_WORDS = (
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk",
    "bed", "building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain",
    "stair", "floor", "hill", "rail", "fence",
)  # fmt: skip


def with_background(vocabulary: Vocabulary) -> Vocabulary:
    """Puts class 0, "background", before the others: `BACKGROUND_WORDS` that none of them names."""
    words = tuple(word for word in BACKGROUND_WORDS if word not in vocabulary.queries)
    return Vocabulary(
        classes=("background", *vocabulary.classes),
        queries=words + vocabulary.queries,
        query_class=(0,) * len(words) + tuple(c + 1 for c in vocabulary.query_class),
    )


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Class 0 is, besides its own pixels, where the largest of

        P_q = exp(logit_scale s_q) / sum_q' exp(logit_scale s_q')

    is below `probability`. Source: prob_thd of NACLIP, SCLIP, ProxyCLIP and others.
    """

    probability: float
    logit_scale: float = 40.0


@dataclasses.dataclass(frozen=True)
class Decision:
    """Turns scores of queries in a pixel into scores of classes there, the largest of which wins.

    query_class, num_classes: see `fold`. threshold: of class 0.
    """

    query_class: tuple[int, ...]
    num_classes: int
    threshold: Threshold

    def __call__(self, scores: Float[Array, "Q ..."]) -> Float[Array, "C ..."]:
        """Folds the scores, and puts the threshold t, in their units, under class 0:

            s_c = max over the queries q of c of s_q
            t   = (log sum_q exp(logit_scale s_q) + log probability) / logit_scale
            s_0 <- max(s_0, t)

        The largest probability is below `probability` just where max_c s_c < t. There class 0 has
        the largest score, t; everywhere else t is at most the largest and changes no winner.
        """
        probability, scale = dataclasses.astuple(self.threshold)
        folded = fold(scores, np.array(self.query_class, np.int32), self.num_classes)
        t = (jax.nn.logsumexp(scale * scores, axis=0) + math.log(probability)) / scale
        return folded.at[0].max(t)


def decision(
    words: Vocabulary, method: str, threshold: Threshold | None
) -> tuple[Vocabulary, Decision | None]:
    """Says what is scored on the patches, and what is made of the scores in a pixel.

    The logits stay those of queries up to the pixels, as the probabilities are over all of them.
    The other methods give scores of classes, and a threshold is taken of these as if they were
    logits. Without a threshold the largest score wins, and the second answer is None.
    """
    if threshold is None:
        return words, None
    classes = len(words.classes)
    if method != "logits":
        return words, Decision(tuple(range(classes)), classes, threshold)
    alone = Vocabulary(words.queries, words.queries, tuple(range(len(words.queries))))
    return alone, Decision(words.query_class, classes, threshold)
