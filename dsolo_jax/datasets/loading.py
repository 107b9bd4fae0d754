"""Examples read ahead by threads, in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dsolo_jax.datasets.benchmark import Dataset

T = TypeVar("T")


def examples(
    dataset: Dataset,
    indices: Sequence[int],
    *,
    transform: Callable[[dict[str, Any]], T],
    threads: int = 2,
    ahead: int = 8,
) -> Iterator[T]:
    """Yields `transform(dataset[i])` for `indices`, in their order.

    `threads` decode and transform up to `ahead` examples while the caller is busy; 0 threads do it
    on demand. An example that cannot be read raises what the dataset raises, when its turn comes.
    """
    import grain  # with what it imports, above a second

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    source = grain.MapDataset.source(list(indices)).map(lambda index: transform(dataset[index]))
    yield from source.to_iter_dataset(options)
