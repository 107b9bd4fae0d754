"""A dataset through a model: a run is a folder that can be cut off and gone on with.

For one batch size the result is the same, bit for bit, whatever the devices and processes.
"""

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Int
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import datasets, draw, images, metrics, pipeline, vocabulary
from dsolo_jax.datasets.layouts import named
from dsolo_jax.model import suitable_batch_size
from dsolo_jax.pipeline import Setting
from dsolo_jax.readings import described
from dsolo_jax.utils import fingerprint
from dsolo_jax.utils.files import (
    csv_line,
    locked,
    remove_leftovers,
    write_csv,
    write_json,
    writing,
)
from dsolo_jax.utils.progress import progress
from experiments import per_image
from experiments.bootstrap import Tally


def predictions(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    indices: Sequence[int],
    settings: Sequence[Setting],
    *,
    batch_size: int = 1,
    watch: Callable[[str, Any], Any] = lambda stage, value: None,
) -> Iterator[tuple[dict[str, Any], list[Int[np.ndarray, "H W"]]]]:
    """Yields each of the examples at `indices`, and the labels that each setting gives it.

    See `pipeline.run`: with batches they come in another order.
    """
    waiting: dict[int, dict[str, Any]] = {}

    def ready(example: dict[str, Any]) -> dict[str, Any]:
        return example | {"picture": pipeline.prepare(model.config, example["image"])}

    def pictures() -> Iterator[pipeline.Picture]:
        # Decoded while the devices are busy: two batches of all of them.
        ahead = max(2 * batch_size * model.num_devices, 8)
        how = {"threads": min(os.cpu_count() or 1, 16), "ahead": ahead}
        examples = datasets.examples(dataset, indices, transform=ready, **how)
        for number, example in enumerate(examples):
            waiting[number] = example
            yield example["picture"]

    words = vocabulary.parse(dataset.classes)
    for number, results in pipeline.run(
        model, pictures(), words, settings, batch_size=batch_size, watch=watch
    ):
        yield waiting.pop(number), [labels for labels, _ in results]


