"""A dataset through a model: its predictions in order, and a run of them that can be cut off."""

import csv
import io
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np
from jax.experimental import multihost_utils

import dsolo_jax as dsolo
from dsolo_jax import datasets, images, metrics, pipeline, vocabulary
from dsolo_jax.files import atomic, write_json, writing
from dsolo_jax.progress import progress

_COLUMNS = ("id", "miou", "accuracy", "confusion")
_RESULTS = ("confusion.csv", "results.json")


class Prepared(NamedTuple):
    """An example made ready for the model."""

    id: str
    picture: dsolo.Picture
    truth: np.ndarray  # int32 [H, W]


class Prediction(NamedTuple):
    """What a model said of an example, and how it compares to the truth."""

    id: str
    labels: np.ndarray | None  # int32 [H, W], if they are kept
    confusion: np.ndarray  # int64 [C, C], rows truth


def batches(
    model: dsolo.Model, dataset: datasets.Dataset, indices: list[int], batch_size: int
) -> Iterator[list[Prepared]]:
    """Examples in order, `batch_size` at a time, read ahead by threads."""
    batch = []
    for example in datasets.examples(dataset, indices, transform=_ready(model)):
        batch.append(example)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ready(model: dsolo.Model) -> Callable[[dict], Prepared]:
    def ready(example: dict) -> Prepared:
        return Prepared(example["id"], dsolo.prepare(model, example["image"]), example["labels"])

    return ready


def predictions(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    indices: list[int],
    *,
    method: str,
    in_flight: int,
    keep_labels: bool,
    watch: Callable[..., None],
) -> Iterator[Prediction]:
    """Predictions of the examples at `indices`, on all devices of a `spread` model.

    Each device takes one picture at a time. Those that run together are of one length of patches,
    so with several devices they come in another order. Confusion matrices are fetched when every
    device has had `in_flight` pictures.
    """
    words, devices = vocabulary.parse(dataset.classes), model.mesh.size
    waiting: dict[int, list[Prepared]] = {}
    running = []
    for example in chain(datasets.examples(dataset, indices, transform=_ready(model)), [None]):
        watch("reading")
        if example is None:  # the last ones
            groups = [group for group in waiting.values() if group]
        else:
            group = waiting.setdefault(pipeline.bucket(len(example.picture.patches)), [])
            group.append(example)
            groups = [group] if len(group) == devices else []
        for group in groups:
            run = _run(model, dataset, group, words, method, keep_labels, watch)
            running.append((list(group), *run))
            group.clear()
        if len(running) == in_flight or example is None:
            yield from _fetched(running, dataset)
            running.clear()
            watch("records")


def _run(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    group: list[Prepared],
    words: vocabulary.Vocabulary,
    method: str,
    keep_labels: bool,
    watch: Callable[..., None],
) -> tuple[jax.Array, list[np.ndarray]]:
    """Confusion matrices, on the devices, and labels of a picture a device."""
    pictures, readings = [example.picture for example in group], model.readings
    graph = pipeline.graph(model, pictures)
    watch("graph", graph)
    encoded = pipeline.encode(model, pictures, words, readings.start, graph)
    watch("CLIP", encoded)
    solved, decide = pipeline.decision(words, method, dataset.protocol.threshold(method))
    scores = pipeline.solve(encoded, solved, method, readings, model.mesh)
    watch("solver", scores)
    matrices, labels = pipeline.compare(
        model,
        pictures,
        [example.truth for example in group],
        scores,
        readings,
        ignore=dataset.ignore,
        keep_labels=keep_labels,
        decide=decide,
    )
    watch("pixels", matrices)
    return matrices, labels


def _fetched(running: list[tuple], dataset: datasets.Dataset) -> Iterator[Prediction]:
    for group, matrices, labels in running:
        for example, matrix, labels_ in zip_longest(
            group, np.asarray(matrices)[: len(group)], labels
        ):
            yield Prediction(example.id, labels_, matrix.astype(np.int64))


