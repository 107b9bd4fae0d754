"""What a trained CLIP knows of whole pictures: which sentence is whose, and what is there."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dsolo_jax.datasets import miniature
from dsolo_jax.templates import IMAGENET_TEMPLATES
from experiments.training.captioned import Canvas, enumerated

_SENTENCES = 5  # written for a picture, as in COCO; the one that enumerates most is asked for
AMONG = 256  # pictures and sentences the right one is looked for
_BATCH = 64


class Examples(NamedTuple):
    """Pictures, a sentence of each, what is present, and which of it train never shows so."""

    pictures: list[np.ndarray]
    captions: list[str]
    present: Bool[np.ndarray, "n C"]
    unseen: Bool[np.ndarray, "n C"]


def examples(seed: int, split: str, canvas: Canvas, count: int) -> Examples:
    """Draws the first `count` scenes of a split."""
    scenes = [canvas.draw(seed, i, split) for i in range(count)]
    present, unseen = np.zeros((2, count, len(miniature.CLASSES)), bool)
    captions = []
    for i, scene in enumerate(scenes):
        texts = miniature.captions(scene, np.random.default_rng((seed, i)), _SENTENCES)
        captions.append(max(texts, key=lambda text: len(enumerated(text))))
        for item in scene.items:
            present[i, item.index], unseen[i, item.index] = True, not item.seen
    return Examples([scene.image for scene in scenes], captions, present, unseen)


def report(
    given: Examples,
    embed_pictures: Callable[[np.ndarray], np.ndarray],
    embed_texts: Callable[[Sequence[str]], np.ndarray],
) -> dict[str, float]:
    """Measures `recall` among `AMONG`, and `mean_precision` of what is there, by kind.

    Args:
        embed_pictures: gives embeddings [n, D] of pictures uint8 [n, S, S, 3].
        embed_texts: gives those of texts.
    """
    pictures = _embed(embed_pictures, np.stack(given.pictures))
    captions = _embed(embed_texts, given.captions)
    prompts = [form.format(name) for name in miniature.CLASSES for form in IMAGENET_TEMPLATES]
    classes = (
        _embed(embed_texts, prompts)
        .reshape(len(miniature.CLASSES), len(IMAGENET_TEMPLATES), -1)
        .mean(1)
    )
    scores = pictures @ classes.T / np.linalg.norm(classes, axis=-1)
    groups = [slice(i, i + AMONG) for i in range(0, len(pictures), AMONG)]
    found = [recall(pictures[g] @ captions[g].T, given.captions[g]) for g in groups]
    to_text, to_picture = np.mean(found, axis=0)
    stuff, things = slice(miniature.NUM_STUFF), slice(miniature.NUM_STUFF, None)
    present, unseen, everywhere = given.present, given.unseen, np.ones_like(given.present)
    # Of seen things those scenes are left out that hold an unseen one, and the other way round.
    cases = {
        "map_stuff": (stuff, present, everywhere),
        "map_things": (things, present, everywhere),
        "map_things_seen": (things, present & ~unseen, ~unseen),
        "map_things_unseen": (things, unseen, unseen | ~present),
    }
    return {"image_to_text": float(to_text), "text_to_image": float(to_picture)} | {
        name: mean_precision(scores[:, c], true[:, c], asked[:, c])
        for name, (c, true, asked) in cases.items()
    }


def recall(similar: Float[np.ndarray, "n n"], captions: Sequence[str]) -> tuple[float, float]:
    """R@1 of pictures (rows) to their captions and back; equal captions are equally right."""
    same = np.array([[a == b for b in captions] for a in captions])
    each = np.arange(len(captions))
    return same[each, similar.argmax(1)].mean(), same[similar.argmax(0), each].mean()


def mean_precision(
    scores: Float[np.ndarray, "n C"], true: Bool[np.ndarray, "n C"], asked: Bool[np.ndarray, "n C"]
) -> float:
    """Means `precision` over the classes that are true of some pictures asked of them."""
    columns = zip(scores.T, true.T, asked.T, strict=True)
    return float(np.mean([precision(s[a], t[a]) for s, t, a in columns if t[a].any()] or [np.nan]))


def precision(scores: Float[np.ndarray, "n"], true: Bool[np.ndarray, "n"]) -> float:
    """Average precision: mean, over the true ones, of the share of true ones down to their rank."""
    ranked = true[np.argsort(-scores, kind="stable")]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())


def _embed(embed: Callable, inputs: Sequence) -> Float[np.ndarray, "n D"]:
    """Embeds in batches, to length 1."""
    starts = range(0, len(inputs), _BATCH)
    found = np.concatenate([embed(inputs[i : i + _BATCH]) for i in starts])
    return found / np.linalg.norm(found, axis=-1, keepdims=True)
