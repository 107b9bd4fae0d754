"""A run's files: per_image.csv, all its state, a row a picture, written when the picture is done.

Each process appends to a table of its own; in the end all are one, in the dataset's order. A row
ends in its own checksum, so that one which is not what was written is never counted.
"""

import csv
import io
import json
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dsolo_jax import metrics
from dsolo_jax.utils.files import atomic, csv_line

Row = tuple[str, ...]

_FIRST = ("id", "miou", "accuracy", "ignored", "confusion")
_LAST = "check"  # CRC-32 of the row before it


def columns(subsets: Iterable[str]) -> Row:
    """Names the columns: of all pixels, of each subset of them, and the checksum."""
    return *_FIRST, *(f"confusion_{name}" for name in subsets), _LAST


def path(output_dir: Path, process: int) -> Path:
    """Where a process writes its rows."""
    return output_dir / (f"per_image.{process}.csv" if process else "per_image.csv")


def paths(output_dir: Path) -> list[Path]:
    """Lists the tables of all processes."""
    return sorted(output_dir.glob("per_image*.csv"))


def drop_cut_line(table: Path, header: Row) -> None:
    """Leaves the table with whole lines, its header first; what a killed run began is dropped."""
    found = table.read_bytes() if table.is_file() else b""
    whole = found[: found.rfind(b"\n") + 1] or csv_line(header).encode()
    if whole != found:
        with atomic(table) as temporary:
            temporary.write_bytes(whole)


def read(output_dir: Path, header: Row, ids: Collection[str] | None = None) -> dict[str, Row]:
    """Reads the whole lines of all tables, by the picture's id; each as it was written.

    Raises:
        ValueError: a line that is not what was written, or of a picture that is not in `ids`.
    """
    csv.field_size_limit(1 << 30)  # hundreds of classes make long fields
    rows = {}
    for table in paths(output_dir):
        text = table.read_bytes().decode("utf-8", errors="replace")
        lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        for number, found in enumerate(map(tuple, lines), 1):
            if number == 1 and found == header:
                continue
            if len(found) != len(header) or found[-1] != _check(found[:-1]):
                raise ValueError(
                    f"line {number} of {table} is not what was written: "
                    f"{','.join(found)[:60]!r}; remove that line to have its picture run again, or "
                    "--overwrite the run"
                )
            if ids is not None and found[0] not in ids:
                raise ValueError(
                    f"{table} holds the picture {found[0]!r}, which the dataset lacks; choose "
                    "another --output_dir, or --overwrite it"
                )
            rows[found[0]] = found
    return rows


def row(id_: str, confusions: Iterable[Int[np.ndarray, "C C"]], pixels: int) -> Row:
    """Makes the row of a picture from its confusion matrices, rows truth, that of all pixels first.

    What of its `pixels` they lack is ignored. They are kept sparse: truth:prediction:pixels,
    separated by spaces.
    """
    first, *_ = confusions = list(confusions)
    miou, _ = metrics.mean_iou(first)
    accuracy = np.trace(first) / max(first.sum(), 1)
    cells = (
        " ".join(f"{t}:{p}:{matrix[t, p]}" for t, p in zip(*np.nonzero(matrix), strict=True))
        for matrix in confusions
    )
    made = id_, f"{miou:.6f}", f"{accuracy:.6f}", str(pixels - first.sum()), *cells
    return *made, _check(made)


def ignored(found: Row) -> int:
    """Gives the pixels of a row's picture that do not count."""
    return int(found[_FIRST.index("ignored")])


def matrices(found: Row, num_classes: int) -> Int[np.ndarray, "K C C"]:
    """Gives the confusion matrices of a row."""
    cells = found[len(_FIRST) - 1 : -1]
    result = np.zeros((len(cells), num_classes, num_classes), np.int64)
    for matrix, text in zip(result, cells, strict=True):
        for cell in text.split():
            truth, label, pixels = map(int, cell.split(":"))
            matrix[truth, label] = pixels
    return result


def read_record(path: Path) -> dict[str, Any]:
    """Reads config.json or results.json of a run.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, wanted an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); choose another --output_dir, or --overwrite it"
        ) from error
    return found


def _check(row: Row) -> str:
    return f"{zlib.crc32(csv_line(row).encode()):08x}"
