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
from experiments.training.captioned import Canvas, enumerated
from experiments.training.contrastive import embed_pictures, embed_texts

_SENTENCES = 5  # written for a picture, as in COCO; the one that enumerates most is asked for
AMONG = 256  # pictures and sentences the right one is looked for
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
    """R@1 both ways among `AMONG`, and mean average precision of presence: of stuff, of things, and
    of things by whether train shows such ones."""
    pictures = _embed(_pictures, given.pictures, params, config)
    captions = _embed(_texts, tokenize(given.captions), params, config)
    prompts = [form.format(name) for name in miniature.CLASSES for form in IMAGENET_TEMPLATES]
    classes = _embed(_texts, tokenize(prompts), params, config).reshape(
        len(miniature.CLASSES), -1, config.projection_dim
    )
    scores = pictures @ classes.mean(axis=1).T / np.linalg.norm(classes.mean(axis=1), axis=-1)
    groups = [slice(i, i + AMONG) for i in range(0, len(pictures), AMONG)]
    found = [recall(pictures[g] @ captions[g].T, given.captions[g]) for g in groups]
    stuff, things = np.split(np.arange(len(miniature.CLASSES)), [miniature.NUM_STUFF])
    present, unseen = given.present, given.unseen
    # Of seen things those scenes are left out that hold an unseen one, and the other way round.
    cases = {
        "map_stuff": (stuff, present, np.ones_like(present)),
        "map_things": (things, present, np.ones_like(present)),
        "map_things_seen": (things, present & ~unseen, ~unseen),
        "map_things_unseen": (things, unseen, unseen | ~present),
    }
    to_text, to_picture = np.mean(found, axis=0)
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
    """Average precision of ranking the pictures asked of a class by its score, mean over the
    classes that are true of some."""
    columns = zip(scores.T, true.T, asked.T, strict=True)
    return float(np.mean([precision(s[a], t[a]) for s, t, a in columns if t[a].any()] or [np.nan]))


def precision(scores: Float[np.ndarray, "n"], true: Bool[np.ndarray, "n"]) -> float:
    """Average precision: mean, over the true ones, of the share of true ones down to their rank."""
    ranked = true[np.argsort(-scores, kind="stable")]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())


def _embed(embed, inputs: np.ndarray, params: Params, config: ClipConfig) -> np.ndarray:
    batches = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
    return np.concatenate([np.asarray(embed(params, batch, config)) for batch in batches])


@partial(jax.jit, static_argnames="config")
def _pictures(params, pictures, config):
    return embed_pictures(params, jnp.asarray(pictures), config)


@partial(jax.jit, static_argnames="config")
def _texts(params, tokens, config):
    return embed_texts(params, tokens, config)
