"""Class names to text embeddings: synonyms, prompt templates, background words."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax import clip
from dsolo_jax.checkpoints import Params
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.utils import cache
from dsolo_jax.utils.files import atomic
from dsolo_jax.utils.progress import progress

# What a background class is called by, where a benchmark has one: NACLIP's list for VOC21.
BACKGROUND_WORDS = (
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk",
    "bed", "building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain",
    "stair", "floor", "hill", "rail", "fence",
)  # fmt: skip

_PROMPTS_PER_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """C classes, and the Q queries (synonyms) that stand for them.

    classes: a class's own name, its first synonym.
    queries: every synonym, class by class.
    query_class: the class of each query.
    """

    classes: tuple[str, ...]
    queries: tuple[str, ...]
    query_class: tuple[int, ...]


def parse(classes: Sequence[str]) -> Vocabulary:
    """One string a class, synonyms separated by ", ".

    The same word may be a synonym of two classes (the field's COCO-Object list has such a one); two
    classes of the same first name could not be told apart.

    Raises:
        ValueError: no classes, an empty name, or a name given twice.
    """
    if isinstance(classes, str):
        raise ValueError(f"classes is the string {classes!r}; give a list, one string a class")
    synonyms = [[word.strip() for word in name.split(",")] for name in classes]
    if not synonyms:
        raise ValueError("no classes given; give at least one name, such as ['cat', 'sofa, couch']")
    for name, words in zip(classes, synonyms, strict=True):
        if not all(words):
            raise ValueError(f"class {name!r} has an empty name; write it as 'sofa, couch'")
        if len(set(words)) < len(words):
            raise ValueError(f"class {name!r} names a synonym twice; name each once")
    first_of = {}
    for number, (name, *_) in enumerate(synonyms):
        if first_of.setdefault(name, number) != number:
            raise ValueError(
                f"class {name!r} is given twice, as number {first_of[name]} and {number}; "
                "give each class once, or put another synonym first"
            )
    return Vocabulary(
        classes=tuple(words[0] for words in synonyms),
        queries=tuple(word for words in synonyms for word in words),
        query_class=tuple(c for c, words in enumerate(synonyms) for _ in words),
    )


def with_background(vocabulary: Vocabulary) -> Vocabulary:
    """Puts class 0, "background", before the others: `BACKGROUND_WORDS` that none of them names."""
    words = tuple(word for word in BACKGROUND_WORDS if word not in vocabulary.queries)
    return Vocabulary(
        classes=("background", *vocabulary.classes),
        queries=words + vocabulary.queries,
        query_class=(0,) * len(words) + tuple(c + 1 for c in vocabulary.query_class),
    )


def fold(
    scores: Float[Array, "Q ..."], query_class: Int[Array, "Q"], num_classes: int
) -> Float[Array, "C ..."]:
    """The largest score among a class's queries."""
    return jax.ops.segment_max(scores, query_class, num_classes)


def unfolded(vocabulary: Vocabulary) -> Vocabulary:
    """Every query a class of its own."""
    return Vocabulary(vocabulary.queries, vocabulary.queries, tuple(range(len(vocabulary.queries))))


@dataclasses.dataclass(frozen=True)
class BackgroundThreshold:
    """Class 0 is, besides its own pixels, where no query is probable: where the largest of

        P_q = exp(logit_scale s_q) / sum_q' exp(logit_scale s_q')

    is below `probability`.

    Source: prob_thd of NACLIP, SCLIP, ProxyCLIP and the others of the field.
    """

    probability: float
    logit_scale: float = 40.0


@dataclasses.dataclass(frozen=True)
class Decision:
    """Scores of queries in a pixel -> scores of classes there, the largest of which wins.

    query_class, num_classes: see `fold`.
    threshold: of class 0.
    """

    query_class: tuple[int, ...]
    num_classes: int
    threshold: BackgroundThreshold

    def __call__(self, scores: Float[Array, "Q ..."]) -> Float[Array, "C ..."]:
        """Folded, and the threshold t, in units of the scores, put under class 0:

            s_c = max over the queries q of c of s_q
            t   = (log sum_q exp(logit_scale s_q) + log probability) / logit_scale
            s_0 <- max(s_0, t)

        As log max_q P_q = logit_scale max_q s_q - log sum_q exp(logit_scale s_q), the largest
        probability is below `probability` just where max_c s_c < t. There class 0 has t, the
        largest score; everywhere else t is at most the largest score and changes no winner.
        """
        probability, scale = dataclasses.astuple(self.threshold)
        folded = fold(scores, np.array(self.query_class, np.int32), self.num_classes)
        t = (jax.nn.logsumexp(scale * scores, axis=0) + math.log(probability)) / scale
        return folded.at[0].max(t)


def prompts(queries: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every query in every template, query by query."""
    return [template.format(query) for query in queries for template in templates]


def embed(
    queries: Sequence[str],
    params: Params,
    config: clip.ClipConfig,
    tokenize: Callable,
    *,
    templates: Sequence[str] = IMAGENET_TEMPLATES,
) -> Float[np.ndarray, "Q D"]:
    """One vector a query: each prompt's embedding normalised, their mean, normalised.

    Prompts are sorted by length and run in batches cut to their longest one: the text tower is
    causal, so what is cut off could not have mattered. The result is kept on disk under a key of
    the text tower's weights, the queries and the templates.

    Args:
        queries: Q words.
        params, config: of `clip.load`.
        tokenize: of `clip.load_tokenizer`.
        templates: each with one "{}".

    Returns:
        float32 [Q, D], rows of length 1.

    Raises:
        ValueError: a prompt exceeds the text tower's context length, or has no direction.

    Source: the ensembling of OpenAI's CLIP for ImageNet, as every method of this field uses it.
    """
    path = cache.directory("text") / f"{_key(queries, params, config, templates)}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)

    texts = prompts(queries, templates)
    shortest_first = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [
        shortest_first[start : start + _PROMPTS_PER_BATCH]
        for start in range(0, len(texts), _PROMPTS_PER_BATCH)
    ]
    vectors = np.empty((len(texts), config.projection_dim), np.float32)
    for batch in progress(batches, len(batches), "text", unit="batches"):
        token_ids = tokenize([texts[i] for i in batch])
        # A short batch is filled up with its last prompt, so that few shapes are compiled.
        rows = min(_PROMPTS_PER_BATCH, -(-len(batch) // 16) * 16)
        token_ids = np.pad(token_ids, ((0, rows - len(batch)), (0, 0)), mode="edge")
        vectors[batch] = clip.encode_text(params, config, token_ids)[: len(batch)]

    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    for text, length in zip(texts, lengths[:, 0], strict=True):
        if not 0 < length < np.inf:
            raise ValueError(
                f"the text tower gives {text!r} a vector of length {length}: its weights are "
                "damaged or know none of these words; use other words or another CLIP"
            )
    mean = (vectors / lengths).reshape(len(queries), len(templates), -1).mean(axis=1)
    result = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    with atomic(path) as temporary:
        np.save(temporary, result)
    return result


def _key(queries, params, config, templates) -> str:
    said = repr((tuple(queries), tuple(templates), config)).encode()
    digest = hashlib.blake2b(said, digest_size=20)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["text"]):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8))
    return digest.hexdigest()
