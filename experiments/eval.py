"""Evaluates a model on a benchmark, or on a folder of pictures and index PNGs.

python -m experiments.eval --dataset=ade20k --data_dir=DIR
python -m experiments.eval --dataset=folder --images=DIR --labels=DIR --classes=FILE

Leaves results.json, per_image.csv and, if asked for, predictions/<id>.png in the output folder. A
run that was cut off goes on where it stopped when it is started again, to the same result.
"""

import dataclasses
from pathlib import Path

from absl import flags

from dsolo_jax import vocabulary
from experiments import common
from experiments.evaluation import evaluate
from experiments.stopwatch import Stopwatch

_DATASET = common.define_dataset()
_MODEL = common.define_model()
_METHOD = common.define_method()
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first pictures.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Pictures at a time.", lower_bound=1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: outputs/<dataset>_<method>.")
_SAVE_PREDICTIONS = flags.DEFINE_bool("save_predictions", False, "Index PNGs of original size.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Start anew in a folder that holds a run.")


def main() -> None:
    output_dir = Path(_OUTPUT_DIR.value or f"outputs/{_DATASET.dataset.value}_{_METHOD.value}")
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
        output_dir.expanduser(),
        config,
        batch_size=_BATCH_SIZE.value,
        overwrite=_OVERWRITE.value,
        watch=watch,
    )
    miou = "no labelled pixel" if results["miou"] is None else f"mIoU {results['miou']:.2%}"
    print(f"{results['dataset']}, {results['method']}: {miou}, {results['num_images']} pictures")
    print(watch)
    print(f"written to {output_dir / 'results.json'}")


if __name__ == "__main__":
    common.run(main)
