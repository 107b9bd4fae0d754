"""What a trained CLIP knows of whole pictures: which sentence is whose, and what is there."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import ClipConfig
from dsolo_jax.datasets import miniature
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.vocabulary import prompts
from experiments.training.captioned import Canvas, enumerated
from experiments.training.contrastive import embed_pictures, embed_texts

_SENTENCES = 5  # written for a picture, as in COCO; the one that enumerates most is asked for
_BATCH = 64


class Examples(NamedTuple):
    """Pictures, a sentence of each, what is present, and which of it train never shows so."""

    pictures: np.ndarray
    captions: list[str]
    present: Bool[np.ndarray, "n C"]
    unseen: Bool[np.ndarray, "n C"]


def examples(seed: int, split: str, canvas: Canvas, count: int) -> Examples:
    """The first `count` scenes of a split."""
    scenes = [canvas.draw(seed, i, split) for i in range(count)]
    captions, classes = [], len(miniature.CLASSES)
    present, unseen = np.zeros((2, count, classes), bool)
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, i))
        texts = miniature.captions(scene, rng, _SENTENCES)
        captions.append(max(texts, key=lambda text: len(enumerated(text))))
        for item in scene.items:
            present[i, item.index], unseen[i, item.index] = True, not item.seen
    return Examples(np.stack([scene.image for scene in scenes]), captions, present, unseen)


def report(
    params: Params,
    config: ClipConfig,
    given: Examples,
    tokenize: Callable[[Sequence[str]], np.ndarray],
) -> dict[str, float]:
    """R@1 both ways, and mean average precision of presence: stuff, things, unseen things."""
    pictures = np.concatenate(
        [
            _pictures(params, given.pictures[i : i + _BATCH], config)
            for i in range(0, len(given.pictures), _BATCH)
        ]
    )
    similar = pictures @ np.asarray(_texts(params, tokenize(given.captions), config)).T
    same = np.array([[a == b for b in given.captions] for a in given.captions])
    right = np.arange(len(similar))
    queries = tokenize(prompts(miniature.CLASSES, IMAGENET_TEMPLATES))
    classes = np.asarray(_texts(params, queries, config)).reshape(len(miniature.CLASSES), -1, 128)
    classes = classes.mean(axis=1)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    scores = pictures @ classes.T
    stuff = slice(None, miniature.NUM_STUFF)
    things = slice(miniature.NUM_STUFF, None)
    seen = given.present & ~given.unseen
    return {
        "image_to_text": float(same[right, similar.argmax(1)].mean()),
        "text_to_image": float(same[similar.argmax(0), right].mean()),
        "map_stuff": mean_precision(scores[:, stuff], given.present[:, stuff]),
        "map_things": mean_precision(scores[:, things], given.present[:, things]),
        "map_things_seen": mean_precision(
            scores[:, things], seen[:, things], ~given.unseen[:, things]
        ),
        "map_things_unseen": mean_precision(
            scores[:, things], given.unseen[:, things], ~seen[:, things]
        ),
    }


def mean_precision(
    scores: Float[np.ndarray, "n C"],
    true: Bool[np.ndarray, "n C"],
    asked: Bool[np.ndarray, "n C"] | None = None,
) -> float:
    """Average precision of ranking pictures by a class's score, mean over classes that are true
    somewhere; pictures that are not `asked` of a class are left out of its ranking."""
    asked = np.ones_like(true) if asked is None else asked
    return float(
        np.mean(
            [
                precision(s[a], t[a])
                for s, t, a in zip(scores.T, true.T, asked.T, strict=True)
                if t[a].any()
            ]
            or [np.nan]
        )
    )


def precision(scores: Float[np.ndarray, "n"], true: Bool[np.ndarray, "n"]) -> float:
    """Average precision: mean, over the true ones, of the share of true ones down to its rank."""
    ranked = true[np.argsort(-scores, kind="stable")]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())


@partial(jax.jit, static_argnames="config")
def _pictures(params, pictures, config):
    return embed_pictures(params, jnp.asarray(pictures), config)


@partial(jax.jit, static_argnames="config")
def _texts(params, tokens, config):
    return embed_texts(params, tokens, config)
