"""A dataset through a model: its predictions, and a run of them that can be cut off.

On all devices of a process, one picture a device, and in several processes, each of which takes its
share of the pictures. The result is the same, bit for bit, whatever their number.
"""

import csv
import io
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np
from jax.experimental import multihost_utils

import dsolo_jax as dsolo
from dsolo_jax import datasets, images, metrics, pipeline, vocabulary
from dsolo_jax.utils.files import atomic, remove_leftovers, write_json, writing
from dsolo_jax.utils.progress import progress
from experiments.bootstrap import Tally

_COLUMNS = ("id", "miou", "accuracy")
_RESULTS = ("confusion.csv", "results.json")


class Prepared(NamedTuple):
    """An example made ready for the model."""

    id: str
    picture: dsolo.Picture
    truth: np.ndarray  # int32 [H, W]
    subsets: dict[str, np.ndarray]  # bool [H, W], pixels that are scored apart too


class Prediction(NamedTuple):
    """What a model said of an example, and how it compares to the truth."""

    id: str
    labels: np.ndarray | None  # int32 [H, W], if they are kept
    confusions: dict[str, np.ndarray]  # int64 [C, C], rows truth; of all pixels ("") and subsets


# ------------------------------------------------------------------------------- predictions


def _ready(model: dsolo.Model) -> Callable[[dict], Prepared]:
    def ready(example: dict) -> Prepared:
        picture = dsolo.prepare(model, example["image"])
        return Prepared(example["id"], picture, example["labels"], example.get("subsets", {}))

    return ready


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
    so with several devices they come in another order. Confusion matrices stay on the devices until
    each of them has had `in_flight` pictures.
    """
    devices = model.mesh.size
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
            running.append((list(group), *_run(model, dataset, group, method, keep_labels, watch)))
            group.clear()
        if len(running) >= in_flight or example is None:
            for members, matrices, labels in running:
                yield from _fetched(dataset, members, matrices, labels)
            running.clear()
            watch("records")


def _run(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    group: list[Prepared],
    method: str,
    keep_labels: bool,
    watch: Callable[..., None],
) -> tuple[jax.Array, list[np.ndarray]]:
    """Confusion matrices [D, 1 + subsets, C, C], on the devices, and labels of a picture each."""
    words, readings = vocabulary.parse(dataset.classes), model.readings
    solved, decide = pipeline.decision(words, method, dataset.protocol.threshold(method))
    pictures = [example.picture for example in group]
    graph = pipeline.graph(model, pictures)
    watch("graph", graph)
    encoded = pipeline.encode(model, pictures, words, readings.start, graph)
    watch("CLIP", encoded)
    scores = pipeline.solve(encoded, solved, method, readings, model.mesh)
    watch("solver", scores)
    matrices, labels = pipeline.compare(
        model,
        pictures,
        [np.stack(list(_truths(example, dataset).values())) for example in group],
        scores,
        readings,
        ignore=dataset.ignore,
        keep_labels=keep_labels,
        decide=decide,
    )
    watch("pixels", matrices)
    return matrices, labels


def _fetched(
    dataset: datasets.Dataset,
    members: list[Prepared],
    matrices: jax.Array,
    labels: list[np.ndarray],
) -> Iterator[Prediction]:
    matrices = np.asarray(matrices)[: len(members)].astype(np.int64)
    for example, counted, labels_ in zip_longest(members, matrices, labels):
        if counted[0].sum() != np.count_nonzero(example.truth != dataset.ignore):
            raise ValueError(
                f"the labels of {example.id} hold classes outside 0..{len(dataset.classes) - 1}"
            )
        names = ("", *dataset.subsets)
        yield Prediction(example.id, labels_, dict(zip(names, counted, strict=True)))


def _truths(example: Prepared, dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """The example's truth, "", and that of each subset's pixels alone."""
    return {"": example.truth} | {
        name: np.where(inside, example.truth, dataset.ignore)
        for name, inside in example.subsets.items()
    }


def confusions(
    labels: np.ndarray, example: Prepared, dataset: datasets.Dataset
) -> dict[str, np.ndarray]:
    """The example's confusion matrix, "", and that of each subset's pixels alone."""
    return {
        name: np.asarray(
            metrics.confusion_matrix(labels, truth, len(dataset.classes), dataset.ignore), np.int64
        )
        for name, truth in _truths(example, dataset).items()
    }


def subset_miou(matrix: np.ndarray) -> float:
    """Mean IoU of the classes that a subset of the pixels holds, counted on these pixels alone.

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
    of them adds the pictures of its `share`.

    Args:
        config: what decides the result: "method", "limit", "save_predictions" are read here, all
            of it is recorded, and a folder with a run of another config is refused.

    Raises:
        ValueError: the folder holds a run of another config.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, output_dir: Path, dataset: datasets.Dataset, config: dict, overwrite: bool = False
    ):
        self.output_dir, self._dataset, self._config = output_dir, dataset, config
        self._table = _table(output_dir, jax.process_index())
        self._columns = _columns(dataset)
        if jax.process_index() == 0:
            _claim(output_dir, config, overwrite)
        _meet(f"{output_dir} is claimed")
        _drop_cut_line(self._table, self._columns)
        self.ids = dataset.ids[: config["limit"]]
        self._done = set(_rows(output_dir, set(self.ids)))

    @property
    def share(self) -> range:
        """Indices of the pictures that are this process's."""
        return range(jax.process_index(), len(self.ids), jax.process_count())

    def lacks(self, ids: Iterable[str]) -> bool:
        """Whether it does not hold all of these pictures yet."""
        return any(id_ not in self._done for id_ in ids)

    def add(self, prediction: Prediction) -> None:
        """Writes a prediction down, unless the folder holds it."""
        if prediction.id in self._done:
            return
        if self._config["save_predictions"]:
            path = self.output_dir / "predictions" / f"{prediction.id}.png"
            images.write_png(path, prediction.labels)
        with writing(self._table), self._table.open("a", encoding="utf-8") as file:
            file.write(_line(_row(prediction)))
        self._done.add(prediction.id)

    def finish(self, seconds: float) -> dict:
        """Sums all pictures up; process 0 writes what is left to write.

        Returns:
            The content of results.json.
        """
        _meet(f"{self.output_dir} is filled")
        rows = _rows(self.output_dir, set(self.ids))
        subsets, classes = self._dataset.subsets, len(self._dataset.classes)
        total, *of_subsets = (
            sum(
                (_matrix(row[column], classes) for row in rows.values()),
                np.zeros((classes, classes), np.int64),
            )
            for column in range(len(_COLUMNS), len(self._columns))
        )
        miou, iou = metrics.mean_iou(total)
        results = {
            "dataset": self._dataset.name,
            "method": self._config["method"],
            "miou": _json_number(miou),
            "per_class": {
                name: _json_number(value)
                for name, value in zip(self._dataset.names, iou, strict=True)
            },
            **{
                f"miou_{name}": _json_number(subset_miou(matrix))
                for name, matrix in zip(subsets, of_subsets, strict=True)
            },
            "num_images": len(self.ids),
            "seconds": seconds,
            "config": self._config,
            "versions": {
                "dsolo_jax": dsolo.__version__,
                "jax": jax.__version__,
                "flax": flax.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "device": jax.devices()[0].device_kind,
            },
        }
        _meet(f"{self.output_dir} is summed up")  # no process reads the tables any more
        if jax.process_index() == 0:
            ordered = [self._columns, *(rows[id_] for id_ in self.ids)]
            _write_lines(self._table, map(_line, ordered))
            for table in _tables(self.output_dir):
                if table != self._table:
                    table.unlink()
            _write_lines(self.output_dir / "confusion.csv", (_line(map(str, r)) for r in total))
            write_json(self.output_dir / "results.json", results)
        return results


