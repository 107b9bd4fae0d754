"""What `dsolo segment` is given: pictures, videos, folders, patterns, lists, standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from dsolo_jax.datasets.folder import PICTURES, by_stem
from dsolo_jax.utils.checks import check_ids
from dsolo_jax.utils.files import read_text
from dsolo_jax.video import VIDEOS

STDIN = Path("-")


class Source(NamedTuple):
    """A picture or a video; what its results are called, such as "below/name"."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether its name ends as a video's."""
        return self.path.suffix.lower() in VIDEOS

    @property
    def place(self) -> str:
        """Its name with its suffix."""
        return self.name + ("" if self.path == STDIN else self.path.suffix)


def find(
    given: Sequence[str], lists: Sequence[Path], recursive: bool, output: Path
) -> list[Source]:
    """Finds all that is meant, sorted by the names of the results.

    A file's results are called as it is, those of a folder or of a pattern's matches by their
    places below the folder, or below the pattern's part without wildcards. Paths in a list are
    relative to the list's folder, and results are called by their places below that.

    Args:
        given: files, folders, patterns, or "-".
        lists: text files of such, one a line; lines that begin with "#" are left out.
        recursive: whether folders are searched below.
        output: what lies in it is not found, where it is inside of what is searched.

    Raises:
        FileNotFoundError: no such folder, list, or match.
        ValueError: two files whose results would have one name.
    """
    found: dict[PurePath, set[Path]] = {}  # of each folder of results
    entries: list[tuple[str, Path | None]] = [(text, None) for text in given]
    entries += [(line, path.expanduser().parent) for path in lists for line in _lines(path)]
    stdin = [Source(STDIN, "stdin") for text, _ in entries if text == str(STDIN)]
    if len(stdin) > 1:
        raise ValueError("'-' is given twice, and there is one standard input; name it once")
    for text, base in entries:
        if text != str(STDIN):
            for path, place in _of(text, base, recursive, output):
                found.setdefault(place.parent, set()).add(path)
    sources = [
        Source(path, (parent / stem).as_posix())
        for parent, paths in found.items()
        for stem, path in by_stem(sorted(paths)).items()
    ]
    check_ids([source.name for source in sources])
    return stdin + sorted(sources, key=lambda source: source.name)


def _lines(path: Path) -> list[str]:
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path}, wanted a text file: one path a line")
    lines = [line.strip() for line in read_text(path).splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    if not kept:
        raise ValueError(f"{path} names no file; wanted one path a line")
    return kept


def _of(
    text: str, base: Path | None, recursive: bool, output: Path
) -> Iterator[tuple[Path, PurePath]]:
    """Files that a text means, and where each of their results goes."""
    path = (base or Path()) / Path(text).expanduser()
    if path.is_dir():
        root, files = path, _in_folder(path, recursive, output)
    elif path.exists() or not glob.has_magic(text):
        root, files = path.parent, [path]
    else:
        root, files = _matches(path, output)
    start = Path()
    if base is not None and root.is_relative_to(base):
        below = root.relative_to(base)
        start = start if ".." in below.parts else below
    for file in files:
        yield file, start / file.relative_to(root)


def _in_folder(folder: Path, recursive: bool, output: Path) -> list[Path]:
    files = []
    for at, folders, names in os.walk(folder, onerror=_raise):
        files += [Path(at) / name for name in names]
        if not recursive:
            folders.clear()
    shown = list(_shown(files, folder, output))
    pictures = [path for path in shown if path.suffix.lower() in PICTURES]
    if not pictures:
        deeper = "" if recursive else "; --recursive looks into the folders below"
        raise FileNotFoundError(
            f"no pictures in {folder}: no file ends in {', '.join(sorted(PICTURES))}{deeper}"
        )
    if videos := sum(path.suffix.lower() in VIDEOS for path in shown):
        print(
            f"{folder} has {videos} videos, which are left aside; name those that are meant, or "
            f"give a pattern such as '{folder / '*.mp4'}'",
            file=sys.stderr,
        )
    return pictures


def _raise(error: OSError) -> None:
    raise error


def _matches(pattern: Path, output: Path) -> tuple[Path, list[Path]]:
    """The folder before the first wildcard, and the pictures and videos below it that match."""
    fixed = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    root, rest = Path(*pattern.parts[:fixed]), str(Path(*pattern.parts[fixed:]))
    try:
        files = [path for path in root.glob(rest) if path.is_file()]
    except ValueError as error:
        raise ValueError(f"the pattern {pattern} is none: {error}") from error
    wanted = PICTURES | VIDEOS
    found = [path for path in _shown(files, root, output) if path.suffix.lower() in wanted]
    if not found:
        raise FileNotFoundError(f"no file of this name, and no picture or video matches: {pattern}")
    return root, found


def _shown(files: Iterable[Path], root: Path, output: Path) -> Iterator[Path]:
    """Those that are not hidden, nor results of an earlier run where these lie below the root."""
    results = output.expanduser().resolve()
    inside = root.resolve() in results.parents
    for path in files:
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if not (inside and path.resolve().is_relative_to(results)):
            yield path
