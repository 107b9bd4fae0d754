"""Recomputes the mIoU of a run from its saved predictions, with numpy and PIL alone.

python -m experiments.check_miou --run=OUTPUT_DIR --labels=DIR [--label_offset=-1] [--ignore=255]

Shares no code with the evaluation it checks, so that a mistake in one of them shows.
"""

import json
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

_RUN = flags.DEFINE_string("run", None, "Output folder of experiments.eval --save_predictions.")
_LABELS = flags.DEFINE_string("labels", None, "The benchmark's own label files.")
_LABEL_OFFSET = flags.DEFINE_integer("label_offset", 0, "Added to stored values: -1 for ADE20K.")
_IGNORE = flags.DEFINE_integer("ignore", 255, "Stored value that does not count.")


def main(_) -> None:
    results = json.loads((Path(_RUN.value) / "results.json").read_text())
    classes = len(results["per_class"])
    intersection, union = np.zeros(classes), np.zeros(classes)
    for path in sorted((Path(_RUN.value) / "predictions").glob("*.png")):
        prediction = np.array(Image.open(path)).astype(int)
        stored = np.array(Image.open(Path(_LABELS.value) / path.name)).astype(int)
        truth = stored + _LABEL_OFFSET.value
        counted = (stored != _IGNORE.value) & (truth >= 0)
        for c in range(classes):
            said, true = (prediction == c) & counted, (truth == c) & counted
            intersection[c] += np.sum(said & true)
            union[c] += np.sum(said | true)
    miou = np.mean(intersection[union > 0] / union[union > 0])
    print(f"results.json {results['miou']:.9f}")
    print(f"recomputed   {miou:.9f}")
    print(f"difference   {abs(miou - results['miou']):.1e}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "labels"])
    app.run(main)
