"""DINO's image tower (Caron et al. 2021, Oquab et al. 2023, Darcet et al. 2023) and its maps.

Letters: B batch, H W pixels, P patch size, h = H / P, w = W / P, N = h · w patches, R registers,
S = 1 + R + N tokens, D width.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsolo_jax import transformer
from dsolo_jax.attention.common import Squares, block_names, weigh
from dsolo_jax.attention.dino.config import DinoConfig
from dsolo_jax.checkpoints import Params
from dsolo_jax.transformer import Block, Weights, cubic_weights, layer_norm, patch_maps, patchify

# ImageNet's mean and deviation, with which all of them were trained. (The preprocessor_config.json
# of some DINO checkpoints on the hub says 0.5 instead.)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LAYERS = ("-1",)

_AFFINITY, _NEIGHBOURS = "affinity", "neighbours"
_GAMMA, _BETA = 3.0, 1.2  # ProxyCLIP's
_NEAREST, _POWER, _DECAY = 400, 3, 0.01  # LPOSS's


def affinity(features: Float[Array, "B N D"]) -> Float[Array, "B N N"]:
    """Computes ProxyCLIP's affinity of patches, in float32; rows sum to one.

        A = softmax over j of γ (S_ij - β mean(S)) where that is not negative,  γ = 3, β = 1.2

    S are the cosines, their mean is over all pairs of a picture. S_ii = 1 is the largest of its
    row, so it is subtracted before the exponential, and always kept, so no row is empty.

    Source: ProxyCLIP (Lan et al. 2024) and its code, on last features after the final layer norm.
    """
    features = features.astype(jnp.float32)
    unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    cosines = jnp.matmul(unit, unit.mT, precision="highest")
    near = cosines >= _BETA * cosines.mean(axis=(1, 2), keepdims=True)
    kept = near | jnp.eye(features.shape[1], dtype=bool)
    weights = jnp.where(kept, jnp.exp(_GAMMA * (cosines - 1)), 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def neighbours(
    values: Float[Array, "B N D"], place: Float[Array, "N 2"] | Float[np.ndarray, "N 2"]
) -> Float[Array, "B N N"]:
    """Computes LPOSS's graph of nearest neighbours as a lazy walk, in float32; rows sum to one.

        w_ij = max(S_ij, 0)³ exp(-|p_i - p_j| / 100)  for the 400 j with the largest S_ij, else 0
        W = w + wᵀ without its diagonal,  d = W 1,  A = (W + diag(max d - d)) / max d

    S are the cosines; a patch is the nearest to itself. Patches as near as the 400th all count.
    The diagonal holds what a row of W lacks, so A is symmetric and doubly stochastic, and W is A
    without its diagonal up to a factor, which drops out of D^-½ W D^-½.

    Args:
        values: of the last block, all heads one after the other.
        place: p, row and column of each patch in pixels.

    Source: LPOSS (Stojnić et al. 2025) and its configs/lposs.yaml; the diagonal is ours.
    """
    values = values.astype(jnp.float32)
    unit = values / jnp.linalg.norm(values, axis=-1, keepdims=True)
    cosines = jnp.matmul(unit, unit.mT, precision="highest")
    least = jax.lax.top_k(cosines, min(_NEAREST, cosines.shape[-1]))[0][..., -1:]
    place = jnp.asarray(place, jnp.float32)
    apart = jnp.linalg.norm(place[:, None] - place, axis=-1)
    near = jnp.maximum(cosines, 0) ** _POWER * jnp.exp(-_DECAY * apart)
    w = jnp.where(cosines >= least, near, 0)
    diagonal = jnp.eye(w.shape[-1], dtype=jnp.float32)
    w = (w + w.mT) * (1 - diagonal)
    degrees = w.sum(axis=-1, keepdims=True)
    largest = jnp.max(degrees, axis=-2, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    return w / largest + diagonal * (1 - degrees / largest)


def _resample_positions(
    table: Float[Array, "1 n D"], h: int, w: int, model_type: str
) -> Float[Array, "N D"]:
    """A square grid of positions, bicubically resampled to h x w as transformers does.

    With registers torch's antialias=True: another cubic kernel (a = -1/2), widened on the way
    down, its weights normalised at the border instead of repeating it; jax's own is the same.
    """
    side, width = math.isqrt(table.shape[1]), table.shape[-1]
    grid = table.reshape(side, side, width).astype(jnp.float32)
    if model_type == "dinov2_with_registers":
        grid = jax.image.resize(grid, (h, w, width), "cubic", antialias=True)
    else:
        rows, columns = (cubic_weights(jnp.arange(size), side, size) for size in (h, w))
        grid = jnp.einsum("hi,wj,ijd->hwd", rows, columns, grid)
    return grid.reshape(h * w, width)


class _Tower(nn.Module):
    config: DinoConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"], weights: Weights) -> Float[Array, "B N N"]:
        """Weighted mean of the maps of the layers in `weights`."""
        config, width, p = self.config, self.config.hidden_size, self.config.patch_size
        patches = patchify(pixels, p)
        b, h, w = len(pixels), pixels.shape[1] // p, pixels.shape[2] // p
        side, registers = config.image_size // p, config.num_register_tokens
        normal = nn.initializers.normal(0.02)
        kernel = self.param("patch_kernel", normal, (p, p, 3, width))
        bias = self.param("patch_bias", normal, (width,))
        table = self.param("positions", normal, (1, 1 + side * side, width))
        first = self.param("class_token", normal, (1, 1, width)) + table[:, :1]
        if registers:
            tokens = self.param("register_tokens", normal, (1, registers, width))
            first = jnp.concatenate([first, tokens], axis=1)

        x = patches.astype(kernel.dtype) @ kernel.reshape(-1, width) + bias
        x = x + _resample_positions(table[:, 1:], h, w, config.model_type).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, *first.shape[1:])), x], axis=1)
        skip = first.shape[1]
        blocks = [
            Block(config, config.layer_scale, name=f"blocks_{i}")
            for i in range(config.num_hidden_layers)
        ]
        weighed = dict(weights)
        total, x, v = patch_maps(blocks, x, weighed, skip)
        if _AFFINITY in weighed:
            features = layer_norm(config.layer_norm_eps, "norm_post")(x)[:, skip:]
            total = total + weighed[_AFFINITY] * affinity(features)
        if _NEIGHBOURS in weighed:
            values = v[:, :, skip:].swapaxes(1, 2).reshape(b, h * w, width)
            place = p * np.indices((h, w)).reshape(2, -1).T.astype(np.float32)
            total = total + weighed[_NEIGHBOURS] * neighbours(values, place)
        return total / total.sum(axis=-1, keepdims=True)


# ------------------------------------------------------------------------------------ public


def parameter_shapes(config: DinoConfig) -> dict[str, Any]:
    """Gives the tree of parameters, as `jax.ShapeDtypeStruct`s."""
    pixels = jnp.zeros((1, config.patch_size, config.patch_size, 3))
    return transformer.parameter_shapes(_Tower(config), pixels, weights=((_AFFINITY, 1.0),))


def layer_names(config: DinoConfig) -> dict[str, str]:
    """Maps what `self_attention` may be asked for to a layer's own name, see `block_names`."""
    return block_names(config.num_hidden_layers, [_AFFINITY, _NEIGHBOURS])


