"""Sentences about scenes: the only thing a network learns the classes' names from."""

import numpy as np

from dsolo_jax.datasets.miniature.scenes import Item, Scene
from dsolo_jax.datasets.miniature.words import CLASSES, STUFF
from dsolo_jax.templates import IMAGENET_TEMPLATES

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
_SINGLE = 0.2  # of the captions name one item
_PROMPT = 0.5  # of those do it in the words that classes are asked for with
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
    if not named:
        phrase = _phrase(items[order[0]], rng)
        if rng.random() < _PROMPT:
            return _pick(IMAGENET_TEMPLATES, rng).format(phrase)
        return _pick(_TEMPLATES, rng).format(_with_article(phrase))
    *first, last = [_with_article(_phrase(item, rng)) for item in named]
    listed = f"{', '.join(first)} and {last}" if first else last
    return _pick(_TEMPLATES, rng).format(listed)


def _phrase(item: Item, rng: np.random.Generator) -> str:
    """The class's name, behind a thing's colour and pattern at times."""
    words = [CLASSES[item.index]]
    for look, share in ((item.pattern, _PATTERN), (item.colour, _COLOUR)):
        if look is not None and rng.random() < share:
            words.insert(0, look)
    return " ".join(words)


def _with_article(phrase: str) -> str:
    if phrase in STUFF:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _pick(templates: tuple[str, ...], rng: np.random.Generator) -> str:
    return templates[rng.integers(len(templates))]
