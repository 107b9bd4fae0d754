"""The field's background rule, whole: words that stand for it, and a threshold on probability.

Where a benchmark has a background, it is class 0. It is scored by its words, as every class is by
its own; and the field's methods, which score by logits, add thresholds (`Threshold`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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

    is below `probability`, and nowhere is a class that has at most `area` of all pixels but class
    0's. None leaves either out. Source: prob_thd of NACLIP, SCLIP, ProxyCLIP and others; area_thd
    of SCLIP.
    """

    probability: float | None
    logit_scale: float = 40.0
    area: float | None = None


@dataclasses.dataclass(frozen=True)
class Decision:
    """Turns scores of queries in a pixel into scores of classes there, the largest of which wins.

    query_class, num_classes: see `fold`. threshold: of class 0.
    """

    query_class: tuple[int, ...]
    num_classes: int
    threshold: Threshold

    def __call__(
        self, scores: Float[Array, "Q ..."], kept: Bool[Array, "C"] | None = None
    ) -> Float[Array, "C ..."]:
        """Folds the scores, takes away classes that are not kept, and puts the threshold t of the
        probability, in units of the scores, under class 0:

            s_c = max over the queries q of c of s_q, or -inf
            t   = (log sum_q exp(logit_scale s_q) + log probability) / logit_scale
            s_0 <- max(s_0, t)

        The largest probability is below `probability` just where max_c s_c < t. There class 0 has
        the largest score, t; everywhere else t is at most the largest and changes no winner.
        """
        folded = fold(scores, np.array(self.query_class, np.int32), self.num_classes)
        if kept is not None:
            shape = (self.num_classes,) + (1,) * (folded.ndim - 1)
            folded = jnp.where(kept.reshape(shape), folded, -jnp.inf)
        probability, scale = self.threshold.probability, self.threshold.logit_scale
        if probability is None:
            return folded
        t = (jax.nn.logsumexp(scale * scores, axis=0) + math.log(probability)) / scale
        return folded.at[0].max(t)

    def first(self) -> "Decision | None":
        """Gives what decides the labels whose areas count, None where no area does: the probability
        does not yet."""
        if self.threshold.area is None:
            return None
        return dataclasses.replace(self, threshold=Threshold(None))

    def kept(self, areas: Int[Array, "C"]) -> Bool[Array, "C"]:
        """Says which classes stay, by their pixels in `first`'s labels.

        A class stays where its area is larger than `threshold.area` of all but class 0's.
        """
        foreground = jnp.sum(areas[1:]).astype(jnp.float32)
        return (areas > jnp.float32(self.threshold.area) * foreground).at[0].set(True)


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
