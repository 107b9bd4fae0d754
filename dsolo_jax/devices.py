"""Programs on one device or on several, each of which does what one would do alone."""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


def check() -> None:
    """Asks JAX for its devices, before anything is read for them.

    Raises:
        OSError: there is none of the kind that JAX_PLATFORMS names.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX has no plugin for it
        raise OSError(
            f"JAX has no device of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} "
            f"({str(error) or 'no plugin'}); install JAX for it, or leave it unset to run on any"
        ) from error


def parts(found: Array) -> Iterator[Array]:
    """Yields what each device has of a batch, in its order."""
    for shard in sorted(found.addressable_shards, key=lambda shard: shard.index[0].start or 0):
        yield shard.data


def each(found: Array) -> Iterator[Array]:
    """Yields the members of a batch one by one, each on the device that it is on."""
    for part in parts(found):
        yield from part


@functools.cache
def program(function: Callable, mesh: Mesh | None, **static: Any) -> Callable:
    """Jits a pure function with its static arguments bound; the others go into two dicts.

    With a mesh, each device has the first dict's arrays whole and takes its share of the leading
    axes of the second's: what it does with it is what it would do alone.
    """

    def call(whole, shared):
        return function(**whole, **shared, **static)

    call.__name__ = function.__name__
    if mesh is None:
        return jax.jit(call)
    parts = PartitionSpec(*mesh.axis_names)
    specs = PartitionSpec(), parts
    return jax.jit(jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=parts, check_vma=False))


def replicated(arrays: Any, mesh: Mesh | None) -> Any:
    """Puts all of the arrays on each device of a mesh."""
    return arrays if mesh is None else jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
