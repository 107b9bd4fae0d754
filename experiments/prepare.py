"""Prepares a benchmark once, from its official files.

python -m experiments.prepare --dataset=ade20k --source=DIR --data_dir=DIR
python -m experiments.prepare --dataset=miniature --data_dir=DIR [--world_seed=N]

experiments.eval draws the miniature world itself; preparing it serves those who read it by TFDS.
"""

import shlex
from pathlib import Path

from absl import flags

from dsolo_jax import datasets
from dsolo_jax.datasets import miniature
from experiments import common

_DATASET = flags.DEFINE_string(
    "dataset", "ade20k", f"One of: {', '.join((*datasets.NAMES, miniature.NAME))}."
)
_SOURCE = flags.DEFINE_string("source", None, "Folder of the original, as its authors lay it out.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder to prepare it in.")
_LABELS = flags.DEFINE_string(
    "labels", None, "Label maps to take where there are several, e.g. SegmentationClassAug of VOC."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Build it again if it is there already.")
_WORLD_SEED = flags.DEFINE_integer("world_seed", 0, "miniature: which world.", lower_bound=0)


def main() -> None:
    if _DATASET.value == miniature.NAME:
        common.refuse("with --dataset=miniature, which is drawn", "source", "labels")
        place = miniature.prepare(_DATA_DIR.value, _WORLD_SEED.value, overwrite=_OVERWRITE.value)
        print(f"miniature in {place}; tfds.builder_from_directory reads it")
        return
    common.refuse(f"with --dataset={_DATASET.value}", "world_seed")
    if _SOURCE.value is None:
        raise ValueError(f"--dataset={_DATASET.value} needs --source too: the original's folder")
    from dsolo_jax.datasets import prepared  # imports TFDS

    benchmark = datasets.benchmark(_DATASET.value)
    data_dir, source = (Path(d.value).expanduser() for d in (_DATA_DIR, _SOURCE))
    built = prepared.prepare(
        benchmark, source, data_dir, labels=_LABELS.value, overwrite=_OVERWRITE.value
    )

    print(f"{benchmark.name} prepared in {prepared.directory(benchmark, data_dir)}")
    if not built:
        print("  (it was there already; --overwrite builds it again)")
    summary = prepared.summary(benchmark, data_dir)
    for split, ids in summary.ids.items():
        official = summary.official[split]
        note = "" if len(ids) == official else f" (warning: the official set has {official})"
        print(f"  {split}: {len(ids)} pictures{note}")
    print("Next:")
    there = shlex.quote(str(data_dir))
    for name in datasets.NAMES:
        other = datasets.benchmark(name)
        if other.collection == benchmark.collection and summary.labels in other.label_tables:
            print(f"  python -m experiments.eval --dataset={name} --data_dir={there}")


if __name__ == "__main__":
    common.run(main, required=["data_dir"])
