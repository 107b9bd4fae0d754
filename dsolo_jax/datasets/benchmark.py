"""What a benchmark is, and the one kind of dataset every benchmark becomes."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsolo_jax.images import decode_image, decode_labels

IGNORE = 255

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
_LABELS = {".png"}
_LISTED = 5


class Pair(NamedTuple):
    """Files of one example."""

    id: str
    image: Path
    labels: Path


class Encoded(NamedTuple):
    """One example as stored, with the names errors give its two parts."""

    image: bytes
    labels: bytes
    image_name: str
    labels_name: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published benchmark: the part of it that differs from the others.

    Attributes:
        name: as on the command line.
        classes: one string a class, synonyms after ", ", in label order.
        label_table: each value of the official label files -> class index, or `IGNORE`.
        official_counts: pictures in each split of the official set.
        find: the files of each split present below a folder of the official layout.
        origin: where the original is to be had, and on what terms.
        hint: what to look at when a label value is not in `label_table`.
    """

    name: str
    classes: tuple[str, ...]
    label_table: Mapping[int, int]
    official_counts: Mapping[str, int]
    find: Callable[[Path], dict[str, list[Pair]]]
    origin: str
    hint: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples at random access: `dataset[i]` is dict(id, image, labels).

    `image` is uint8 [H, W, 3], `labels` int32 [H, W] holding class indices and `ignore` where a
    pixel does not count. Bad pictures and labels raise ValueError naming them.

    `subsets` names stored label values whose pixels are scored apart too: `dataset[i]` then also
    holds "subsets", for each name which pixels they are, bool [H, W].
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    label_table: Mapping[int, int]
    encoded: Callable[[int], Encoded]
    hint: str
    ignore: int = IGNORE
    subsets: Mapping[str, frozenset[int]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        encoded = self.encoded(index)
        image, labels = decode(encoded, self.label_table, self.hint)
        example = {"id": self.ids[index], "image": image, "labels": labels}
        if self.subsets:
            stored = decode_labels(encoded.labels, encoded.labels_name)
            example["subsets"] = {
                name: np.isin(stored, list(values)) for name, values in self.subsets.items()
            }
        return example


def decode(
    encoded: Encoded, label_table: Mapping[int, int], hint: str
) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [H, W, 3] and labels int32 [H, W] of an example, checked against each other.

    Raises:
        ValueError: a part that does not decode, sizes that differ, a value not in the table.
    """
    image = decode_image(encoded.image, encoded.image_name)
    stored = decode_labels(encoded.labels, encoded.labels_name)
    if stored.shape != image.shape[:2]:
        (h, w), (H, W) = stored.shape, image.shape[:2]
        raise ValueError(
            f"{encoded.labels_name} is {h} x {w} (height x width), wanted the size of its picture "
            f"{encoded.image_name}, {H} x {W}"
        )
    return image, _relabel(stored, label_table, encoded.labels_name, hint)


def _relabel(stored: np.ndarray, table: Mapping[int, int], name: str, hint: str) -> np.ndarray:
    unknown = -1
    lookup = np.full(max(table) + 2, unknown, np.int32)
    lookup[list(table.keys())] = list(table.values())
    labels = lookup[np.minimum(stored, len(lookup) - 1)]
    wrong = stored[labels == unknown]
    if wrong.size:
        raise ValueError(
            f"{name} holds the label {wrong.max()} ({wrong.size} pixels outside the range), "
            f"wanted {_ranges(table)}; {hint}"
        )
    return labels


def _ranges(values: Mapping[int, int]) -> str:
    """Integers as text, runs shortened: "0..150, 255"."""
    values = np.array(sorted(values))
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def shifted_labels(
    num_classes: int, *, offset: int = 0, ignore_stored: int = 255, ignore: int = IGNORE
) -> dict[int, int]:
    """Label table: `offset` is added to every stored value except `ignore_stored`.

    Stored values that become negative are ignored: with offset -1 that is the stored 0, as in
    mmseg's reduce_zero_label.
    """
    table = {label - offset: label for label in range(num_classes) if label >= offset}
    table |= {stored: ignore for stored in range(-offset)}
    if ignore_stored >= 0:
        table[ignore_stored] = ignore
    return table


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Classes of a text file: one a line, synonyms after ", ".

    Raises:
        FileNotFoundError, ValueError: no such file; no classes; an empty line between classes
            (every class after it would be off by one); synonyms separated by ";".
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no class file at {path}, wanted a text file: one class a line, synonyms after ', '"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    if not lines:
        raise ValueError(f"{path} is empty, wanted one class a line, synonyms after ', '")
    for number, line in enumerate(lines, 1):
        if not line:
            raise ValueError(
                f"line {number} of {path} is empty: the classes after it would get wrong labels; "
                "remove the line, or name the class"
            )
        if ";" in line:
            raise ValueError(f"line {number} of {path} is {line!r}: separate synonyms by ', '")
    return tuple(lines)


def matched(images: Path, labels: Path) -> list[Pair]:
    """Pictures of one folder with the label PNGs of another, by file stem, sorted by it.

    Labels without a picture are left aside; hidden files too.

    Raises:
        FileNotFoundError: a folder that is missing or has no such files, pictures without labels.
        ValueError: two files of one stem.
    """
    pictures, maps = _by_stem(images, _PICTURES, "pictures"), _by_stem(labels, _LABELS, "labels")
    missing = [stem for stem in pictures if stem not in maps]
    if missing:
        names = [f"{stem}.png" for stem in missing[:_LISTED]]
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(pictures)} pictures of {images} have no labels in {labels}: "
            f"missing {', '.join(names)}{more}"
        )
    return [Pair(stem, picture, maps[stem]) for stem, picture in pictures.items()]


def _by_stem(folder: Path, suffixes: set[str], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of {what} at {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.stem, path.suffix)):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(
                f"{found[path.stem].name} and {path.name} in {folder} have one name, wanted one "
                "file a stem; pictures and labels belong in folders of their own"
            )
        found[path.stem] = path
    if not found:
        raise FileNotFoundError(
            f"no {what} in {folder}: no file ends in {', '.join(sorted(suffixes))}"
        )
    return found
