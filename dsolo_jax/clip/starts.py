"""What CLIP's last block does with the patches: a table from a start's name to its formula.

q, k, v are the last block's; G is NACLIP's neighbourhood; A is a patch graph. The block's residual
sum and MLP are kept by "vanilla", which is CLIP itself, "maskclip_residual" and "sclip"; the others
drop them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsolo_jax.resample import resample_maps
from dsolo_jax.transformer import Bias, Block, Heads, attend
from dsolo_jax.utils.checks import choose

# Distance, in patches, over which NACLIP's neighbourhood term fades.
_SIGMA = 5.0


class Start(NamedTuple):
    """How the last block mixes the values, and whether its residual sum and MLP are kept.

    mix: q, k, v, a bias that hides the padding, and G.
    by_graph: whether what is mixed goes from there to the graph's grid and is mixed by A.
    """

    mix: Callable[[Heads, Heads, Heads, Bias, Bias], Heads]
    whole: bool = False
    by_graph: bool = False


TABLE = {
    # softmax(qkᵀ) v
    "vanilla": Start(lambda q, k, v, keys, near: attend(q, k, v, keys), whole=True),
    # v: MaskCLIP (Zhou et al. 2022) as later papers run it, and as its own code does and LPOSS
    "maskclip": Start(lambda q, k, v, keys, near: v),
    "maskclip_residual": Start(lambda q, k, v, keys, near: v, whole=True),
    # softmax(qqᵀ) v + softmax(kkᵀ) v: SCLIP (Wang et al. 2024)
    "sclip": Start(
        lambda q, k, v, keys, near: attend(q, q, v, keys) + attend(k, k, v, keys), whole=True
    ),
    # softmax(kkᵀ) v
    "kk": Start(lambda q, k, v, keys, near: attend(k, k, v, keys)),
    # softmax(qqᵀ) v: ClearCLIP (Lan et al. 2024)
    "clearclip": Start(lambda q, k, v, keys, near: attend(q, q, v, keys)),
    # softmax(kkᵀ + G) v: NACLIP (Hajimiri et al. 2025)
    "naclip": Start(lambda q, k, v, keys, near: attend(k, k, v, keys + near)),
    # A v, the same A for every head: ProxyCLIP (Lan et al. 2024), whose A is DINO's "affinity"
    "proxyclip": Start(lambda q, k, v, keys, near: v, by_graph=True),
}

STARTS = tuple(TABLE)


def needs_graph(start: str) -> bool:
    """Whether a start of `STARTS` mixes the values by the graph of an attention source.

    Raises:
        ValueError: unknown start.
    """
    return TABLE[choose("start", start, STARTS)].by_graph


def patches(
    start: str,
    block: Block,
    x: Float[Array, "B S W"],
    heads: tuple[Heads, Heads, Heads],
    keys: Bias,
    place: Int[Array, "B n 2"],
    grid: Int[Array, "B 2"],
    graph: Float[Array, "B N N"] | None,
) -> Float[Array, "B n W"] | Float[Array, "B N W"]:
    """Runs the last block by a start, on its input x, of which `heads` are q, k and v.

    Args:
        keys: hides the padding.
        place: the row and column of each patch in its picture's grid.
        graph: A; its grid is where the patches lie afterwards if the start needs it.

    Returns:
        The patches alone, without the class token.
    """
    mix, whole, by_graph = TABLE[start]
    mixed = mix(*heads, keys, _neighbourhood(place))
    if by_graph:
        assert graph is not None
        return block.merge(_mix_by_graph(mixed[:, :, 1:], grid, graph))
    return (block.finish(x, mixed) if whole else block.merge(mixed))[:, 1:]


def _mix_by_graph(
    values: Heads, grid: Int[Array, "B 2"], graph: Float[Array, "B N N"]
) -> Float[Array, "B K N d"]:
    """A v, where v is first resampled from the picture's grid to the graph's."""
    side, (_, heads, _, d) = math.isqrt(graph.shape[-1]), values.shape

    def one(v: Float[Array, "K n d"], grid: Int[Array, "2"]) -> Float[Array, "K N d"]:
        maps = v.swapaxes(1, 2).reshape(heads * d, -1)
        return resample_maps(maps, grid, side).reshape(heads, d, -1).swapaxes(1, 2)

    v = jax.vmap(one)(values, grid).astype(values.dtype)
    weights = graph.astype(values.dtype)[:, None]
    return jnp.matmul(weights, v, preferred_element_type=jnp.float32).astype(values.dtype)


def _neighbourhood(place: Int[Array, "B n 2"]) -> Bias:
    """G[i, j] = exp(-dist(i, j)² / (2 σ²)) between patches, 0 for the class token."""
    apart = (place[:, :, None] - place[:, None]).astype(jnp.float32)
    near = jnp.exp(-jnp.square(apart).sum(axis=-1) / (2 * _SIGMA**2))
    return jnp.pad(near, ((0, 0), (1, 0), (1, 0)))[:, None]
