"""Patches that look alike: a patch graph from colour and texture, with no weights at all.

This source is ours; nothing in the paper corresponds to it. It knows no objects: two cars of
different colours are strangers to it, and a shadow's edge parts what belongs together. It serves
where no network can be had, and as the control that a learned graph must beat.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsolo_jax.attention.common import Squares, weigh

PATCH = 8  # pixels

# Each cue, which is this source's layer, and its weight: what the squared distance of two patches
# counts, in units of the mean over all pairs. Chosen by the share of A on the own class in the
# miniature world (docs/measurements.md).
WEIGHTS = {"colour": 8.0, "texture": 8.0, "distance": 2.0}

# Differences of pixels this far apart, along both axes and both diagonals.
_REACHES = (1, 2, 4)
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


LAYERS = tuple(WEIGHTS)


def layer_names(config: None = None) -> dict[str, str]:
    """Maps what `self_affinity` may be asked for to a cue's own name, which is the same."""
    return {cue: cue for cue in WEIGHTS}


def squares(config: None = None) -> Squares:
    """Says how pictures are taken."""
    return Squares(PATCH, PATCH, 512, mean=(0.0,), std=(1.0,))


def self_affinity(
    pixels: Float[Array, "B S S 3"],
    *,
    layers: Sequence[str] = LAYERS,
    weights: Sequence[float] | None = None,
) -> Float[Array, "B N N"]:
    """Computes the affinity of patches of 8 x 8 pixels; rows sum to one, N = (S / 8)².

        A_ij = softmax over j of −Σ_cue w |x_i − x_j|² / mean over all pairs of |x_k − x_l|²

    As each cue is measured by its own spread over the picture, brightness and contrast of the whole
    picture cancel. A cue that does not vary does not count. Has derivatives in `pixels`.

    Args:
        pixels: of any linear range, S a multiple of 8.
        layers: "colour", the mean; "texture", the contrast in four directions at three scales, over
            a neighbourhood of patches; "distance", on the grid.
        weights: of each, not negative; `WEIGHTS` if None.

    Raises:
        ValueError: unknown cue; weights that do not fit; S no multiple of 8.

    Source: ours.
    """
    if weights is None:
        weights = [WEIGHTS.get(cue, 0.0) for cue in layers]
    weighed = weigh(layers, weights, layer_names(), "cue of appearance")
    if pixels.shape[1] != pixels.shape[2] or pixels.shape[1] % PATCH:
        raise ValueError(
            f"pixels have shape {pixels.shape}, wanted [B, S, S, 3] with S a multiple of {PATCH}"
        )
    return _self_affinity(pixels, dict(weighed))


def self_attention(params, config, pixels, **options) -> Float[Array, "B N N"]:
    """Asks `self_affinity` as any other source is asked, see `attention.common`."""
    return self_affinity(pixels, **options)


@jax.jit
def _self_affinity(
    pixels: Float[Array, "B S S 3"], weights: dict[str, Float[Array, ""]]
) -> Float[Array, "B N N"]:
    pixels = pixels.astype(jnp.float32)
    features = [
        jnp.sqrt(weight) * _in_own_spread(_CUES[cue](pixels)) for cue, weight in weights.items()
    ]
    return jax.vmap(_softmax_of_distances)(jnp.concatenate(features, axis=-1))


def _texture(pixels: Float[Array, "B S S 3"]) -> Float[Array, "B r r K"]:
    """Root mean square of differences of pixels, all channels together."""
    side, reach = pixels.shape[1], max(_REACHES)
    padded = jnp.pad(pixels, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")

    def shifted(down: int, right: int) -> Array:
        return padded[:, reach + down :, reach + right :][:, :side, :side]

    energies = [
        jnp.sum((shifted(s * dy, s * dx) - shifted(-s * dy, -s * dx)) ** 2, axis=-1)
        for s in _REACHES
        for dy, dx in _DIRECTIONS
    ]
    return jnp.sqrt(_smooth(_patch_means(jnp.stack(energies, axis=-1))))


def _distance(pixels: Float[Array, "B S S 3"]) -> Float[Array, "B r r 2"]:
    b, side = pixels.shape[0], pixels.shape[1] // PATCH
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(side, dtype=jnp.float32)] * 2), axis=-1)
    return jnp.broadcast_to(grid, (b, side, side, 2))


def _patch_means(x: Float[Array, "B S S K"]) -> Float[Array, "B r r K"]:
    b, side, _, k = x.shape
    r = side // PATCH
    return x.reshape(b, r, PATCH, r, PATCH, k).mean(axis=(2, 4))


_CUES = {"colour": _patch_means, "texture": _texture, "distance": _distance}


def _smooth(x: Float[Array, "B r r K"]) -> Float[Array, "B r r K"]:
    """Each patch with its neighbours, ¼ ½ ¼ along both axes, the border repeated."""
    for axis in (1, 2):
        pad = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        x = jnp.pad(x, pad, mode="edge")
        before, here, after = (
            jax.lax.slice_in_dim(x, k, x.shape[axis] - 2 + k, axis=axis) for k in range(3)
        )
        x = (before + 2 * here + after) / 4
    return x


def _in_own_spread(x: Float[Array, "B r r K"]) -> Float[Array, "B N K"]:
    """Centred and scaled so that the mean of |x_k − x_l|² over all pairs is one, or zero."""
    x = x.reshape(len(x), -1, x.shape[-1])
    x = x - x.mean(axis=1, keepdims=True)
    of_pairs = 2 * jnp.mean(jnp.sum(x**2, axis=-1), axis=-1)[:, None, None]
    return x * jax.lax.rsqrt(jnp.maximum(of_pairs, 1e-12))


def _softmax_of_distances(x: Float[Array, "N K"]) -> Float[Array, "N N"]:
    """softmax over j of −|x_i − x_j|²; |x_i|² drops out of a row."""
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.softmax(2 * products - jnp.diagonal(products), axis=-1)