def confusion(labels: np.ndarray, example: Prepared, dataset: datasets.Dataset) -> np.ndarray:
    """The example's confusion matrix."""
    matrix = metrics.confusion_matrix(labels, example.truth, len(dataset.classes), dataset.ignore)
    return np.asarray(matrix, np.int64)


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

    On all devices of this process; with several processes (`jax.distributed`) each runs its share
    of the pictures, and all of them see one `output_dir`. The result is the same, bit for bit,
    whatever the number of devices and processes, and however often it was cut off.

    Args:
        model: best `pipeline.spread`, where several datasets are evaluated.
        config: what decides the result: "method", "limit", "save_predictions" are read here, all
            of it is recorded, and a folder with a run of another config is refused.
        batch_size: pictures that a device is given before their results are fetched and written.
        watch: called as each stage ends, see `dsolo.segment_batch`.

    Returns:
        The content of results.json, of which process 0 alone writes; of the others as well.

    Raises:
        ValueError: the folder holds a run of another config; an unusable picture.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        _claim(output_dir, config, overwrite)
    _meet(f"{output_dir} claimed")
    ids = dataset.ids[: config["limit"]]
    table = _table(output_dir, process)
    _drop_cut_line(table)
    rows = _rows(output_dir, set(ids))

    todo = [i for i in range(process, len(ids), processes) if ids[i] not in rows]
    if todo:
        # First, as it has a progress of its own.
        watch("text", pipeline.embed_classes(model, vocabulary.parse(dataset.classes)))
    run = predictions(
        pipeline.spread(model),
        dataset,
        todo,
        method=config["method"],
        in_flight=batch_size,
        keep_labels=config["save_predictions"],
        watch=watch,
    )
    for prediction in progress(run, len(todo), f"{dataset.name} {config['method']}"):
        if config["save_predictions"]:
            path = output_dir / "predictions" / f"{prediction.id}.png"
            images.write_png(path, prediction.labels)
        with writing(table), table.open("a", encoding="utf-8") as file:
            file.write(_line(_row(prediction)))
    _meet(f"{output_dir} done")

    rows = _rows(output_dir, set(ids))
    total = _sum(rows.values(), len(dataset.classes))
    miou, iou = metrics.mean_iou(total)
    results = {
        "dataset": dataset.name,
        "method": config["method"],
        "miou": _json_number(miou),
        "per_class": {
            name: _json_number(value) for name, value in zip(dataset.names, iou, strict=True)
        },
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
    _meet(f"{output_dir} summed up")
    if process == 0:
        _write_whole(output_dir, [_line(_COLUMNS), *(_line(rows[id_]) for id_ in ids)])
        _write_matrix(output_dir / "confusion.csv", total)
        write_json(output_dir / "results.json", results)
    return results


def _meet(where: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


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
    for old in (*_tables(output_dir), *(output_dir / name for name in _RESULTS)):
        old.unlink(missing_ok=True)
    write_json(path, config)


# ------------------------------------------------------------------------------- the table
#
# per_image.csv is all there is to a run's state: a row a picture, written when the picture is done.
# Each process appends to a table of its own, process 0 to per_image.csv, which is made whole and
# brought into the dataset's order at the end.


def _table(output_dir: Path, process: int) -> Path:
    return output_dir / (f"per_image.{process}.csv" if process else "per_image.csv")


def _tables(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("per_image*.csv"))


def _drop_cut_line(table: Path) -> None:
    """Leaves the table with whole lines, its header first; what a killed run began is dropped."""
    found = table.read_bytes() if table.is_file() else b""
    whole = found[: found.rfind(b"\n") + 1] or _line(_COLUMNS).encode()
    if whole != found:
        with atomic(table) as temporary:
            temporary.write_bytes(whole)


def _rows(output_dir: Path, ids: set[str]) -> dict[str, list[str]]:
    """The whole lines of all tables, by the picture's id."""
    rows = {}
    for table in _tables(output_dir):
        text = table.read_bytes().decode("utf-8", errors="replace")
        for row in csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:]):
            if row[0] not in ids:
                raise ValueError(
                    f"{table} holds the picture {row[0]!r}, which the dataset lacks; choose "
                    "another --output_dir, or --overwrite it"
                )
            rows[row[0]] = row
    return rows


def _write_whole(output_dir: Path, lines: list[str]) -> None:
    with atomic(output_dir / "per_image.csv") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    for table in _tables(output_dir):
        if table.name != "per_image.csv":
            table.unlink()


def _write_matrix(path: Path, matrix: np.ndarray) -> None:
    """Integers [C, C] as CSV, a row of the truth a line."""
    with atomic(path) as temporary:
        np.savetxt(temporary, matrix, fmt="%d", delimiter=",")


def _line(row: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(row)
    return file.getvalue()


def _sum(rows: Iterable[list[str]], num_classes: int) -> np.ndarray:
    """Of the confusion matrices of the table's rows."""
    total = np.zeros((num_classes, num_classes), np.int64)
    for *_, cells in rows:
        for cell in cells.split():
            truth, label, pixels = map(int, cell.split(":"))
            total[truth, label] += pixels
    return total


def _row(prediction: Prediction) -> tuple[str, ...]:
    """The confusion matrix is kept sparse: truth:prediction:pixels, separated by spaces."""
    matrix = prediction.confusion
    miou, _ = metrics.mean_iou(matrix)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    cells = " ".join(f"{t}:{p}:{matrix[t, p]}" for t, p in zip(*np.nonzero(matrix), strict=True))
    return prediction.id, f"{miou:.6f}", f"{accuracy:.6f}", cells


def _json_number(value: float) -> float | None:
    """JSON has no NaN: a class that nowhere occurs has null."""
    return None if math.isnan(value) else float(value)
