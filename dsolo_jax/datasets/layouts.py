"""Finding the files of a benchmark below a folder, and naming what is missing there."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dsolo_jax.datasets.benchmark import Pair
from dsolo_jax.utils.checks import check_ids, choose
from dsolo_jax.utils.files import read_text

_LISTED = 5


class Files(NamedTuple):
    """The files `folder/<pattern><suffix>` by id: their names without the suffix."""

    folder: Path
    suffix: str
    paths: Mapping[str, Path]


def scan(folder: Path, suffix: str, pattern: str = "*") -> Files:
    """The files of a folder; none if it is not there. Hidden files are left aside."""
    paths = {
        path.name.removesuffix(suffix): path
        for path in folder.glob(pattern + suffix)
        if not path.name.startswith(".")
    }
    return Files(folder, suffix, paths)


def place(source: Path, places: Sequence[str], inside: str, what: str, origin: str) -> Path:
    """The first of the `places` below `source` that has a folder `inside`, or FileNotFoundError."""
    for folder in (source / name for name in places):
        if (folder / inside).is_dir():
            return folder
    found = "no such folder"
    if source.is_dir():
        found = named(sorted(path.name for path in source.iterdir())) or "an empty folder"
    names = " or ".join(name for name in places if name != ".")
    raise FileNotFoundError(
        f"no {what} at {source}: wanted {names} with {inside}, found {found}; original: {origin}"
    )


def choose_labels(
    what: str, wanted: str | None, candidates: Mapping[str, Sequence[Files]]
) -> tuple[str, Files]:
    """The label maps of the coding `wanted`, or else the first there are among the candidates of
    each coding: their coding and their files."""
    codings = candidates if wanted is None else [choose(f"labels of {what}", wanted, candidates)]
    for coding in codings:
        for files in candidates[coding]:
            if files.paths:
                return coding, files
    places = [str(files.folder / f"*{files.suffix}") for c in codings for files in candidates[c]]
    raise FileNotFoundError(f"no label maps of {what}: nothing at {', '.join(places)}")


def listed(path: Path, origin: str) -> list[str]:
    """The ids a split's list holds, one a line."""
    if not path.is_file():
        raise FileNotFoundError(f"no list of pictures at {path}; the original: {origin}")
    return read_text(path).split()


def paired(images: Files, labels: Files, ids: Iterable[str] | None = None) -> list[Pair]:
    """Every picture with its label map, in order of ids; of a list, or of all that either has."""
    ids = sorted({*images.paths, *labels.paths} if ids is None else ids)
    check_ids(ids)
    for what, files in {"pictures": images, "label maps": labels}.items():
        missing = [f"{id}{files.suffix}" for id in ids if id not in files.paths]
        if missing or not ids:
            raise FileNotFoundError(
                f"{len(missing)} of {len(ids)} {what} are missing in {files.folder}: "
                f"{named(missing) or f'it has no *{files.suffix}'}"
            )
    return [Pair(id, images.paths[id], labels.paths[id]) for id in ids]


def named(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
