"""A dataset through a model: a run is a folder that can be cut off and gone on with.

On all devices of a process and in several processes, each of which takes its share of the pictures.
For one batch size the result is the same, bit for bit, whatever their number.
"""

import csv
import fcntl
import io
import json
import math
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Int

import dsolo_jax as dsolo
from dsolo_jax import datasets, images, metrics, pipeline, vocabulary
from dsolo_jax.pipeline import Setting
from dsolo_jax.utils import fingerprint
from dsolo_jax.utils.files import atomic, remove_leftovers, write_json, writing
from dsolo_jax.utils.progress import progress
from experiments.bootstrap import Tally

_COLUMNS = ("id", "miou", "accuracy")
_CHECK = "check"  # last column: CRC-32 of the row before it


class Prediction(NamedTuple):
    """What a model said of a picture, and how it compares to the truth."""

    id: str
    labels: Int[np.ndarray, "H W"]
    confusions: dict[str, Int[np.ndarray, "C C"]]  # rows truth; of all pixels ("") and subsets


class _Example(NamedTuple):
    """An example made ready for the model."""

    id: str
    picture: pipeline.Picture
    truth: Int[np.ndarray, "H W"]
    subsets: dict[str, Bool[np.ndarray, "H W"]]  # pixels that are scored apart too


# ------------------------------------------------------------------------------- predictions


def predictions(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    indices: Sequence[int],
    settings: Sequence[Setting],
    *,
    batch_size: int = 1,
    watch: Callable[[str, Any], Any] = lambda stage, value: None,
) -> Iterator[list[Prediction]]:
    """Yields, of each of the examples at `indices`, a prediction for every setting.

    See `pipeline.run`: with batches they come in another order.
    """

    def ready(example: dict) -> _Example:
        picture = pipeline.prepare(model.config, example["image"])
        return _Example(example["id"], picture, example["labels"], example.get("subsets", {}))

    waiting: dict[int, _Example] = {}

    def pictures() -> Iterator[pipeline.Picture]:
        examples = datasets.examples(dataset, indices, transform=ready)
        for number, example in enumerate(examples):
            waiting[number] = example
            yield example.picture

    words = vocabulary.parse(dataset.classes)
    for number, results in pipeline.run(
        model, pictures(), words, settings, batch_size=batch_size, watch=watch
    ):
        example = waiting.pop(number)
        yield [
            Prediction(example.id, labels, _confusions(labels, example, dataset))
            for labels, _ in results
        ]


def _confusions(
    labels: Int[np.ndarray, "H W"], example: _Example, dataset: datasets.Dataset
) -> dict[str, Int[np.ndarray, "C C"]]:
    truths = {"": example.truth} | {
        name: np.where(inside, example.truth, dataset.ignore)
        for name, inside in example.subsets.items()
    }
    classes = len(dataset.classes)
    return {
        name: metrics.confusion_matrix(labels, truth, classes, dataset.ignore)
        for name, truth in truths.items()
    }


def subset_miou(matrix: Int[np.ndarray, "C C"]) -> float:
    """Takes the mean IoU of the classes that a subset of the pixels holds, counted there alone.

    What is said of pixels outside does not count, for or against: the same false alarms on the
    background would weigh more in a smaller subset.
    """
    _, iou = metrics.mean_iou(matrix)
    held = matrix.sum(axis=1) > 0
    return float(iou[held].mean()) if held.any() else math.nan


# ------------------------------------------------------------------------------- runs


