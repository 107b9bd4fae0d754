"""Results of experiments.eval, read back and checked against each other."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dsolo_jax import metrics
from experiments import per_image
from experiments.per_image import Row

# What tells a result of experiments.eval from other files of that name.
_FIELDS = ("dataset", "method", "miou", "per_class", "num_images", "config")
_AGAIN = "run experiments.eval into it again with --overwrite"


class Run(NamedTuple):
    """A result: its folder, the content of its results.json, its rows of per_image.csv by id."""

    folder: Path
    results: dict
    pictures: dict[str, Row]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.results["per_class"])

    @property
    def dataset(self) -> str:
        """Its name; of a folder of pictures the last two parts of where they are."""
        name, images = self.results["dataset"], self.results["config"].get("images")
        return "/".join(Path(images).parts[-2:]) if name == "folder" and images else name


def confusion(run: Run, pictures: Iterable[Row]) -> Int[np.ndarray, "C C"]:
    """Sums the confusion matrices of `pictures`; rows are the truth."""
    classes = len(run.classes)
    matrices = (per_image.matrices(picture, classes)[0] for picture in pictures)
    return sum(matrices, np.zeros((classes, classes), np.int64))


def read(folder: Path) -> tuple[list[Run], list[str]]:
    """Reads the runs at or anywhere below `folder`, and says which are left out and why.

    Raises:
        FileNotFoundError: no such folder, no result in it.
        ValueError: a results.json of something else, a damaged file, or a results.json that its
            per_image.csv does not add up to.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of results at {folder}")
    runs, notes = [], []
    for place in sorted({path.parent for path in folder.rglob("per_image.csv")}):
        if not (place / "results.json").is_file():
            notes.append(f"left out {place}: it was cut off, start it again")
            continue
        run = _run(place)
        if run.results["miou"] is None:
            notes.append(f"left out {place}: no pixel is labelled")
        else:
            runs.append(run)
    for path in sorted(folder.rglob("results.json")):
        if not (path.parent / "per_image.csv").is_file():
            notes.append(f"left out {path.parent}: it has no per_image.csv; {_AGAIN}")
    if not runs:
        raise FileNotFoundError(
            f"no results in {folder} or below it, wanted what experiments.eval leaves in its "
            f"--output_dir{''.join(f'; {line}' for line in notes)}"
        )
    return runs, notes


def _run(folder: Path) -> Run:
    path, table = folder / "results.json", folder / "per_image.csv"
    results = per_image.read_record(path)
    if missing := [name for name in _FIELDS if name not in results]:
        raise ValueError(
            f"{path} is no result of experiments.eval: it has no {', '.join(missing)}; move it "
            "elsewhere, or name the folder of the results alone"
        )
    subsets = [name.removeprefix("miou_") for name in results if name.startswith("miou_")]
    run = Run(folder, results, per_image.read(folder, per_image.columns(subsets)))
    try:
        miou, _ = metrics.mean_iou(confusion(run, run.pictures.values()))
    except IndexError as error:
        raise ValueError(f"{table} has other classes than {path} ({error}); {_AGAIN}") from error
    found = len(run.pictures), miou
    stated = results["num_images"], np.nan if results["miou"] is None else results["miou"]
    if not np.allclose(found, stated, rtol=0, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"{path} says mIoU {stated[1]:.6f} of {stated[0]} pictures, but {table.name} beside it "
            f"adds up to {miou:.6f} of {found[0]}; {_AGAIN}"
        )
    return run
