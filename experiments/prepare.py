"""Prepares a benchmark once, from its official files.

python -m experiments.prepare --dataset=ade20k --source=DIR --data_dir=DIR
"""

import shlex
import sys
from pathlib import Path

from absl import app, flags, logging

from dsolo_jax import datasets

_DATASET = flags.DEFINE_string("dataset", "ade20k", f"One of: {', '.join(datasets.NAMES)}.")
_SOURCE = flags.DEFINE_string("source", None, "Folder of the original, as its authors lay it out.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder to prepare it in.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Build it again if it is there already.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; flags are written --name=value")
    if not flags.FLAGS["verbosity"].present:  # absl's own choice lets TFDS talk
        logging.set_verbosity(logging.WARNING)
    from dsolo_jax.datasets import prepared

    data_dir = Path(_DATA_DIR.value).expanduser()
    try:
        benchmark = datasets.benchmark(_DATASET.value)
        source = Path(_SOURCE.value).expanduser()
        built = prepared.prepare(benchmark, source, data_dir, overwrite=_OVERWRITE.value)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

    place = prepared.directory(benchmark, data_dir)
    print(f"{benchmark.name} prepared in {place}")
    if not built:
        print("  (it was there already; --overwrite builds it again)")
    for split, count in prepared.counts(benchmark, data_dir).items():
        official = benchmark.official_counts[split]
        note = "" if count == official else f" (warning: the official set has {official})"
        print(f"  {split}: {count} pictures{note}")
    print("Next:")
    there = shlex.quote(str(data_dir))
    print(f"  python -m experiments.eval --dataset={benchmark.name} --data_dir={there}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "data_dir"])
    app.run(main)
