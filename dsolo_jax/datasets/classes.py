"""Class files: one class a line, synonyms after commas."""

from pathlib import Path

from dsolo_jax.utils.files import read_text
from dsolo_jax.vocabulary import parse


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Reads the classes of a text file: one a line, synonyms after ", ".

    Raises:
        FileNotFoundError, ValueError: no such file; no classes; an empty line between classes
            (every class after it would be off by one); synonyms separated by ";"; a line of
            a list that holds more than names; names given twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no class file at {path}, wanted a text file: one class a line, synonyms after ', '"
        )
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
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
        if line.startswith(("#", "__")) or ":" in line:  # of labelme, of CVAT
            raise ValueError(
                f"line {number} of {path} is {line!r}, which names no class; wanted the names "
                "alone, the first that of the stored value 0"
            )
    try:
        parse(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return tuple(lines)