class Run(contextlib.AbstractContextManager):
    """A folder that the predictions of a dataset's pictures are written to, one after the other.

    With several processes all of them see the folder and take part in `__init__` and `finish`; each
    of them adds the pictures of its share. No other run may use the folder until this one is
    closed, as it is at the end of a `with`.

    Args:
        config: what decides the result: "method", "limit", "save_predictions" are read here, all
            of it is recorded, and a folder with a run of another config is refused.
        overwrite: leave nothing of what the folder holds.

    Raises:
        ValueError: a run of another config is there, or files that are not what was written.
        OSError: the folder cannot be written, or another run is using it.
    """

    def __init__(
        self, output_dir: Path, dataset: datasets.Dataset, config: dict, overwrite: bool = False
    ):
        data = fingerprint.of_strings(dataset.files, *dataset.classes, *dataset.ids)
        config = config | {"classes_and_files": data}
        self.output_dir, self._dataset, self._config = output_dir, dataset, config
        self._columns = per_image.columns(dataset.subsets)
        self._table = per_image.path(output_dir, jax.process_index())
        self.ids = dataset.ids[: config["limit"]]
        with contextlib.ExitStack() as opened:
            if jax.process_index() == 0:
                opened.enter_context(locked(output_dir, "--output_dir"))
                _claim(output_dir, config, overwrite)
            _meet(f"{output_dir} is claimed")
            per_image.drop_cut_line(self._table, self._columns)
            self._rows = per_image.read(output_dir, self._columns, set(self.ids))
            path = output_dir / "results.json"
            self.results = per_image.read_record(path) if path.is_file() else None  # if finished
            self.close = opened.pop_all().close  # lets other runs have the folder

    def __exit__(self, *error: object) -> None:
        self.close()

    def todo(self) -> list[int]:
        """Indices of this process's share of the pictures that it does not hold yet."""
        share = range(jax.process_index(), len(self.ids), jax.process_count())
        return [i for i in share if self.ids[i] not in self._rows]

    def add(self, example: dict[str, Any], labels: Int[np.ndarray, "H W"]) -> None:
        """Writes down what was said of an example, unless the folder holds it."""
        id_, truth, dataset = example["id"], example["labels"], self._dataset
        if id_ in self._rows:
            return
        if self._config["save_predictions"]:
            path = self.output_dir / "predictions" / f"{id_}.png"
            images.write_png(path, _in_colours(labels, len(dataset.classes)))
        subsets = (example["subsets"][name] for name in dataset.subsets)
        truths = (truth, *(np.where(inside, truth, dataset.ignore) for inside in subsets))
        confusions = [
            metrics.confusion_matrix(labels, one, len(dataset.classes), dataset.ignore)
            for one in truths
        ]
        row = per_image.row(id_, confusions, truth.size)
        with writing(self._table), self._table.open("a", encoding="utf-8") as file:
            file.write(csv_line(row))
        self._rows[id_] = row

    def finish(self, seconds: float) -> dict:
        """Sums all pictures up; process 0 writes what is left to write.

        Returns:
            The content of results.json; seconds and versions stay those of a run finished before.
        """
        _meet(f"{self.output_dir} is filled")
        rows = self._rows = per_image.read(self.output_dir, self._columns, set(self.ids))
        classes = len(self._dataset.classes)
        matrices = sum(per_image.matrices(rows[id_], classes) for id_ in self.ids)
        ignored = sum(per_image.ignored(rows[id_]) for id_ in self.ids)
        results = _results(self._dataset, self._config, matrices, ignored)
        results |= {"num_images": len(self.ids), "seconds": seconds}
        if self.results is not None:
            results |= {k: v for k, v in self.results.items() if k in ("versions", "seconds")}
        _meet(f"{self.output_dir} is summed up")  # no process reads the tables any more
        if jax.process_index() == 0:
            write_csv(self._table, [self._columns, *(rows[id_] for id_ in self.ids)])
            for table in per_image.paths(self.output_dir):
                if table != self._table:
                    table.unlink()
            cells = [self._dataset.names, *matrices[0].tolist()]
            write_csv(self.output_dir / "confusion.csv", cells)
            write_json(self.output_dir / "results.json", results)
        return results

    def tally(self) -> Tally:
        """Counts intersection and union of each picture, in the dataset's order."""
        classes = len(self._dataset.classes)
        of_each = (Tally.of(per_image.matrices(self._rows[id_], classes)[0]) for id_ in self.ids)
        return Tally(*map(np.stack, zip(*of_each, strict=True)))


def _in_colours(labels: Int[np.ndarray, "H W"], classes: int) -> np.ndarray | Image.Image:
    """The same indices with a palette, where there are so few classes that a PNG can have one."""
    if classes > 256:
        return labels
    indexed = Image.fromarray(labels.astype(np.uint8))
    indexed.putpalette(draw.palette(classes).tobytes())
    return indexed


def _results(
    dataset: datasets.Dataset, config: dict, matrices: Int[np.ndarray, "K C C"], ignored: int
) -> dict:
    total, *of_subsets = matrices
    miou, iou = metrics.mean_iou(total)
    right, truth = np.diagonal(total), total.sum(axis=1)
    there = truth > 0
    with np.errstate(invalid="ignore"):  # of no pixel all is NaN
        accuracy = right.sum() / truth.sum()
        mean_accuracy = (right[there] / truth[there]).sum() / there.sum()
    return {
        "dataset": dataset.name,
        "method": config["method"],
        "miou": _json_number(miou),
        "accuracy": _json_number(accuracy),
        "mean_accuracy": _json_number(mean_accuracy),
        "per_class": dict(zip(dataset.names, map(_json_number, iou), strict=True)),
        **{
            f"miou_{name}": _json_number(_subset_miou(matrix))
            for name, matrix in zip(dataset.subsets, of_subsets, strict=True)
        },
        "absent": [name for name, held in zip(dataset.names, there, strict=True) if not held],
        "ignored": ignored / max(ignored + int(truth.sum()), 1),
        "config": config,
        "versions": {
            **{module.__name__: module.__version__ for module in (dsolo, jax, flax, np)},
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
        },
    }


def _subset_miou(matrix: Int[np.ndarray, "C C"]) -> float:
    """The mean over the classes that a subset of the pixels holds, counted there alone: the same
    false alarms on the background would weigh more in a smaller subset."""
    held = matrix.sum(axis=1) > 0
    return float(metrics.mean_iou(matrix)[1][held].mean()) if held.any() else math.nan


