"""Results of experiments.eval, read back and checked against each other."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dsolo_jax import metrics

# What tells a result of experiments.eval from other files of that name.
_FIELDS = ("dataset", "method", "miou", "per_class", "num_images", "config")
_AGAIN = "run experiments.eval into it again with --overwrite"


class Picture(NamedTuple):
    """A line of per_image.csv; `cells` are its confusion matrix: (truth, label, pixels) [K, 3]."""

    id: str
    miou: float
    cells: Int[np.ndarray, "K 3"]


class Run(NamedTuple):
    """A result: its folder, the content of its results.json, its pictures."""

    folder: Path
    results: dict
    pictures: tuple[Picture, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.results["per_class"])

    @property
    def dataset(self) -> str:
        """Its name; of a folder of pictures the last two parts of where they are."""
        name, images = self.results["dataset"], self.results["config"].get("images")
        return "/".join(Path(images).parts[-2:]) if name == "folder" and images else name


def confusion(run: Run, pictures: Sequence[Picture]) -> Int[np.ndarray, "C C"]:
    """Sums the confusion matrices of `pictures`; rows are the truth."""
    matrix = np.zeros((len(run.classes),) * 2, np.int64)
    for picture in pictures:
        truth, label, pixels = picture.cells.T
        matrix[truth, label] += pixels
    return matrix


def read(folder: Path) -> tuple[list[Run], list[str]]:
    """Reads the runs at or anywhere below `folder`, and says which are left out and why.

    Raises:
        FileNotFoundError: no such folder, no result in it, a result without its per_image.csv.
        ValueError: a results.json of something else, a damaged file, or a results.json that its
            per_image.csv does not add up to.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of results at {folder}")
    finished = [path.parent for path in sorted(folder.rglob("results.json"))]
    tables = [path.parent for path in sorted(folder.rglob("per_image.csv"))]
    cut_off = [place for place in tables if place not in finished]
    left_out = dict.fromkeys(cut_off, "it was cut off, start it again")
    runs = [_run(place) for place in finished]
    left_out |= {run.folder: "no pixel is labelled" for run in runs if run.results["miou"] is None}
    runs = [run for run in runs if run.folder not in left_out]
    notes = [f"left out {place}: {why}" for place, why in left_out.items()]
    if not runs:
        raise FileNotFoundError(
            f"no results.json in {folder} or below it, wanted what experiments.eval leaves in its "
            f"--output_dir{''.join(f'; {line}' for line in notes)}"
        )
    return runs, notes


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
            run = Run(folder, results, tuple(map(_picture, csv.DictReader(file))))
            miou, _ = metrics.mean_iou(confusion(run, run.pictures))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{table} is damaged ({error}); {_AGAIN}") from error
    found = len(run.pictures), miou
    stated = results["num_images"], np.nan if results["miou"] is None else results["miou"]
    if not np.allclose(found, stated, rtol=0, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"{path} says mIoU {stated[1]:.6f} of {stated[0]} pictures, but {table.name} beside it "
            f"adds up to {miou:.6f} of {found[0]}; {_AGAIN}"
        )
    return run


def _picture(row: dict[str, str]) -> Picture:
    cells = [cell.split(":") for cell in row["confusion"].split()]
    return Picture(row["id"], float(row["miou"]), np.array(cells, np.int64).reshape(-1, 3))
