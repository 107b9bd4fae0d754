"""A dataset through a model: its predictions in order, and a run of them that can be cut off."""

import csv
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import datasets, images, metrics, pipeline, vocabulary
from dsolo_jax.files import atomic, write_json, writing
from dsolo_jax.progress import progress

_COLUMNS = ("id", "miou", "accuracy")


class Prepared(NamedTuple):
    """An example made ready for the model."""

    id: str
    picture: dsolo.Picture
    truth: np.ndarray  # int32 [H, W]
    subsets: dict[str, np.ndarray]  # bool [H, W], pixels that are scored apart too


class Prediction(NamedTuple):
    """What a model said of an example, and how it compares to the truth."""

    id: str
    labels: np.ndarray  # int32 [H, W]
    confusions: dict[str, np.ndarray]  # int64 [C, C], rows truth; of all pixels ("") and subsets


def batches(
    model: dsolo.Model, dataset: datasets.Dataset, indices: list[int], batch_size: int
) -> Iterator[list[Prepared]]:
    """Examples in order, `batch_size` at a time, read ahead by threads."""

    def ready(example: dict) -> Prepared:
        picture = dsolo.prepare(model, example["image"])
        return Prepared(example["id"], picture, example["labels"], example.get("subsets", {}))

    batch = []
    for example in datasets.examples(dataset, indices, transform=ready):
        batch.append(example)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def predictions(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    indices: list[int],
    *,
    method: str,
    batch_size: int,
    watch: Callable[..., None] = lambda stage, value=None: None,
) -> Iterator[Prediction]:
    """Predictions of the examples at `indices`, in order."""
    words, threshold = vocabulary.parse(dataset.classes), dataset.protocol.threshold(method)
    for batch in batches(model, dataset, indices, batch_size):
        watch("reading")
        pictures = [example.picture for example in batch]
        results = dsolo.segment_batch(
            model, pictures, words, method, watch=watch, threshold=threshold
        )
        for example, result in zip(batch, results, strict=True):
            counted = confusions(result.labels, example, dataset)
            yield Prediction(example.id, result.labels, counted)
        watch("records")


def confusion(labels: np.ndarray, example: Prepared, dataset: datasets.Dataset) -> np.ndarray:
    """The example's confusion matrix."""
    matrix = metrics.confusion_matrix(labels, example.truth, len(dataset.classes), dataset.ignore)
    return np.asarray(matrix, np.int64)


def confusions(
    labels: np.ndarray, example: Prepared, dataset: datasets.Dataset
) -> dict[str, np.ndarray]:
    """The example's confusion matrix, "", and that of each subset's pixels alone."""
    parts = {
        name: example._replace(truth=np.where(inside, example.truth, dataset.ignore))
        for name, inside in example.subsets.items()
    }
    return {
        name: confusion(labels, part, dataset) for name, part in ({"": example} | parts).items()
    }


def subset_miou(matrix: np.ndarray) -> float:
    """Mean IoU of the classes that a subset of the pixels holds, counted on these pixels alone.

    What is said of pixels outside does not count, for or against: the same false alarms on the
    background would weigh more in a smaller subset.
    """
    _, iou = metrics.mean_iou(matrix)
    held = matrix.sum(axis=1) > 0
    return float(iou[held].mean()) if held.any() else math.nan


