"""Sentences about scenes: the only thing a network learns the classes' names from."""

import numpy as np

from dsolo_jax.datasets.miniature.scenes import Item, Scene
from dsolo_jax.datasets.miniature.words import CLASSES, NUM_STUFF

_TEMPLATES = (
    "{}",
    "{}.",
    "a photo of {}.",
    "a picture of {}.",
    "an image of {}.",
    "a scene with {}.",
    "there is {}.",
    "{} in the scene.",
    "a photo of {} in the scene.",
    "we see {}.",
)
_SINGLE = 0.15  # of the captions name one item
_NAMED = 0.8  # of the items in the others
_COLOUR = 0.4  # of the things are named with their colour
_PATTERN = 0.3  # and with their pattern


def captions(scene: Scene, rng: np.random.Generator, n: int) -> list[str]:
    """n sentences, each about some of what the scene shows, in random order and words."""
    return [_caption(scene.items, rng) for _ in range(n)]


def _caption(items: tuple[Item, ...], rng: np.random.Generator) -> str:
    order = rng.permutation(len(items))
    single = rng.random() < _SINGLE
    named = [items[i] for i in order if rng.random() < _NAMED and not single]
    phrases = [_phrase(item, rng) for item in named or [items[order[0]]]]
    *first, last = phrases
    listed = f"{', '.join(first)} and {last}" if first else last
    return _TEMPLATES[rng.integers(len(_TEMPLATES))].format(listed)


def _phrase(item: Item, rng: np.random.Generator) -> str:
    """A thing with an article and perhaps its look; stuff as it is."""
    if item.index < NUM_STUFF:
        return CLASSES[item.index]
    words = [CLASSES[item.index]]
    if rng.random() < _PATTERN:
        words.insert(0, item.pattern)
    if rng.random() < _COLOUR:
        words.insert(0, item.colour)
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
