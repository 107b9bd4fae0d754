"""Evaluates a model on a benchmark, or on a folder of pictures and index PNGs.

python -m experiments.eval --dataset=ade20k --data_dir=DIR
python -m experiments.eval --dataset=folder --images=DIR --labels=DIR --classes=FILE
python -m experiments.eval --dataset=miniature

Leaves results.json, per_image.csv and, if asked for, panel.png (the first pictures beside their
truth and prediction) and predictions/<id>.png in the output folder. A run that was cut off goes on
where it stopped when it is started again, to the same result.
"""

import dataclasses
from pathlib import Path

from absl import flags

from dsolo_jax import images, vocabulary
from dsolo_jax.datasets import miniature
from experiments import common
from experiments.evaluation import evaluate
from experiments.panel import panel
from experiments.stopwatch import Stopwatch

_DATASET = common.define_dataset()
_MODEL = common.define_model(_DATASET)
_METHOD = common.define_method()
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first pictures.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Pictures at a time.", lower_bound=1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: outputs/<dataset>_<method>.")
_SAVE_PREDICTIONS = flags.DEFINE_bool("save_predictions", False, "Index PNGs of original size.")
_PANEL = flags.DEFINE_integer(
    "panel", None, "Pictures in panel.png; 8 of miniature by default, or none.", lower_bound=0
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Start anew in a folder that holds a run.")


def main() -> None:
    output_dir = Path(
        _OUTPUT_DIR.value or f"outputs/{_DATASET.dataset.value}_{_METHOD.value}"
    ).expanduser()
    protocol = _DATASET.protocol(_MODEL)
    dataset = _DATASET.load(protocol)
    vocabulary.parse(dataset.classes)  # unusable names show before anything is loaded
    model = _MODEL.load(protocol)
    config = {
        **_DATASET.settings(),
        "protocol": dataclasses.asdict(protocol),
        "threshold_applied": protocol.threshold(_METHOD.value) is not None,
        "label_coding": dataset.coding,
        "pictures": {"prepared": len(dataset), "official": dataset.official},
        "limit": _LIMIT.value,
        "method": _METHOD.value,
        "save_predictions": _SAVE_PREDICTIONS.value,
        **_MODEL.settings(model),
    }
    watch = Stopwatch()
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
    if pictures:
        path = output_dir / "panel.png"
        images.write_png(path, panel(model, dataset, pictures, _METHOD.value))
        print(f"{pictures} of the pictures, their truth and prediction: {path}")
    miou = "no labelled pixel" if results["miou"] is None else f"mIoU {results['miou']:.2%}"
    subsets = "".join(f", {name} {100 * results[f'miou_{name}']:.2f}%" for name in dataset.subsets)
    print(
        f"{results['dataset']}, {results['method']}: {miou}{subsets}, "
        f"{results['num_images']} pictures"
    )
    print(watch)
    print(f"written to {output_dir / 'results.json'}")


if __name__ == "__main__":
    common.run(main)