def made_with(model: dsolo.Model) -> dict:
    """Names what of a model decides its results, the weights and the code too, for a config."""
    config, source = model.config, model.config.source
    return {
        "clip": config.tokenizer,
        "attention": source.name,
        "layers": list(source.layers),
        "layer_weights": source.weights,
        "attention_size": source.size,
        "grid": config.grid,
        "readings": described(config.readings),
        "weights": fingerprint.of_arrays(model.params),
        "code": fingerprint.of_code(),
    }


def batch_size_of_run(model: dsolo.Model, output_dir: Path, overwrite: bool) -> int:
    """Chooses the batch size of a run where none is asked for: that of the run in the folder, as
    only with the same it can be gone on with, or `suitable_batch_size`. All processes take what
    process 0 has chosen."""
    path, recorded = output_dir / "config.json", None
    if path.is_file() and not overwrite:
        recorded = per_image.read_record(path).get("batch_size")
    known = type(recorded) is int and recorded > 0  # another one `_claim` refuses
    size = recorded if known else suitable_batch_size(model)
    if jax.process_count() > 1:
        size = int(multihost_utils.broadcast_one_to_all(np.int32(size)))
    return size


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

    On all devices of this process, `batch_size` pictures on each at a time, and in all processes if
    there are several. See `Run` for the folder, its config and what is raised and returned.
    """
    start = time.monotonic()
    method = config["method"]
    setting = Setting(method, model.config.readings, dataset.protocol.threshold(method))
    with Run(output_dir, dataset, config, overwrite) as run:
        if todo := run.todo():
            found = predictions(
                pipeline.spread(model), dataset, todo, [setting], batch_size=batch_size, watch=watch
            )
            for example, [labels] in progress(found, len(todo), f"{dataset.name} {method}"):
                run.add(example, labels)
        elif run.results is not None and jax.process_index() == 0:
            print(f"{output_dir} was finished already, nothing is run; --overwrite runs it anew")
        return run.finish(time.monotonic() - start)


def _meet(where: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _claim(output_dir: Path, config: dict, overwrite: bool) -> None:
    """Records the run's config in the folder, or finds it there already."""
    predictions = output_dir / "predictions"
    for folder in (output_dir, predictions):
        remove_leftovers(folder)
    path = output_dir / "config.json"
    if path.is_file() and not overwrite:
        both = per_image.read_record(path), json.loads(json.dumps(config))
        found, wanted = (flatten_dict(one, sep=".") for one in both)
        other = [
            f"{key} {found.get(key)!r} there, {wanted.get(key)!r} now"
            for key in sorted(found.keys() | wanted.keys())
            if found.get(key) != wanted.get(key)
        ]
        if other:
            raise ValueError(
                f"{output_dir} holds a run with other settings ({'; '.join(other)}); choose "
                "another --output_dir, or --overwrite it"
            )
        return
    ours = (output_dir / name for name in ("confusion.csv", "results.json", "panel.png"))
    for old in (*per_image.paths(output_dir), *ours, *predictions.glob("*.png")):
        old.unlink(missing_ok=True)
    write_json(path, config)


def _json_number(value: float) -> float | None:
    """JSON has no NaN: a class that nowhere occurs has null."""
    return None if math.isnan(value) else float(value)


def sentence(results: dict) -> str:
    """Says what results.json holds, and in a second line which classes and pixels do not count."""
    parts = ["no labelled pixel" if results["miou"] is None else f"mIoU {results['miou']:.2%}"]
    for name, value in results.items():
        if name.startswith("miou_"):
            share = "none" if value is None else f"{value:.2%}"
            parts.append(f"{name.removeprefix('miou_')} {share}")
    count, held = results["num_images"], results["config"]["pictures"]["prepared"]
    parts.append(f"{count} pictures" if count == held else f"the first {count} of {held} pictures")
    said = f"{results['dataset']}, {results['method']}: {', '.join(parts)}"
    labels = []
    if results["absent"]:
        labels.append(f"no label map holds {named(results['absent'])}")
    if results["ignored"]:
        labels.append(f"{results['ignored']:.1%} of the pixels are ignored")
    return f"{said}\n  {'; '.join(labels)}" if labels else said
