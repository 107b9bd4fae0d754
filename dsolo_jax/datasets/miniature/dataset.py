"""The miniature world as a benchmark: drawn as it is read, so nothing is stored or downloaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsolo_jax.datasets.benchmark import IGNORE, Dataset, Encoded
from dsolo_jax.datasets.miniature.captions import captions
from dsolo_jax.datasets.miniature.scenes import SPLITS, Scene, draw
from dsolo_jax.datasets.miniature.words import CLASSES, NUM_STUFF, THINGS
from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol
from dsolo_jax.images import encode_png
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.progress import progress

NAME = "miniature"

# Pictures of train are for captions; it goes on beyond these for whoever draws more.
COUNTS = {"train": 4096, "tune": 320, "validation": 512}

# Stored labels: the classes, and behind them the things again, where train never shows such a one.
_UNSEEN = len(THINGS)
_LABEL_TABLE = {
    **{index: index for index in range(len(CLASSES))},
    **{index + _UNSEEN: index for index in range(NUM_STUFF, len(CLASSES))},
    IGNORE: IGNORE,
}
SUBSETS = {
    "seen": frozenset(range(NUM_STUFF, len(CLASSES))),
    "unseen": frozenset(range(len(CLASSES), len(CLASSES) + _UNSEEN)),
}


def load(
    split: str = "validation", seed: int = 0, *, protocol: Protocol = PROTOCOLS[NAME]
) -> Dataset:
    """A split of the world of that seed; ValueError if there is none.

    Labels of train are ignored throughout: whoever learns there has the captions alone.
    """
    choose(f"split of {NAME}", split, SPLITS)
    if seed < 0:
        raise ValueError(f"the seed of the miniature world is {seed}; wanted 0 or more")

    def encoded(index: int) -> Encoded:
        scene = draw(seed, index, split=split)
        labels = _stored_labels(scene, split)
        name = f"{NAME} {split} {index} of seed {seed}"
        return Encoded(
            encode_png(scene.image), encode_png(labels), f"{name} (picture)", f"{name} (labels)"
        )

    return Dataset(
        name=NAME,
        names=CLASSES,
        classes=CLASSES,
        ids=tuple(f"{split}_{index:05d}" for index in range(COUNTS[split])),
        label_table=_LABEL_TABLE,
        encoded=encoded,
        hint="the world draws no such label",
        protocol=protocol,
        subsets=SUBSETS,
    )


def prepare(data_dir: str | Path, seed: int = 0, *, overwrite: bool = False) -> Path:
    """Writes the world of that seed as a TFDS dataset: pictures, labels as they are stored (255
    throughout in train) and four captions a picture. Where it is there already nothing is done,
    unless `overwrite`. Returns the folder, for `tfds.builder_from_directory`.
    """
    import tensorflow_datasets as tfds  # half a second

    from dsolo_jax.datasets import prepared

    def examples(split: str, number: int) -> Iterator[dict[str, Any]]:
        ids = load(split, seed).ids
        for index, id in enumerate(progress(ids, len(ids), f"{NAME} {split}")):
            scene = draw(seed, index, split=split)
            yield {
                "id": id,
                "image": encode_png(scene.image),
                "labels": encode_png(_stored_labels(scene, split)),
                "captions": captions(scene, np.random.default_rng((seed, number, index)), 4),
            }

    place = Path(data_dir).expanduser() / f"world_{seed}" / NAME / prepared.VERSION
    if overwrite or not place.exists():
        prepared.build(
            place,
            {split: examples(split, number) for number, split in enumerate(COUNTS)},
            "Drawn scenes of textured stuff and things, with exact labels and captions",
            {"captions": tfds.features.Sequence(tfds.features.Text())},
        )
    return place


def _stored_labels(scene: Scene, split: str) -> np.ndarray:
    """Labels with things of unseen colour or pattern set apart, uint8 [H, W]; none in train."""
    if split == "train":
        return np.full_like(scene.labels, IGNORE)
    stored = scene.labels.copy()
    for item in scene.items:
        if not item.seen:
            stored[scene.labels == item.index] += _UNSEEN
    return stored
