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

_AFFINITY = "affinity"
_GAMMA, _BETA = 3.0, 1.2


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
        total, x = patch_maps(blocks, x, weighed, skip)
        if _AFFINITY in weighed:
            features = layer_norm(config.layer_norm_eps, "norm_post")(x)[:, skip:]
            total = total + weighed[_AFFINITY] * affinity(features)
        return total / total.sum(axis=-1, keepdims=True)


# ------------------------------------------------------------------------------------ public


def parameter_shapes(config: DinoConfig) -> dict[str, Any]:
    """Gives the tree of parameters, as `jax.ShapeDtypeStruct`s."""
    pixels = jnp.zeros((1, config.patch_size, config.patch_size, 3))
    return transformer.parameter_shapes(_Tower(config), pixels, weights=((_AFFINITY, 1.0),))


def layer_names(config: DinoConfig) -> dict[str, str]:
    """Maps what `self_attention` may be asked for to a layer's own name, see `block_names`."""
    return block_names(config.num_hidden_layers, [_AFFINITY])


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
            maps are softmax(qkᵀ/√d), and "affinity", see `affinity`.
        weights: of each layer, not negative; all alike if None.

    Returns:
        A [B, N, N]. The class token and the registers are dropped from the mean, after which the
        rows are brought to sum to one: a block counts by what its patches look at patches.

    Raises:
        ValueError: see `weigh`; pixels of another shape, H or W no multiple of the patch size.
    """
    weighed = weigh(layers, weights, layer_names(config))
    return transformer.apply(_Tower(config), params, pixels, static=(weighed,))