def unfinished(runs: Sequence[Run], batch_size: int) -> list[int]:
    """Indices of the pictures in batches that one of the runs does not hold whole.

    Batches start at multiples of their size, so a run that was cut off forms the same ones.
    """
    ids = runs[0].ids
    firsts = range(0, len(ids), batch_size)
    batches = {first: ids[first : first + batch_size] for first in firsts}
    return [
        first + i
        for first, batch in batches.items()
        if any(run.lacks(batch) for run in runs)
        for i in range(len(batch))
    ]


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

    On all devices of this process, and in all processes if there are several (`jax.distributed`).

    Args:
        model: `pipeline.spread` is done here if it is not done yet.
        config: see `Run`.
        batch_size: pictures that each device is given before results are fetched and written.
        watch: called as each stage ends, see `dsolo.segment_batch`.

    Returns:
        The content of results.json.

    Raises:
        ValueError: the folder holds a run of another config; an unusable picture.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    run = Run(output_dir, dataset, config, overwrite)
    todo = [i for i in run.share if run.lacks([run.ids[i]])]
    if todo:
        # First, as it has a progress of its own.
        watch("text", pipeline.embed_classes(model, vocabulary.parse(dataset.classes)))
        found = predictions(
            pipeline.spread(model),
            dataset,
            todo,
            method=config["method"],
            in_flight=batch_size,
            keep_labels=config["save_predictions"],
            watch=watch,
        )
        for prediction in progress(found, len(todo), f"{dataset.name} {config['method']}"):
            run.add(prediction)
    return run.finish(time.monotonic() - start)


def tally(run: Run, dataset: datasets.Dataset) -> Tally:
    """Intersection and union of each picture that a run holds, in the dataset's order."""
    found = _rows(run.output_dir, set(run.ids))
    matrices = (_matrix(found[id_][len(_COLUMNS)], len(dataset.classes)) for id_ in run.ids)
    return Tally(*map(np.stack, zip(*map(Tally.of, matrices), strict=True)))


def _meet(where: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _claim(output_dir: Path, config: dict, overwrite: bool) -> None:
    """Records the run's config in the folder, or finds it there already."""
    for folder in (output_dir, output_dir / "predictions"):
        remove_leftovers(folder)
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


# ------------------------------------------------------------------------------- tables
#
# per_image.csv is all there is to a run's state: a row a picture, written when the picture is done.
# Each process appends to a table of its own; in the end all are one, in the dataset's order.


def _table(output_dir: Path, process: int) -> Path:
    return output_dir / (f"per_image.{process}.csv" if process else "per_image.csv")


def _tables(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("per_image*.csv"))


def _columns(dataset: datasets.Dataset) -> tuple[str, ...]:
    return (*_COLUMNS, "confusion", *(f"confusion_{name}" for name in dataset.subsets))


def _drop_cut_line(table: Path, columns: tuple[str, ...]) -> None:
    """Leaves the table with whole lines, its header first; what a killed run began is dropped."""
    found = table.read_bytes() if table.is_file() else b""
    whole = found[: found.rfind(b"\n") + 1] or _line(columns).encode()
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


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _line(row: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(row)
    return file.getvalue()


def _matrix(cells: str, num_classes: int) -> np.ndarray:
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
    return prediction.id, f"{miou:.6f}", f"{accuracy:.6f}", *cells


def _json_number(value: float) -> float | None:
    """JSON has no NaN: a class that nowhere occurs has null."""
    return None if math.isnan(value) else float(value)


def sentence(results: dict) -> str:
    """What the screen says of the content of results.json; "none" where no pixel counted."""
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
