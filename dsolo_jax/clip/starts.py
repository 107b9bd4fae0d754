"""What CLIP's last block does with the patches: a table from a start's name to its formula.

q, k, v are the last block's; G is NACLIP's neighbourhood. All but "vanilla", which is CLIP itself,
and "sclip" also drop the block's residual sum and MLP.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsolo_jax.transformer import Bias, Block, Heads, attend

# Distance, in patches, over which NACLIP's neighbourhood term fades.
_SIGMA = 5.0


class Start(NamedTuple):
    """How the last block mixes the values, and whether its residual sum and MLP are kept.

    mix: q, k, v, a bias that hides the padding, and G.
    """

    mix: Callable[[Heads, Heads, Heads, Bias, Bias], Heads]
    whole: bool = False


TABLE = {
    # softmax(qkᵀ) v
    "vanilla": Start(lambda q, k, v, keys, near: attend(q, k, v, keys), whole=True),
    # v: MaskCLIP (Zhou et al. 2022)
    "maskclip": Start(lambda q, k, v, keys, near: v),
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
}

STARTS = tuple(TABLE)


def patches(
    start: str,
    block: Block,
    x: Float[Array, "B S W"],
    heads: tuple[Heads, Heads, Heads],
    keys: Bias,
    place: Int[Array, "B N 2"],
) -> Float[Array, "B S W"]:
    """Runs the last block by a start, on its input x, of which `heads` are q, k and v; `keys` hides
    the padding, `place` is the row and column of each patch."""
    mix, whole = TABLE[start]
    mixed = mix(*heads, keys, _neighbourhood(place))
    return block.finish(x, mixed) if whole else block.merge(mixed)


def _neighbourhood(place: Int[Array, "B N 2"]) -> Bias:
    """G[i, j] = exp(-dist(i, j)² / (2 σ²)) between patches, 0 for the class token."""
    apart = (place[:, :, None] - place[:, None]).astype(jnp.float32)
    near = jnp.exp(-jnp.square(apart).sum(axis=-1) / (2 * _SIGMA**2))
    return jnp.pad(near, ((0, 0), (1, 0), (1, 0)))[:, None]