class Run:
    """A folder that the predictions of a dataset's pictures are written to, one after the other.

    With several processes all of them see the folder and take part in `__init__` and `finish`; each
    of them adds the pictures of its `share`. No other run may use the folder meanwhile.

    Args:
        config: what decides the result: "method", "limit", "save_predictions" are read here, all
            of it is recorded, and a folder with a run of another config is refused.
        overwrite: leave nothing of what the folder holds.

    Raises:
        ValueError: the folder holds a run of another config, or rows that are not what was written.
        OSError: the folder cannot be written, or another run is using it.
    """

    def __init__(
        self, output_dir: Path, dataset: datasets.Dataset, config: dict, overwrite: bool = False
    ):
        self.output_dir, self._dataset, self._config = output_dir, dataset, config
        self._table = _table(output_dir, jax.process_index())
        self._columns = (
            *_COLUMNS, "confusion", *(f"confusion_{name}" for name in dataset.subsets), _CHECK
        )  # fmt: skip
        self._lock = None
        if jax.process_index() == 0:
            self._lock = _lock(output_dir)
            _claim(output_dir, config, overwrite)
        _meet(f"{output_dir} is claimed")
        _drop_cut_line(self._table, self._columns)
        self.ids = dataset.ids[: config["limit"]]
        self._rows = _rows(output_dir, self._columns, set(self.ids))

    @property
    def results(self) -> dict | None:
        """The content of results.json, if the run is finished."""
        path = self.output_dir / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def todo(self) -> list[int]:
        """Indices of this process's share of the pictures that it does not hold yet."""
        share = range(jax.process_index(), len(self.ids), jax.process_count())
        return [i for i in share if self.ids[i] not in self._rows]

    def add(self, prediction: Prediction) -> None:
        """Writes a prediction down, unless the folder holds it."""
        if prediction.id in self._rows:
            return
        if self._config["save_predictions"]:
            path = self.output_dir / "predictions" / f"{prediction.id}.png"
            images.write_png(path, prediction.labels)
        row = _row(prediction)
        with writing(self._table), self._table.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        self._rows[prediction.id] = row

    def finish(self, seconds: float) -> dict:
        """Sums all pictures up; process 0 writes what is left to write, and the lock is let go.

        Returns:
            The content of results.json.
        """
        _meet(f"{self.output_dir} is filled")
        rows = self._rows = _rows(self.output_dir, self._columns, set(self.ids))
        matrices = [
            sum((_matrix(rows[id_][i], len(self._dataset.classes)) for id_ in self.ids), 0)
            for i in range(len(_COLUMNS), len(self._columns) - 1)
        ]
        results = self.results or _results(self._dataset, self._config, matrices, len(self.ids))
        results.setdefault("seconds", seconds)
        _meet(f"{self.output_dir} is summed up")  # no process reads the tables any more
        if jax.process_index() == 0:
            ordered = [self._columns, *(rows[id_] for id_ in self.ids)]
            _write_lines(self._table, map(_line, ordered))
            for table in _tables(self.output_dir):
                if table != self._table:
                    table.unlink()
            counts = (_line(map(str, row)) for row in matrices[0])
            header = _line(self._dataset.names)
            _write_lines(self.output_dir / "confusion.csv", (header, *counts))
            write_json(self.output_dir / "results.json", results)
        self.close()
        return results

    def close(self) -> None:
        """Lets other runs have the folder."""
        if self._lock is not None:
            self._lock.close()

    def tally(self) -> Tally:
        """Counts intersection and union of each picture, in the dataset's order."""
        classes = len(self._dataset.classes)
        cells = (self._rows[id_][len(_COLUMNS)] for id_ in self.ids)
        return Tally.of(np.stack([_matrix(one, classes) for one in cells]))


def _results(
    dataset: datasets.Dataset, config: dict, matrices: list[Int[np.ndarray, "C C"]], count: int
) -> dict:
    total, *of_subsets = matrices
    miou, iou = metrics.mean_iou(total)
    right = np.diagonal(total)
    truth = total.sum(axis=1)
    return {
        "dataset": dataset.name,
        "method": config["method"],
        "miou": _json_number(miou),
        "accuracy": _json_number(right.sum() / truth.sum() if truth.any() else math.nan),
        "mean_accuracy": _json_number(
            (right[truth > 0] / truth[truth > 0]).mean() if truth.any() else math.nan
        ),
        "per_class": {
            name: _json_number(value) for name, value in zip(dataset.names, iou, strict=True)
        },
        **{
            f"miou_{name}": _json_number(subset_miou(matrix))
            for name, matrix in zip(dataset.subsets, of_subsets, strict=True)
        },
        "num_images": count,
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


def made_with(model: dsolo.Model) -> dict:
    """Names the weights and the code that a result depends on, for the config of a run."""
    return {"weights": fingerprint.of_arrays(model.params), "code": fingerprint.of_code()}


def evaluate(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    output_dir: Path,
    config: dict,
    *,
    batch_size: int = 1,
    overwrite: bool = False,
    watch: Callable[[str, Any], Any] = lambda stage, value: None,
) -> dict:
    """Runs the pictures that the folder does not hold yet, and sums all of them up.

    On all devices of this process, and in all processes if there are several (`jax.distributed`).

    Args:
        config: see `Run`.
        batch_size: pictures that each device takes at a time.
        watch: see `pipeline.run`.

    Returns:
        The content of results.json.

    Raises:
        ValueError: the folder holds a run of another config; an unusable picture.
        OSError: the folder cannot be written, or another run is using it.
    """
    start = time.monotonic()
    run = Run(output_dir, dataset, config, overwrite)
    try:
        method = config["method"]
        setting = Setting(method, model.config.readings, dataset.protocol.threshold(method))
        if todo := run.todo():
            found = predictions(
                pipeline.spread(model), dataset, todo, [setting], batch_size=batch_size, watch=watch
            )
            for [prediction] in progress(found, len(todo), f"{dataset.name} {method}"):
                run.add(prediction)
        return run.finish(time.monotonic() - start)
    finally:
        run.close()


def _meet(where: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _lock(output_dir: Path) -> io.IOBase:
    """Keeps other runs out of the folder until it is closed, or the process has ended."""
    path = output_dir / ".lock"
    with writing(path):
        output_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OSError(
            f"another run is writing to {output_dir}; wait for it, or choose another --output_dir"
        ) from error
    return file


def _claim(output_dir: Path, config: dict, overwrite: bool) -> None:
    """Records the run's config in the folder, or finds it there already."""
    predictions = output_dir / "predictions"
    for folder in (output_dir, predictions):
        remove_leftovers(folder)
    path = output_dir / "config.json"
    config = json.loads(json.dumps(config))
    if path.is_file() and not overwrite:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [
                f"{key} {found.get(key)!r} there, {config.get(key)!r} now"
                for key in sorted(found.keys() | config.keys())
                if found.get(key) != config.get(key)
            ]
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); choose another --output_dir, or --overwrite it"
            ) from error
        if other:
            raise ValueError(
                f"{output_dir} holds a run with other settings ({'; '.join(other)}); choose "
                "another --output_dir, or --overwrite it"
            )
        return
    ours = ("confusion.csv", "results.json", "panel.png")
    for old in (*_tables(output_dir), *(output_dir / name for name in ours)):
        old.unlink(missing_ok=True)
    for old in predictions.glob("*.png"):
        old.unlink()
    write_json(path, config)


