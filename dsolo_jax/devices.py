"""Programs on one device or on several, each of which does what one would do alone."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


def each(found: Array) -> Iterator[Array]:
    """Yields the parts of a batch one by one, each on the device that it is on."""
    for shard in sorted(found.addressable_shards, key=lambda shard: shard.index[0].start or 0):
        yield from shard.data


@functools.cache
def program(
    function: Callable, mesh: Mesh | None, names: tuple[str, ...], shared: int, **static: Any
) -> Callable:
    """Jits a pure function of its arguments `names`, with the static ones bound.

    With a mesh, each device has the first `shared` arguments whole and takes its share of the
    others' leading axes: what it does with it is what it would do alone.
    """

    def call(*arrays):
        return function(**dict(zip(names, arrays, strict=True)), **static)

    call.__name__ = function.__name__
    if mesh is None:
        return jax.jit(call)
    parts = PartitionSpec(*mesh.axis_names)
    specs = [PartitionSpec()] * shared + [parts] * (len(names) - shared)
    return jax.jit(
        jax.shard_map(call, mesh=mesh, in_specs=tuple(specs), out_specs=parts, check_vma=False)
    )


def replicated(arrays: Any, mesh: Mesh | None) -> Any:
    """Puts all of the arrays on each device of a mesh."""
    return arrays if mesh is None else jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
