"""Class names to text embeddings: synonyms, prompt templates, background words."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax import clip
from dsolo_jax.checkpoints import Params
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.utils import cache, fingerprint
from dsolo_jax.utils.progress import progress

# Goes into every key: a change of what is kept, or of how it is made, is another number.
_CACHED = "text 3"


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
    """Splits one string a class into its synonyms, separated by ", ".

    Two classes may share a synonym, as in the field's COCO-Object list, but not their first name.

    Raises:
        TypeError: a dict or a set, or a class that is no string.
        ValueError: no classes, an empty name, or a name given twice.
    """
    wanted = "give a list, one string a class, such as ['cat', 'sofa, couch']"
    if isinstance(classes, str):
        raise ValueError(f"classes is the string {classes!r}; {wanted}")
    if isinstance(classes, Mapping | Set):
        raise TypeError(f"classes is a {type(classes).__name__}, {classes!r}; {wanted}")
    for name in classes:
        if not isinstance(name, str):
            raise TypeError(f"classes hold {name!r}, a {type(name).__name__}; {wanted}")
    synonyms = [[word.strip() for word in name.split(",")] for name in classes]
    if not synonyms:
        raise ValueError(f"no classes given; {wanted}")
    first_of: dict[str, int] = {}
    for number, words in enumerate(synonyms):
        name = ", ".join(words)
        if not all(words):
            raise ValueError(f"class {name!r} has an empty name; write it as 'sofa, couch'")
        if len(set(words)) < len(words):
            raise ValueError(f"class {name!r} names a synonym twice; name each once")
        if first_of.setdefault(words[0], number) != number:
            raise ValueError(
                f"class {words[0]!r} is given twice, as number {first_of[words[0]]} and {number}; "
                "give each class once, or put another synonym first"
            )
    return Vocabulary(
        classes=tuple(words[0] for words in synonyms),
        queries=tuple(word for words in synonyms for word in words),
        query_class=tuple(c for c, words in enumerate(synonyms) for _ in words),
    )


def fold(
    scores: Float[Array, "Q ..."], query_class: Int[Array | np.ndarray, "Q"], num_classes: int
) -> Float[Array, "C ..."]:
    """Takes the largest score among a class's queries."""
    return jax.ops.segment_max(scores, query_class, num_classes)


def embed(
    queries: Sequence[str],
    params: Params,
    config: clip.ClipConfig,
    tokenizer: str,
    weights: str,
    *,
    templates: Sequence[str] = IMAGENET_TEMPLATES,
) -> Float[np.ndarray, "Q D"]:
    """Embeds words: each prompt's embedding normalised, their mean over the templates, normalised.

    Each word's is kept on disk, under a key of the text tower's weights and config and the token
    ids, so that only words that are new cost anything.

    Args:
        params, config: of `clip.load`.
        tokenizer: where its tokenizer is, see `clip.load_tokenizer`.
        weights: fingerprint of the text tower's parameters.
        templates: each with one "{}".

    Returns:
        float32 [Q, D], rows of length 1.

    Raises:
        ValueError: a prompt exceeds the text tower's context length, or has no direction.

    Source: the ensembling of OpenAI's CLIP for ImageNet, as every method of this field uses it.
    """
    found: dict[str, Any] = {}
    new = {}
    for query in dict.fromkeys(queries):
        word = _word(query, tokenizer, config.text, weights, tuple(templates))
        found[query] = cache.load(word.entry, (config.projection_dim,))
        if found[query] is None:
            new[query] = word

    # A word's prompts are by themselves: its embedding is its own to the bit, whatever is asked
    # beside it.
    for query, (texts, ids, entry) in progress(new.items(), len(new), "text", unit="words"):
        lengths = (ids == ids[:, -1:]).argmax(axis=1) + 1  # rows end in end tokens
        vectors = np.empty((len(ids), config.projection_dim), np.float32)
        # The shorter and the longer half are each cut to their longest: the text tower is causal.
        # Lengths go up in fours, so that few shapes are compiled.
        for half in np.array_split(np.argsort(lengths, kind="stable"), min(2, len(ids))):
            length = min(-(-lengths[half].max() // 4) * 4, ids.shape[1])
            vectors[half] = clip.encode_text(params, config, ids[half, :length])
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        for text, norm in zip(texts, norms[:, 0], strict=True):
            if not 0 < norm < np.inf:
                raise ValueError(
                    f"the text tower gives {text!r} a vector of length {norm}: its weights are "
                    "damaged or know none of these words; use other words or another CLIP"
                )
        mean = (vectors / norms).mean(axis=0)
        found[query] = mean / np.linalg.norm(mean)
        cache.save(entry, found[query])
    return np.stack([found[query] for query in queries])


class _Word(NamedTuple):
    """A word's prompts, their token ids, and where its embedding is kept."""

    texts: tuple[str, ...]
    ids: Int[np.ndarray, "P L"]
    entry: str


@functools.lru_cache(maxsize=1024)  # each question has its words looked up
def _word(
    query: str, tokenizer: str, config: clip.TextConfig, weights: str, templates: tuple[str, ...]
) -> _Word:
    texts = tuple(template.format(query) for template in templates)
    ids = tokenizer_of(tokenizer, config)(texts)
    of_word = weights, repr(config), f"{len(templates)} {ids.shape}", ids.tobytes().hex()
    return _Word(texts, ids, f"text/{fingerprint.of_strings(_CACHED, *of_word)}.npy")


@functools.lru_cache
def tokenizer_of(
    source: str, config: clip.TextConfig
) -> Callable[[Sequence[str]], Int[np.ndarray, "P L"]]:
    """Loads the tokenizer of a CLIP and checks it against its text tower, once."""
    return clip.load_tokenizer(source, config.max_position_embeddings, config)