# ------------------------------------------------------------------------------- tables
#
# per_image.csv is all there is to a run's state: a row a picture, written when the picture is done.
# Each process appends to a table of its own; in the end all are one, in the dataset's order.


def _table(output_dir: Path, process: int) -> Path:
    return output_dir / (f"per_image.{process}.csv" if process else "per_image.csv")


def _tables(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("per_image*.csv"))


def _drop_cut_line(table: Path, columns: Sequence[str]) -> None:
    """Leaves the table with whole lines, its header first; what a killed run began is dropped."""
    found = table.read_bytes() if table.is_file() else b""
    whole = found[: found.rfind(b"\n") + 1] or _line(columns).encode()
    if whole != found:
        with atomic(table) as temporary:
            temporary.write_bytes(whole)


def _rows(output_dir: Path, columns: Sequence[str], ids: set[str]) -> dict[str, tuple[str, ...]]:
    """The whole lines of all tables, by the picture's id; each as it was written."""
    csv.field_size_limit(1 << 30)  # hundreds of classes make long fields
    rows = {}
    for table in _tables(output_dir):
        text = table.read_bytes().decode("utf-8", errors="replace")
        lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        for number, row in enumerate(lines, 1):
            if number == 1 and row == list(columns):
                continue
            if len(row) != len(columns) or row[-1] != _check(row[:-1]):
                raise ValueError(
                    f"line {number} of {table} is not what was written: "
                    f"{','.join(row)[:60]!r}; remove that line to have its picture run again, or "
                    "--overwrite the run"
                )
            if row[0] not in ids:
                raise ValueError(
                    f"{table} holds the picture {row[0]!r}, which the dataset lacks; choose "
                    "another --output_dir, or --overwrite it"
                )
            rows[row[0]] = tuple(row)
    return rows


def _check(row: Iterable[str]) -> str:
    return f"{zlib.crc32(_line(row).encode()):08x}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _line(row: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(row)
    return file.getvalue()


def _matrix(cells: str, num_classes: int) -> Int[np.ndarray, "C C"]:
    """A confusion matrix from the form that `_row` gives it."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for cell in cells.split():
        truth, label, pixels = map(int, cell.split(":"))
        matrix[truth, label] = pixels
    return matrix


def _row(prediction: Prediction) -> tuple[str, ...]:
    """Confusion matrices are kept sparse: truth:prediction:pixels, separated by spaces."""
    matrix = prediction.confusions[""]
    miou, _ = metrics.mean_iou(matrix)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    cells = (
        " ".join(f"{t}:{p}:{matrix[t, p]}" for t, p in zip(*np.nonzero(matrix), strict=True))
        for matrix in prediction.confusions.values()
    )
    row = prediction.id, f"{miou:.6f}", f"{accuracy:.6f}", *cells
    return *row, _check(row)


def _json_number(value: float) -> float | None:
    """JSON has no NaN: a class that nowhere occurs has null."""
    return None if math.isnan(value) else float(value)


def sentence(results: dict) -> str:
    """Says what results.json holds; "none" where no pixel counted."""
    miou = "no labelled pixel" if results["miou"] is None else f"mIoU {results['miou']:.2%}"
    subsets = "".join(
        f", {name.removeprefix('miou_')} {'none' if value is None else f'{value:.2%}'}"
        for name, value in results.items()
        if name.startswith("miou_")
    )
    return (
        f"{results['dataset']}, {results['method']}: {miou}{subsets}, "
        f"{results['num_images']} pictures"
    )
