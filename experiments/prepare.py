"""Prepares a benchmark once, from its official files.

python -m experiments.prepare --dataset=ade20k --source=DIR --data_dir=DIR
"""

import shlex
from pathlib import Path

from absl import flags

from dsolo_jax import datasets
from experiments import common

_DATASET = flags.DEFINE_string("dataset", "ade20k", f"One of: {', '.join(datasets.NAMES)}.")
_SOURCE = flags.DEFINE_string("source", None, "Folder of the original, as its authors lay it out.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder to prepare it in.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Build it again if it is there already.")


def main() -> None:
    from dsolo_jax.datasets import prepared  # imports TFDS

    benchmark = datasets.benchmark(_DATASET.value)
    data_dir, source = (Path(d.value).expanduser() for d in (_DATA_DIR, _SOURCE))
    built = prepared.prepare(benchmark, source, data_dir, overwrite=_OVERWRITE.value)

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
    common.run(main, required=["source", "data_dir"])
