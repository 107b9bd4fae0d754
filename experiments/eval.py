"""Evaluates a model on a benchmark, on all that are prepared, or on a folder of one's own.

python -m experiments.eval --dataset=ade20k --data_dir=DIR
python -m experiments.eval --dataset=all --data_dir=DIR
python -m experiments.eval --dataset=folder --images=DIR --labels=DIR --classes=FILE
python -m experiments.eval --dataset=miniature

Leaves results.json, confusion.csv, per_image.csv and, if asked for, panel.png (the first pictures
beside their truth and prediction) and predictions/<id>.png in the output folder; of all, each in a
folder of its own. A run that was cut off goes on where it stopped when it is started again, to the
same result.

Every device of the machine takes one picture at a time. Several machines share the pictures, and
one output folder that all of them see, if each is started with

    --coordinator=HOST:PORT --num_processes=N --process_id=0..N-1

The result is the same, bit for bit, whatever the number of devices and processes.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

import dsolo_jax as dsolo
from dsolo_jax import datasets, images, pipeline, vocabulary
from dsolo_jax.datasets import miniature
from experiments import common
from experiments.compilations import Compilations
from experiments.evaluation import evaluate, sentence
from experiments.panel import panel
from experiments.stopwatch import Stopwatch

_ALL = "all"

_DATASET = common.define_dataset()
_MODEL = common.define_model(_DATASET)
_METHOD = common.define_method()
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first pictures.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1, "Pictures a device is given before results are written.", lower_bound=1
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: outputs/<dataset>_<method>.")
_SAVE_PREDICTIONS = flags.DEFINE_bool("save_predictions", False, "Index PNGs of original size.")
_PANEL = flags.DEFINE_integer(
    "panel", None, "Pictures in panel.png; 8 of miniature by default, or none.", lower_bound=0
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Start anew in a folder that holds a run.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if of several.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is.", lower_bound=0)


def main() -> None:
    _join()
    output_dir = Path(
        _OUTPUT_DIR.value or f"outputs/{_DATASET.dataset.value}_{_METHOD.value}"
    ).expanduser()
    chosen = {name: _dataset(name) for name in _names()}
    watch, compilations = Stopwatch(), Compilations()
    model = pipeline.spread(_MODEL.load())
    found = {}
    for name, dataset in chosen.items():
        folder = output_dir / name if _DATASET.dataset.value == _ALL else output_dir
        sized = dataclasses.replace(model, **_MODEL.sides(dataset.protocol))
        found[name] = _evaluate(sized, dataset, folder, watch)
    if jax.process_index() == 0:
        for results in found.values():
            print(sentence(results))
        print(watch)
        print(compilations)
        print(f"written to {output_dir}")


def _join() -> None:
    """Meets the other processes, before anything asks for devices."""
    if _NUM_PROCESSES.value == 1:
        return
    if _COORDINATOR.value is None or _PROCESS_ID.value >= _NUM_PROCESSES.value:
        raise ValueError(
            f"--num_processes={_NUM_PROCESSES.value} with --process_id={_PROCESS_ID.value} and "
            f"--coordinator={_COORDINATOR.value}: wanted the same HOST:PORT for all processes, and "
            f"each of 0..{_NUM_PROCESSES.value - 1} once"
        )
    jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)


def _names() -> list[str]:
    """The dataset's, or those of all that are prepared."""
    if _DATASET.dataset.value != _ALL:
        return [_DATASET.dataset.value]
    if _DATASET.data_dir.value is None:
        raise ValueError(f"--dataset={_ALL} needs --data_dir too")
    names = datasets.prepared_names(_DATASET.data_dir.value)
    if not names:
        raise FileNotFoundError(
            f"nothing is prepared in {_DATASET.data_dir.value}; prepare a benchmark first:\n"
            "    python -m experiments.prepare --dataset=NAME --source=DIR --data_dir=DIR"
        )
    return names


def _dataset(name: str) -> datasets.Dataset:
    dataset = _DATASET.load(_DATASET.protocol(_MODEL, name), name)
    vocabulary.parse(dataset.classes)  # unusable names show before anything is loaded
    return dataset


def _evaluate(
    model: dsolo.Model, dataset: datasets.Dataset, output_dir: Path, watch: Stopwatch
) -> dict:
    config = {
        **_DATASET.settings(dataset.protocol, dataset.name),
        "threshold_applied": dataset.protocol.threshold(_METHOD.value) is not None,
        "label_coding": dataset.coding,
        "pictures": {"prepared": len(dataset), "official": dataset.official},
        "limit": _LIMIT.value,
        "method": _METHOD.value,
        "save_predictions": _SAVE_PREDICTIONS.value,
        **_MODEL.settings(model),
    }
    results = evaluate(
        model,
        dataset,
        output_dir,
        config,
        batch_size=_BATCH_SIZE.value,
        overwrite=_OVERWRITE.value,
        watch=watch,
    )
    pictures = 8 if dataset.name == miniature.NAME else 0
    if _PANEL.value is not None:
        pictures = _PANEL.value
    pictures = min(pictures, results["num_images"])
    if pictures and jax.process_index() == 0:
        path = output_dir / "panel.png"
        images.write_png(path, panel(model, dataset, pictures, _METHOD.value))
        print(f"{pictures} of the pictures, their truth and prediction: {path}")
    return results


if __name__ == "__main__":
    common.run(main)
