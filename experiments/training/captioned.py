"""Captioned pictures of the miniature world for training, drawn once and kept in files.

No label is kept: a network learns from pictures and sentences alone. Letters: n scenes, S side of a
picture in pixels, L tokens of a caption, V nouns.
"""

import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from dsolo_jax.datasets import miniature
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
    """images uint8 [n, S, S, 3], tokens int16 [n, CAPTIONS, L], and what the sentences enumerate.

    members: how many things and stuff each caption enumerates, int8 [n, CAPTIONS].
    named: which of the nouns a scene's captions enumerate, bool [n, V]; nouns: those words.
    """

    images: UInt8[np.ndarray, "n S S 3"]
    tokens: Int[np.ndarray, "n k L"]
    members: Int[np.ndarray, "n k"]
    named: Bool[np.ndarray, "n V"]
    nouns: tuple[str, ...]


def enumerated(caption: str) -> list[str]:
    """The nouns of an enumeration, each the last word of a member; none if there is no second one.

    "a photo of a red star, sand and a ball." -> star, sand, ball
    """
    caption = caption.replace("black and white ", "")  # a photo's, of some prompts
    members = re.split(", | and ", caption.rstrip(".").removesuffix(" in the scene"))
    return [member.split()[-1] for member in members] if len(members) > 1 else []


def sentences(
    seed: int, index: int, canvas: Canvas
) -> tuple[UInt8[np.ndarray, "S S 3"], list[str]]:
    """Picture and captions of a scene of the split train."""
    scene = canvas.draw(seed, index, "train")
    # Canvases of one index share their scene's number, not their captions.
    rng = np.random.default_rng((seed, canvas.size, index))
    return scene.image, miniature.captions(scene, rng, CAPTIONS)


def load(
    folder: Path,
    seed: int,
    canvas: Canvas,
    count: int,
    tokenize: Callable[[Sequence[str]], Int[np.ndarray, "Q L"]],
) -> Captioned:
    """`count` scenes of a canvas, drawn and kept in `folder` the first time, then memory-mapped."""
    target = folder / f"{seed}_{canvas.size}_{count}"
    if not target.is_dir():
        temporary = folder / f".{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        try:
            _write(temporary, seed, canvas, count, tokenize)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    arrays = (np.load(target / f"{name}.npy", mmap_mode="r") for name in Captioned._fields[:-1])
    return Captioned(*arrays, nouns=tuple((target / "nouns.txt").read_text().split()))


def _write(folder, seed, canvas, count, tokenize) -> None:
    side = canvas.size + MARGIN
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, 3)
    )
    tokens, nouns = [], []
    for i in progress(range(count), count, f"scenes of {canvas.size} pixels", unit="scenes"):
        images[i], texts = sentences(seed, i, canvas)
        tokens.append(tokenize(texts).astype(np.int16))
        nouns.append([enumerated(text) for text in texts])
    images.flush()
    vocabulary = sorted({noun for scene in nouns for caption in scene for noun in caption})
    named = [[any(noun in caption for caption in scene) for noun in vocabulary] for scene in nouns]
    longest = max(rows.shape[1] for rows in tokens)
    tokens = [np.pad(rows, ((0, 0), (0, longest - rows.shape[1])), mode="edge") for rows in tokens]
    np.save(folder / "tokens.npy", np.stack(tokens))
    np.save(folder / "members.npy", np.array([[len(c) for c in s] for s in nouns], np.int8))
    np.save(folder / "named.npy", np.array(named))
    (folder / "nouns.txt").write_text("\n".join(vocabulary))
