"""A dataset of one's own: a folder of pictures, a folder of index PNGs, a class file."""

import unicodedata
from collections.abc import Iterable, Set
from pathlib import Path

from dsolo_jax.datasets.benchmark import IGNORE, Dataset, Pair
from dsolo_jax.datasets.classes import read_classes
from dsolo_jax.datasets.layouts import named
from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol
from dsolo_jax.utils import fingerprint
from dsolo_jax.utils.checks import check_ids
from dsolo_jax.vocabulary import parse

PICTURES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff"),
    *(".webp", ".avif", ".jp2"),
}


def load_folder(
    images: str | Path,
    labels: str | Path,
    classes: str | Path,
    *,
    ignore: int = 255,
    label_offset: int = 0,
    protocol: Protocol = PROTOCOLS["folder"],
) -> Dataset:
    """Matches pictures and index PNGs by file stem; nothing is prepared or copied.

    Args:
        images: folder of pictures (JPEG, PNG, ...), not searched below.
        labels: folder of index PNGs; those without a picture are left aside, hidden files too.
        classes: text file, one class a line in label order, synonyms after ", ".
        ignore: stored value of pixels that do not count.
        label_offset: added to every stored value except `ignore`; what becomes negative is ignored.
            With -1 a stored 0 is ignored and a stored 1 is the first class, as in mmseg's
            reduce_zero_label.
        protocol: how the classes are scored, see `protocols`.

    Returns:
        A dataset whose ignored pixels hold `dataset.ignore`: 255, or 65535 above 255 classes.

    Raises:
        FileNotFoundError, ValueError: a folder without pictures, pictures without labels (listed),
            two files of one stem, a class file that is missing or empty. On access: a file that
            does not decode, sizes that differ, a stored value outside the classes.
    """
    words = read_classes(classes)
    pictures = by_stem(files_in(images, PICTURES, "pictures"))
    maps = by_stem(files_in(labels, {".png"}, "labels"))
    missing = [f"{stem}.png" for stem in pictures if stem not in maps]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pictures)} pictures of {images} have no labels in {labels}: "
            f"missing {named(missing)}"
        )
    pairs = [Pair(stem, picture, maps[stem]) for stem, picture in pictures.items()]
    states = [path.stat() for pair in pairs for path in (pair.image, pair.labels)]
    ignored = IGNORE if len(words) <= IGNORE else 65535
    table = {label - label_offset: label for label in range(len(words)) if label >= label_offset}
    table |= {stored: ignored for stored in (*range(-label_offset), ignore) if stored >= 0}

    return Dataset(
        name="folder",
        names=parse(words).classes,
        classes=words,
        ids=tuple(pictures),
        label_table=table,
        encoded=lambda index: pairs[index].encoded(),
        hint=f"{classes} has {len(words)} classes, ignore is {ignore}, label_offset {label_offset}",
        protocol=protocol,
        ignore=ignored,
        files=fingerprint.of_strings(*(f"{s.st_size} {s.st_mtime_ns}" for s in states)),
    )


def files_in(folder: str | Path, suffixes: Set[str], what: str) -> list[Path]:
    """Lists the files of a folder that end so, not those below or hidden; an error if none does."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of {what} at {folder}")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes]
    shown = [path for path in files if not path.name.startswith(".")]
    if not shown:
        endings = ", ".join(sorted(suffixes))
        raise FileNotFoundError(f"no {what} in {folder}: no file ends in {endings}")
    return shown


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Sorts files by their names without suffix; ValueError if two have the same, or one cannot be
    in a table."""
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: path.stem):
        stem = unicodedata.normalize("NFC", path.stem)  # macOS takes accents apart
        if (other := found.setdefault(stem, path)) != path:
            raise ValueError(
                f"{other} and {path} have one name but for the suffix, and would be taken for one "
                "another; keep them in two folders"
            )
    check_ids([*found])
    return found
