"""A dataset of one's own: a folder of pictures, a folder of index PNGs, a class file."""

from pathlib import Path

from dsolo_jax.datasets.benchmark import IGNORE, Dataset, Pair
from dsolo_jax.datasets.classes import read_classes
from dsolo_jax.datasets.layouts import named
from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol
from dsolo_jax.vocabulary import parse

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}


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
    pictures = _by_stem(images, PICTURES, "pictures")
    maps = _by_stem(labels, {".png"}, "labels")
    missing = [f"{stem}.png" for stem in pictures if stem not in maps]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pictures)} pictures of {images} have no labels in {labels}: "
            f"missing {named(missing)}"
        )
    pairs = [Pair(stem, picture, maps[stem]) for stem, picture in pictures.items()]
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
    )


def _by_stem(folder: str | Path, suffixes: set[str], what: str) -> dict[str, Path]:
    folder = Path(folder).expanduser()
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
        endings = ", ".join(sorted(suffixes))
        raise FileNotFoundError(f"no {what} in {folder}: no file ends in {endings}")
    return found
