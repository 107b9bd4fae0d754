"""What a benchmark is, and the one kind of dataset every benchmark becomes."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol
from dsolo_jax.images import decode_labels, decode_upright

IGNORE = 255


class Encoded(NamedTuple):
    """One example as stored, with the names errors give its two parts."""

    image: bytes
    labels: bytes
    image_name: str
    labels_name: str


class Pair(NamedTuple):
    """Files of one example."""

    id: str
    image: Path
    labels: Path

    def encoded(self, label_bytes: Callable[[Path], bytes] = Path.read_bytes) -> Encoded:
        image, labels = self.image.read_bytes(), label_bytes(self.labels)
        return Encoded(image, labels, str(self.image), str(self.labels))


class Found(NamedTuple):
    """The files of a collection below a folder.

    coding: of their label maps.
    splits: the examples of each split there.
    official: pictures in each of these splits of the official set.
    """

    coding: str
    splits: dict[str, list[Pair]]
    official: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Collection:
    """Published pictures and label maps, prepared once for every benchmark on them.

    name: of the prepared folder.
    find: the files below a folder of an official layout, with label maps of the coding given, or of
        the first one there is.
    origin: where the original is to be had, and on what terms.
    hint: what to look at when a label map holds a value that it should not.
    label_bytes: a label map as an encoded picture of one index a pixel.
    """

    name: str
    find: Callable[[Path, str | None], Found]
    origin: str
    hint: str
    label_bytes: Callable[[Path], bytes] = Path.read_bytes


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published benchmark: a collection, and what its labels mean. How it is run: `protocols`.

    label_tables: for each coding of label maps it can be had from, each value they hold -> its
        label or `IGNORE`; before `reduce_zero_label`.
    """

    name: str
    collection: Collection
    label_tables: Mapping[str, Mapping[int, int]]

    def label_table(self, coding: str, protocol: Protocol) -> dict[int, int]:
        """Maps each stored value to a class index, or `IGNORE`; ValueError for another coding."""
        if coding not in self.label_tables:
            raise ValueError(
                f"{self.name} cannot be had from {coding} label maps, which hold too little; "
                f"prepare it from {' or '.join(self.label_tables)}"
            )
        table = self.label_tables[coding]
        if not protocol.reduce_zero_label:
            return dict(table)
        unchanged = {0: IGNORE, IGNORE: IGNORE}
        return {stored: unchanged.get(label, label - 1) for stored, label in table.items()}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples at random access: `dataset[i]` is dict(id, image, labels).

    `image` is uint8 [H, W, 3], `labels` int32 [H, W] holding class indices and `ignore` where a
    pixel does not count. Bad pictures and labels raise ValueError naming them.

    names: of the classes, by which results go.
    classes: words of each, synonyms after ", ".
    coding: which of the official label maps they are.
    official: pictures in this split of the official set, if there is one.
    files: short name of their sizes and times, where they lie in folders of the user's.
    subsets: stored label values whose pixels are scored apart too: `dataset[i]` then also holds
        "subsets", for each name which pixels they are, bool [H, W].
    """

    name: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    label_table: Mapping[int, int]
    encoded: Callable[[int], Encoded]
    hint: str
    protocol: Protocol = PROTOCOLS["folder"]
    ignore: int = IGNORE
    coding: str | None = None
    official: int | None = None
    files: str = ""
    subsets: Mapping[str, frozenset[int]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, stored, labels = decode(self.encoded(index), self.label_table, self.hint)
        example = {"id": self.ids[index], "image": image, "labels": labels}
        if self.subsets:
            example["subsets"] = {
                name: np.isin(stored, list(values)) for name, values in self.subsets.items()
            }
        return example


def decode(
    encoded: Encoded, table: Mapping[int, int], hint: str
) -> tuple[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "H W"], Int[np.ndarray, "H W"]]:
    """Decodes an example: its picture, its label map as stored and by `table`; ValueError for a
    part that does not decode, sizes that differ, a value that is not in the table."""
    picture = encoded.image_name
    image, is_turned = decode_upright(encoded.image, picture)
    stored = decode_labels(encoded.labels, encoded.labels_name)
    turned = f"{picture} is turned upright by its EXIF rotation, and its labels must be so too"
    if stored.shape != image.shape[:2]:
        (h, w), (H, W) = stored.shape, image.shape[:2]
        raise ValueError(
            f"{encoded.labels_name} is {h} x {w} (height x width), wanted the size of its picture "
            f"{picture}, {H} x {W}{f'; {turned}' if is_turned else ''}"
        )
    if is_turned:
        warnings.warn(turned, stacklevel=2)
    unknown = -1
    lookup = np.full(max(table) + 2, unknown, np.int32)
    lookup[list(table.keys())] = list(table.values())
    labels = lookup[np.minimum(stored, len(lookup) - 1)]
    wrong = stored[labels == unknown]
    if wrong.size:
        raise ValueError(
            f"{encoded.labels_name} holds the label {wrong.max()} ({wrong.size} pixels outside the "
            f"range), wanted {_ranges(table)}; {hint}"
        )
    return image, stored, labels


def _ranges(values: Mapping[int, int]) -> str:
    """Integers as text, runs shortened: "0..150, 255"."""
    known = np.array(sorted(values))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
