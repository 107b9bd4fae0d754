"""Evaluates a model on a benchmark, on all that are prepared, or on a folder of one's own.

python -m experiments.eval --dataset=ade20k --data_dir=DIR
python -m experiments.eval --dataset=all --data_dir=DIR
python -m experiments.eval --dataset=folder --images=DIR --labels=DIR --classes=FILE
python -m experiments.eval --dataset=miniature

Leaves results.json, confusion.csv, per_image.csv and, if asked for, predictions/<id>.png and
panel.png in the output folder; of all, each in a folder of its own. A run that was cut off goes on
where it stopped when it is started again, to the same result.

Several machines share the pictures, and one output folder that all of them see, if each is started
with --coordinator=HOST:PORT --num_processes=N --process_id=0..N-1. For one --batch_size the result
is the same, bit for bit, whatever the number of devices and processes.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

import dsolo_jax as dsolo
from dsolo_jax import datasets, draw, images, pipeline, vocabulary
from dsolo_jax.datasets import miniature
from dsolo_jax.solver.discrepancy import METHODS, needs_graph
from experiments import common, processes
from experiments.evaluation import batch_size_of_run, evaluate, made_with, sentence
from experiments.profiling import Stopwatch

common.define_dataset("ade20k")
common.define_model()
flags.DEFINE_enum(
    "method", None, list(METHODS), "What scores the classes; the preset's by default."
)
_LIMIT, _BATCH_SIZE, _OUTPUT_DIR, _OVERWRITE = common.define_run("outputs/<dataset>_<method>", None)
_SAVE_PREDICTIONS = flags.DEFINE_bool("save_predictions", False, "Index PNGs of original size.")
_PANEL = flags.DEFINE_integer(
    "panel",
    None,
    "Pictures in panel.png, which saves predictions; 8 of miniature by default, of others none.",
    lower_bound=0,
)
_PROFILE = flags.DEFINE_bool("profile", False, "Wait for each stage and say what it took.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if of several.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is.", lower_bound=0)
_WAIT_SECONDS = flags.DEFINE_float(
    "wait_seconds", 300, "For which the others are waited for.", lower_bound=0
)


def main() -> None:
    _join()
    method, dataset = common.method(), flags.FLAGS.dataset
    if not pipeline.Setting(method, common.readings()).needs_graph:
        common.refuse(f"with --method={method}", "layers", "layer_weights", "timestep")
    output_dir = Path(_OUTPUT_DIR.value or f"outputs/{dataset}_{method}").expanduser()
    names = common.chosen_datasets()
    chosen = [common.load_dataset(common.dataset_settings(name)) for name in names]
    for one in chosen:
        vocabulary.parse(one.classes)  # unusable names show before anything is loaded
    watch = Stopwatch()
    model = common.load_model(chosen[0].protocol, graph=needs_graph(method))
    made = made_with(model)
    model = pipeline.spread(model)
    watch("loading")
    found = []
    sides = "short_side", "long_side", "crop", "stride"
    configs = [  # all of them first: a crop that does not fit one shows before any is run
        dataclasses.replace(model.config, **{side: getattr(one.protocol, side) for side in sides})
        for one in chosen
    ]
    for one, config in zip(chosen, configs, strict=True):
        sized = dataclasses.replace(model, config=config)
        folder = output_dir / one.name if dataset == common.ALL else output_dir
        found.append(_evaluate(sized, one, folder, made, watch))
    if jax.process_index() == 0:
        for results in found:
            print(sentence(results))
        if _PROFILE.value:
            print(watch)
        print(f"written to {output_dir}")


def _join() -> None:
    """Meets the other processes, before anything asks for devices."""
    count, index = _NUM_PROCESSES.value, _PROCESS_ID.value
    if count == 1:
        common.refuse("without --num_processes", "coordinator", "process_id", "wait_seconds")
        return
    if _COORDINATOR.value is None or index >= count:
        raise ValueError(
            f"--num_processes={count} with --process_id={index} and "
            f"--coordinator={_COORDINATOR.value}: wanted the same HOST:PORT for all processes, and "
            f"each of 0..{count - 1} once"
        )
    processes.join(_COORDINATOR.value, count, index, _WAIT_SECONDS.value)


def _evaluate(
    model: dsolo.Model, dataset: datasets.Dataset, output_dir: Path, made: dict, watch: Stopwatch
) -> dict:
    size = _BATCH_SIZE.value or batch_size_of_run(model, output_dir, _OVERWRITE.value)
    usual = 8 if dataset.name == miniature.NAME else 0
    panel = usual if _PANEL.value is None else _PANEL.value
    config = {
        **common.dataset_settings(dataset.name),
        "threshold_applied": dataset.protocol.threshold(common.method()) is not None,
        "label_coding": dataset.coding,
        "pictures": {"prepared": len(dataset), "official": dataset.official},
        "limit": _LIMIT.value,
        "method": common.method(),
        "batch_size": size,
        "save_predictions": bool(_SAVE_PREDICTIONS.value or panel),
        **common.model_settings(),
        **made,
    }
    results = evaluate(
        model,
        dataset,
        output_dir,
        config,
        batch_size=size,
        overwrite=_OVERWRITE.value,
        **({"watch": watch} if _PROFILE.value else {}),
    )
    if panel and jax.process_index() == 0:
        _panel(dataset, output_dir, min(panel, results["num_images"]))
    return results


def _panel(dataset: datasets.Dataset, output_dir: Path, count: int) -> None:
    """The first pictures beside their truth and the predictions that were saved."""
    examples = []
    for example in map(dataset.__getitem__, range(count)):
        prediction = images.read_labels(output_dir / "predictions" / f"{example['id']}.png")
        examples.append((example["image"], example["labels"], prediction))
    path = output_dir / "panel.png"
    images.write_png(path, draw.panel(examples, dataset.names, across=2))
    print(f"{count} of the pictures, their truth and prediction: {path}")


if __name__ == "__main__":
    common.run(main)
