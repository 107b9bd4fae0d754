"""What all attention sources share: how they take pictures, and how their layers are weighed.

Each source is a module that has the same four names:

    LAYERS                 averaged if none are named
    layer_names(config)    what a layer may be called -> its own name
    squares(config)        how it takes pictures, a `Squares`
    self_attention(params, config, pixels, *, layers, weights)    [B, S, S, 3] -> A [B, N, N]
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dsolo_jax.transformer import Weights
from dsolo_jax.utils.checks import choose


class Squares(NamedTuple):
    """The squares of pixels that a source takes.

    patch: side of the pixels behind one node of the graph.
    multiple: what a square's side must be a multiple of.
    size: the side that is taken if none is named.
    mean, std: of each channel of pixels in 0..1, by which they are normalised.
    """

    patch: int
    multiple: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def block_names(count: int, others: Iterable[str] = ()) -> dict[str, str]:
    """Gives what a layer may be called -> its own name: of the blocks of a transformer, "0", "1",
    ... or from the end "-1", "-2", ..., and of others."""
    forwards = {str(i): str(i) for i in range(count)}
    backwards = {str(i): str(i + count) for i in range(-1, -count - 1, -1)}
    return forwards | backwards | {name: name for name in others}


def weigh(
    layers: Sequence[str],
    weights: Sequence[float] | None,
    names: Mapping[str, str],
    what: str = "layer",
) -> Weights:
    """Gives each layer its weight, by its own name; one that is named twice counts twice.

    Args:
        names: what a layer may be called -> its own name.
        what: what errors call a layer.

    Raises:
        ValueError: an unknown layer; no layer; weights that do not fit them.
    """
    for layer in layers:
        choose(what, layer, names)
    weights = [1.0] * len(layers) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(layers) or not 0 < sum(weights) < math.inf or min(weights) < 0:
        raise ValueError(
            f"weights {weights} for layers {list(layers)}: wanted at least one layer, and for each "
            "a weight of at least 0, not all 0"
        )
    merged: dict[str, float] = {}
    for layer, weight in zip(layers, weights, strict=True):
        merged[names[layer]] = merged.get(names[layer], 0.0) + weight
    return tuple(merged.items())