def squares(config: DinoConfig) -> Squares:
    """Says how the tower takes pictures: by default the size nearest to 512 pixels."""
    patch = config.patch_size
    return Squares(patch, patch, patch * round(512 / patch), _MEAN, _STD)


def self_attention(
    params: Params,
    config: DinoConfig,
    pixels: Float[Array, "B H W 3"],
    *,
    layers: Sequence[str] = LAYERS,
    weights: Sequence[float] | None = None,
) -> Float[Array, "B N N"]:
    """Computes patch-to-patch attention: weighted mean over layers, mean over heads, float32.

    Maps come in blocks of rows: beside A, one block of all heads is in memory, whatever N. Has
    derivatives in `params` and `pixels`.

    Args:
        params, config: as `load` gives them.
        pixels: in 0..1, then normalised as `squares` says; H and W any multiples of the patch size.
            Positions are resampled bicubically to their grid, as transformers does with
            interpolate_pos_encoding=True.
        layers: some of `layer_names`: blocks "0", "1", ... or from the end "-1", "-2", ..., whose
            maps are softmax(qkᵀ/√d), "affinity" and "neighbours", see the functions.
        weights: of each layer, not negative; all alike if None.

    Returns:
        A [B, N, N]. The class token and the registers are dropped from the mean, after which the
        rows are brought to sum to one: a block counts by what its patches look at patches.

    Raises:
        ValueError: see `weigh`; pixels of another shape, H or W no multiple of the patch size.
    """
    weighed = weigh(layers, weights, layer_names(config))
    return transformer.apply(_Tower(config), params, pixels, static=(weighed,))
