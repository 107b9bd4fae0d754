"""Writing so that nothing half-written stays behind."""

import codecs
import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Lets the system's errors while writing name the file, as an OSError of the same errno."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, message) from error


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to `path` when the block ends well.

    It has the suffix of `path`. When the block raises or is interrupted it is removed, and an older
    file at `path` is left as it was. Missing folders above `path` are made. Errors as of `writing`.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which takes its place when the block ends well.

    When the block raises or is interrupted it is removed, and an older folder at `path` is left as
    it was. What a killed process left is mended by the next one for this path. Errors as of
    `writing`.
    """
    path = Path(path).expanduser().absolute()
    partial, earlier = (path.with_name(f".{path.name}.{state}") for state in ("partial", "earlier"))

    def mend() -> None:
        if earlier.exists() and not path.exists():
            earlier.rename(path)
        for folder in (partial, earlier):
            shutil.rmtree(folder, ignore_errors=True)

    try:
        with writing(path):
            mend()
            partial.mkdir(parents=True)
            yield partial
            if path.exists():
                path.rename(earlier)
            partial.rename(path)
    finally:
        mend()


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of `atomic` in a folder, where no other may be writing."""
    for path in Path(folder).expanduser().glob(".*"):
        if _TEMPORARY.fullmatch(path.stem):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: str | os.PathLike, option: str = "--output") -> Iterator[None]:
    """Keeps other runs out of a folder, which is made if it is not there, while the block runs.

    A killed process lets it go. A file system without locks is a warning.

    Args:
        option: what names the folder on the command line.

    Raises:
        OSError: another run writes to it; it cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        try:
            import fcntl  # not on Windows
        except ImportError:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"another run is writing to {folder}; wait for it, or choose another {option}"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # knows no locks
                raise
            warnings.warn(
                f"{folder} cannot be locked ({error}); let no other run use it", stacklevel=2
            )
        yield


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_line(cells: Iterable[Any]) -> str:
    """Gives cells as a line of CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()


def write_csv(path: str | os.PathLike, lines: Iterable[Iterable[Any]]) -> None:
    """Writes lines of cells as CSV, atomically."""
    write_text(path, "".join(map(csv_line, lines)))


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file: UTF-8, or UTF-16 where its byte order mark says so; ValueError if it is
    neither."""
    data = Path(path).read_bytes()
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
