"""Benchmarks and folders of labelled pictures.

A new benchmark is one file with its `BENCHMARKS`, one row in the table below, one in `protocols`,
and its word lists in vocab/.
"""

from pathlib import Path

from dsolo_jax.datasets import ade20k, cityscapes, coco, context, voc
from dsolo_jax.datasets.benchmark import Benchmark, Dataset
from dsolo_jax.datasets.folder import load_folder
from dsolo_jax.datasets.loading import examples
from dsolo_jax.datasets.protocols import PROTOCOLS, Protocol, protocol
from dsolo_jax.utils.checks import choose

__all__ = [
    "NAMES",
    "PROTOCOLS",
    "Benchmark",
    "Dataset",
    "Protocol",
    "benchmark",
    "examples",
    "load",
    "load_folder",
    "prepared_names",
    "protocol",
]

_BENCHMARKS = {
    benchmark.name: benchmark
    for module in (voc, context, coco, cityscapes, ade20k)
    for benchmark in module.BENCHMARKS
}

# In the order of the paper's table.
NAMES = tuple(name for name in PROTOCOLS if name in _BENCHMARKS)


def benchmark(name: str) -> Benchmark:
    """Finds the benchmark of that name; ValueError if there is none."""
    return _BENCHMARKS[choose("dataset", name, NAMES)]


def load(
    name: str, data_dir: str | Path, split: str = "validation", protocol: Protocol | None = None
) -> Dataset:
    """Reads a prepared benchmark: classes, ids and examples dict(id, image, labels).

    Args:
        protocol: how it is run; if None its own, see `protocols`.

    Raises:
        ValueError: an unknown name or split; label maps it cannot be had from.
        FileNotFoundError: not prepared; the message holds the command that prepares it.
    """
    chosen = benchmark(name)
    from dsolo_jax.datasets import prepared  # imports TFDS, half a second

    return prepared.load(chosen, Path(data_dir), split, protocol or PROTOCOLS[name])


def prepared_names(data_dir: str | Path) -> list[str]:
    """Names of the benchmarks that can be had from what is prepared in `data_dir`."""
    from dsolo_jax.datasets import prepared

    chosen = {name: benchmark(name) for name in NAMES}
    return [
        name
        for name, one in chosen.items()
        if prepared.directory(one, Path(data_dir)).is_dir()
        and prepared.summary(one, Path(data_dir)).labels in one.label_tables
    ]
