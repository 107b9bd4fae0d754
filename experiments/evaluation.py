"""A dataset through a model: a run is a folder that can be cut off and gone on with.

On all devices of a process and in several processes, each of which takes its share of the pictures.
For one batch size the result is the same, bit for bit, whatever their number.
"""

import errno
import fcntl
import io
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from dsolo_jax.utils.files import remove_leftovers, write_json, writing
from dsolo_jax.utils.progress import progress
from experiments import per_image
from experiments.bootstrap import Tally

# What a file system says that knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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
    of them adds the pictures of its `share`. No other run may use the folder until this one is
    closed, as it is at the end of a `with`.

    Args:
        config: what decides the result: "method", "limit", "save_predictions" are read here, all
            of it is recorded, and a folder with a run of another config is refused.
        overwrite: leave nothing of what the folder holds.

    Raises:
        ValueError: the folder holds a run of another config, or files that are not what was
            written.
        OSError: the folder cannot be written, or another run is using it.
    """

    def __init__(
        self, output_dir: Path, dataset: datasets.Dataset, config: dict, overwrite: bool = False
    ):
        self.output_dir, self._dataset, self._config = output_dir, dataset, config
        self._columns = per_image.columns(dataset.subsets)
        self._table = per_image.path(output_dir, jax.process_index())
        self.ids = dataset.ids[: config["limit"]]
        self._lock = _lock(output_dir) if jax.process_index() == 0 else None
        try:
            if self._lock is not None:
                _claim(output_dir, config, overwrite)
            _meet(f"{output_dir} is claimed")
            per_image.drop_cut_line(self._table, self._columns)
            self._rows = per_image.read(output_dir, self._columns, set(self.ids))
            path = output_dir / "results.json"
            self.results = _read_json(path) if path.is_file() else None  # of a finished run
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        row = per_image.row(prediction.id, prediction.confusions.values())
        with writing(self._table), self._table.open("a", encoding="utf-8") as file:
            file.write(per_image.line(row))
        self._rows[prediction.id] = row

    def finish(self, seconds: float) -> dict:
        """Sums all pictures up; process 0 writes what is left to write.

        Returns:
            The content of results.json; seconds and versions stay those of a run finished before.
        """
        _meet(f"{self.output_dir} is filled")
        rows = self._rows = per_image.read(self.output_dir, self._columns, set(self.ids))
        classes = len(self._dataset.classes)
        matrices = sum(per_image.matrices(rows[id_], classes) for id_ in self.ids)
        results = _results(self._dataset, self._config, matrices, len(self.ids))
        results["seconds"] = seconds
        if self.results is not None:
            kept = {"versions", "seconds"} & self.results.keys()
            results |= {key: self.results[key] for key in kept}
        _meet(f"{self.output_dir} is summed up")  # no process reads the tables any more
        if jax.process_index() == 0:
            per_image.write(self._table, [self._columns, *(rows[id_] for id_ in self.ids)])
            for table in per_image.paths(self.output_dir):
                if table != self._table:
                    table.unlink()
            cells = [self._dataset.names, *matrices[0].tolist()]
            per_image.write(self.output_dir / "confusion.csv", cells)
            write_json(self.output_dir / "results.json", results)
        return results

    def close(self) -> None:
        """Lets other runs have the folder."""
        if self._lock is not None:
            self._lock.close()

    def tally(self) -> Tally:
        """Counts intersection and union of each picture, in the dataset's order."""
        classes = len(self._dataset.classes)
        of_each = (Tally.of(per_image.matrices(self._rows[id_], classes)[0]) for id_ in self.ids)
        return Tally(*map(np.stack, zip(*of_each, strict=True)))


def _results(
    dataset: datasets.Dataset, config: dict, matrices: Int[np.ndarray, "K C C"], count: int
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
    method = config["method"]
    setting = Setting(method, model.config.readings, dataset.protocol.threshold(method))
    with Run(output_dir, dataset, config, overwrite) as run:
        if todo := run.todo():
            found = predictions(
                pipeline.spread(model), dataset, todo, [setting], batch_size=batch_size, watch=watch
            )
            for [prediction] in progress(found, len(todo), f"{dataset.name} {method}"):
                run.add(prediction)
        elif run.results is not None and jax.process_index() == 0:
            print(f"{output_dir} was finished already, nothing is run; --overwrite runs it anew")
        return run.finish(time.monotonic() - start)


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
    except BlockingIOError as error:
        file.close()
        raise OSError(
            f"another run is writing to {output_dir}; wait for it, or choose another --output_dir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{output_dir} cannot be locked ({error}); see to it yourself that no other "
            "run uses it",
            stacklevel=2,
        )
    return file


def _read_json(path: Path) -> dict:
    """Reads what `write_json` wrote of a dict."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, wanted an object")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); choose another --output_dir, or --overwrite it"
        ) from error
    return found


def _claim(output_dir: Path, config: dict, overwrite: bool) -> None:
    """Records the run's config in the folder, or finds it there already."""
    predictions = output_dir / "predictions"
    for folder in (output_dir, predictions):
        remove_leftovers(folder)
    path = output_dir / "config.json"
    config = json.loads(json.dumps(config))
    if path.is_file() and not overwrite:
        found = _read_json(path)
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
    ours = ("confusion.csv", "results.json", "panel.png")
    for old in (*per_image.paths(output_dir), *(output_dir / name for name in ours)):
        old.unlink(missing_ok=True)
    for old in predictions.glob("*.png"):
        old.unlink()
    write_json(path, config)


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
