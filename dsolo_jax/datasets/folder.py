"""A dataset of one's own: a folder of pictures, a folder of index PNGs, a class file."""

from pathlib import Path

from dsolo_jax.datasets.benchmark import (
    IGNORE,
    Dataset,
    Encoded,
    matched,
    read_classes,
    shifted_labels,
)


def load_folder(
    images: str | Path,
    labels: str | Path,
    classes: str | Path,
    *,
    ignore: int = 255,
    label_offset: int = 0,
) -> Dataset:
    """Pictures and index PNGs matched by file stem; nothing is prepared or copied.

    Args:
        images: folder of pictures (JPEG, PNG, ...), not searched below.
        labels: folder of index PNGs; those without a picture are left aside.
        classes: text file, one class a line in label order, synonyms after ", ".
        ignore: stored value of pixels that do not count.
        label_offset: added to every stored value except `ignore`; what becomes negative is ignored.
            With -1 a stored 0 is ignored and a stored 1 is the first class, as in mmseg's
            reduce_zero_label.

    Returns:
        A dataset whose ignored pixels hold `dataset.ignore`: 255, or 65535 above 255 classes.

    Raises:
        FileNotFoundError, ValueError: a folder without pictures, pictures without labels (listed),
            two files of one stem, a class file that is missing or empty. On access: a file that
            does not decode, sizes that differ, a stored value outside the classes.
    """
    names = read_classes(classes)
    pairs = matched(Path(images).expanduser(), Path(labels).expanduser())
    ignored = IGNORE if len(names) <= IGNORE else 65535

    def encoded(index: int) -> Encoded:
        _, image, label_map = pairs[index]
        return Encoded(image.read_bytes(), label_map.read_bytes(), str(image), str(label_map))

    return Dataset(
        name="folder",
        classes=names,
        ids=tuple(pair.id for pair in pairs),
        label_table=shifted_labels(
            len(names), offset=label_offset, ignore_stored=ignore, ignore=ignored
        ),
        encoded=encoded,
        hint=f"{classes} has {len(names)} classes, ignore is {ignore}, label_offset {label_offset}",
        ignore=ignored,
    )