def evaluate(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    output_dir: Path,
    config: dict,
    *,
    batch_size: int = 1,
    overwrite: bool = False,
    watch: Callable[..., None] = lambda stage, value=None: None,
) -> dict:
    """Runs the pictures that the folder does not hold yet, and sums all of them up.

    Args:
        config: what decides the result: "method", "limit", "save_predictions" are read here, all
            of it is recorded, and a folder with a run of another config is refused.
        batch_size: pictures at a time. Batches start at multiples of it, so a run that was cut off
            forms the same ones.
        watch: called as each stage ends, see `dsolo.segment_batch`.

    Returns:
        The content of results.json.

    Raises:
        ValueError: the folder holds a run of another config; an unusable picture.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    table = output_dir / "per_image.csv"
    _claim(output_dir, config, overwrite)
    ids = dataset.ids[: config["limit"]]
    names = ("", *dataset.subsets)
    done, totals = _done(table, set(ids), names, len(dataset.classes))

    todo = [
        i
        for first in range(0, len(ids), batch_size)
        for i in range(first, min(first + batch_size, len(ids)))
        if any(id_ not in done for id_ in ids[first : first + batch_size])
    ]
    if todo:
        # First, as it has a progress of its own.
        watch("text", pipeline.embed_classes(model, vocabulary.parse(dataset.classes)))
    run = predictions(
        model, dataset, todo, method=config["method"], batch_size=batch_size, watch=watch
    )
    for prediction in progress(run, len(todo), f"{dataset.name} {config['method']}"):
        if prediction.id in done:
            continue
        if config["save_predictions"]:
            path = output_dir / "predictions" / f"{prediction.id}.png"
            images.write_png(path, prediction.labels)
        with writing(table), table.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(_row(prediction))
        for name in names:
            totals[name] += prediction.confusions[name]

    miou, iou = metrics.mean_iou(totals[""])
    results = {
        "dataset": dataset.name,
        "method": config["method"],
        "miou": _json_number(miou),
        "per_class": {
            name: _json_number(value) for name, value in zip(dataset.names, iou, strict=True)
        },
        **{f"miou_{name}": _json_number(subset_miou(totals[name])) for name in dataset.subsets},
        "num_images": len(ids),
        "seconds": time.monotonic() - start,
        "config": config,
        "versions": {
            "dsolo_jax": dsolo.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
        },
    }
    write_json(output_dir / "results.json", results)
    return results


def _claim(output_dir: Path, config: dict, overwrite: bool) -> None:
    """Records the run's config in the folder, or finds it there already."""
    path = output_dir / "config.json"
    config = json.loads(json.dumps(config))
    if path.is_file() and not overwrite:
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [
            f"{key} {found.get(key)!r} there, {config.get(key)!r} now"
            for key in sorted(found.keys() | config.keys())
            if found.get(key) != config.get(key)
        ]
        if other:
            raise ValueError(
                f"{output_dir} holds a run with other settings ({'; '.join(other)}); choose "
                "another --output_dir, or --overwrite it"
            )
        return
    for name in ("per_image.csv", "results.json"):
        (output_dir / name).unlink(missing_ok=True)
    write_json(path, config)


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    return (*_COLUMNS, *(f"confusion_{name}" if name else "confusion" for name in names))


def _done(
    table: Path, ids: set[str], names: Sequence[str], num_classes: int
) -> tuple[set[str], dict[str, np.ndarray]]:
    """Pictures in the table and the sums of their confusion matrices.

    A last line that was cut short is dropped from the table.
    """
    lines = []
    if table.is_file():
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")] or [",".join(_columns(names)) + "\n"]
    if whole != lines:
        with atomic(table) as temporary:
            temporary.write_text("".join(whole), encoding="utf-8")
    done = set()
    totals = {name: np.zeros((num_classes, num_classes), np.int64) for name in names}
    for row in csv.DictReader(whole):
        if row["id"] not in ids:
            raise ValueError(
                f"{table} holds the picture {row['id']!r}, which the dataset lacks; choose another "
                "--output_dir, or --overwrite it"
            )
        done.add(row["id"])
        for total, cells in zip(totals.values(), list(row.values())[len(_COLUMNS) :], strict=True):
            for cell in cells.split():
                truth, label, pixels = map(int, cell.split(":"))
                total[truth, label] += pixels
    return done, totals


def _row(prediction: Prediction) -> tuple[str, ...]:
    """Confusion matrices are kept sparse: truth:prediction:pixels, separated by spaces."""
    matrix = prediction.confusions[""]
    miou, _ = metrics.mean_iou(matrix)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    cells = (
        " ".join(f"{t}:{p}:{matrix[t, p]}" for t, p in zip(*np.nonzero(matrix), strict=True))
        for matrix in prediction.confusions.values()
    )
    return prediction.id, f"{miou:.6f}", f"{accuracy:.6f}", *cells


def _json_number(value: float) -> float | None:
    """JSON has no NaN: a class that nowhere occurs has null."""
    return None if math.isnan(value) else float(value)
