"""Results of experiments.eval, read back and checked against each other."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsolo_jax import metrics

# What tells a result of experiments.eval from other files of that name.
_FIELDS = ("dataset", "method", "miou", "per_class", "num_images", "config")


class Picture(NamedTuple):
    """A line of per_image.csv; `cells` are its confusion matrix: (truth, label, pixels) [K, 3]."""

    id: str
    miou: float
    cells: np.ndarray


class Run(NamedTuple):
    """A result: its folder, the content of its results.json, its pictures."""

    folder: Path
    results: dict
    pictures: tuple[Picture, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.results["per_class"])


def confusion(run: Run, pictures: tuple[Picture, ...]) -> np.ndarray:
    """Sum of the confusion matrices of `pictures`: int64 [C, C], rows truth."""
    matrix = np.zeros((len(run.classes),) * 2, np.int64)
    for picture in pictures:
        truth, label, pixels = picture.cells.T
        matrix[truth, label] += pixels
    return matrix


def read(folder: Path) -> tuple[list[Run], list[Path]]:
    """Runs at or anywhere below `folder`, and the folders of runs that have no result yet.

    Raises:
        FileNotFoundError: no such folder, no result in it, a result without its per_image.csv.
        ValueError: a results.json of something else, a damaged file, or a results.json that its
            per_image.csv does not add up to.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of results at {folder}")
    finished = [path.parent for path in sorted(folder.rglob("results.json"))]
    tables = [path.parent for path in sorted(folder.rglob("per_image.csv"))]
    unfinished = [place for place in tables if place not in finished]
    if not finished:
        cut_off = f"; {len(unfinished)} runs there were cut off: start them again" * bool(
            unfinished
        )
        raise FileNotFoundError(
            f"no results.json in {folder} or below it, wanted what experiments.eval leaves in its "
            f"--output_dir{cut_off}"
        )
    return [_run(place) for place in finished], unfinished


def _run(folder: Path) -> Run:
    path, table = folder / "results.json", folder / "per_image.csv"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from error
    missing = [name for name in _FIELDS if not isinstance(results, dict) or name not in results]
    if missing:
        raise ValueError(
            f"{path} is no result of experiments.eval: it has no {', '.join(missing)}; move it "
            "elsewhere, or name the folder of the results alone"
        )
    if not table.is_file():
        raise FileNotFoundError(f"{folder} has results.json but no per_image.csv; {_AGAIN}")
    with table.open(newline="", encoding="utf-8") as file:
        try:
            pictures = tuple(map(_picture, csv.DictReader(file)))
            run = Run(folder, results, pictures)
            miou, _ = metrics.mean_iou(confusion(run, pictures))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{table} is damaged ({error}); {_AGAIN}") from error
    stated = np.nan if results["miou"] is None else results["miou"]
    if len(pictures) != results["num_images"] or not np.isclose(
        miou, stated, rtol=0, atol=1e-6, equal_nan=True
    ):
        raise ValueError(
            f"{path} says mIoU {stated:.6f} of {results['num_images']} pictures, but {table.name} "
            f"beside it adds up to {miou:.6f} of {len(pictures)}; {_AGAIN}"
        )
    return run


_AGAIN = "run experiments.eval into it again with --overwrite"


def _picture(row: dict[str, str]) -> Picture:
    cells = [cell.split(":") for cell in row["confusion"].split()]
    return Picture(row["id"], float(row["miou"]), np.array(cells, np.int64).reshape(-1, 3))
