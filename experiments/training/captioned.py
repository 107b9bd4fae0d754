"""Captioned pictures of the miniature world for training, drawn once and kept in files.

No label is kept: a network learns from pictures and sentences alone. Letters: n scenes, S side of a
picture in pixels, k captions of a scene, L tokens of a caption, V nouns.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from dsolo_jax.datasets import miniature
from dsolo_jax.utils.files import atomic, read_text, write_json
from dsolo_jax.utils.progress import progress

MARGIN = 8  # pixels a kept picture is larger than what is cut from it at random
CAPTIONS = 6  # kept for each scene


class Canvas(NamedTuple):
    """What scenes are drawn: side in pixels, least and largest number of things and of stuff."""

    size: int
    things: tuple[int, int]
    stuff: tuple[int, int]

    def draw(self, seed: int, index: int, split: str) -> miniature.Scene:
        """A scene; of train on a canvas that is larger by `MARGIN` pixels."""
        size = self.size + (MARGIN if split == "train" else 0)
        return miniature.draw(seed, index, size, split=split, things=self.things, stuff=self.stuff)


class Captioned(NamedTuple):
    """Pictures, the tokens of their k captions, and what these enumerate.

    members: how many things and stuff each caption enumerates.
    named: which of the nouns a scene's captions enumerate.
    """

    images: UInt8[np.ndarray, "n S S 3"]
    tokens: Int[np.ndarray, "n k L"]
    members: Int[np.ndarray, "n k"]
    named: Bool[np.ndarray, "n V"]
    nouns: list[str]


def enumerated(caption: str) -> list[str]:
    """The nouns of an enumeration, each the last word of a member; none if there is no second one.

    "a photo of a red star, sand and a ball." -> star, sand, ball
    """
    caption = caption.replace("black and white ", "")  # a photo's, of some prompts
    members = re.split(", | and ", caption.rstrip(".").removesuffix(" in the scene"))
    return [member.split()[-1] for member in members] if len(members) > 1 else []


def drawn(
    folder: Path, count: int, draw: Callable[[int], tuple[np.ndarray, list[str]]]
) -> tuple[UInt8[np.ndarray, "n S S 3"], list[list[str]]]:
    """Draws pictures and sentences of scenes, by number, or finds them in `folder`."""
    pictures, texts = folder / "pictures.npy", folder / "sentences.json"
    if not texts.is_file():
        sentences = []
        with atomic(pictures) as temporary:
            shape = count, *draw(0)[0].shape
            kept = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for i in progress(range(count), count, f"scenes of {shape[1]} pixels", unit="scenes"):
                kept[i], of_scene = draw(i)
                sentences.append(of_scene)
            kept.flush()
        write_json(texts, sentences)
    return np.load(pictures, mmap_mode="r"), json.loads(read_text(texts))


def train_scene(seed: int, canvas: Canvas, index: int) -> tuple[np.ndarray, list[str]]:
    """Draws a picture of the split train, and sentences about it."""
    scene = canvas.draw(seed, index, "train")
    # Canvases of one index share their scene's number, not their captions.
    rng = np.random.default_rng((seed, canvas.size, index))
    return scene.image, miniature.captions(scene, rng, CAPTIONS)


def squares(fields: np.ndarray, chosen: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    """Cuts a square out of each of the fields chosen; corners: [2, B], their rows and columns."""
    places = zip(chosen, *corners, strict=True)
    return np.stack([fields[i, y : y + side, x : x + side] for i, y, x in places])


def captioned(
    images: UInt8[np.ndarray, "n S S 3"],
    sentences: list[list[str]],
    tokenize: Callable[[Sequence[str]], Int[np.ndarray, "Q L"]],
) -> Captioned:
    """Tokenizes what `drawn` gives, and finds what the sentences enumerate."""
    nouns = [[enumerated(text) for text in texts] for texts in sentences]
    vocabulary = sorted({noun for scene in nouns for caption in scene for noun in caption})
    named = [[any(noun in caption for caption in scene) for noun in vocabulary] for scene in nouns]
    tokens = tokenize([text for texts in sentences for text in texts])
    return Captioned(
        images,
        tokens.reshape(len(images), CAPTIONS, -1),
        np.array([[len(caption) for caption in scene] for scene in nouns]),
        np.array(named),
        vocabulary,
    )
