"""Benchmarks and folders of labelled pictures.

A new benchmark is one file with a `BENCHMARK` and one row in the table below.
"""

from pathlib import Path

from dsolo_jax.checks import choose
from dsolo_jax.datasets import ade20k
from dsolo_jax.datasets.benchmark import IGNORE, Benchmark, Dataset, read_classes
from dsolo_jax.datasets.folder import load_folder
from dsolo_jax.datasets.loading import examples

__all__ = [
    "IGNORE",
    "NAMES",
    "Benchmark",
    "Dataset",
    "benchmark",
    "examples",
    "load",
    "load_folder",
    "read_classes",
]

_BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in (ade20k,)}
NAMES = tuple(_BENCHMARKS)


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: unknown; the message has the nearest and all of `NAMES`.
    """
    return _BENCHMARKS[choose("dataset", name, NAMES)]


def load(name: str, data_dir: str | Path, split: str = "validation") -> Dataset:
    """A prepared benchmark: classes, ids and examples dict(id, image, labels).

    Raises:
        ValueError: an unknown name or split.
        FileNotFoundError: not prepared; the message holds the command that prepares it.
    """
    chosen = benchmark(name)
    from dsolo_jax.datasets import prepared  # imports TFDS, half a second

    return prepared.load(chosen, Path(data_dir), split)
