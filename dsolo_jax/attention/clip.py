"""CLIP's own image tower as a source of patch-to-patch attention."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from dsolo_jax.attention.common import Squares, block_names, weigh
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip.config import ClipConfig
from dsolo_jax.clip.towers import attention_maps

# The first block served best where it was measured: in the miniature world, not on real weights.
LAYERS = ("0",)


def layer_names(config: ClipConfig) -> dict[str, str]:
    """Maps what `self_attention` may be asked for to a block's own name, see `block_names`."""
    return block_names(config.vision.num_hidden_layers)


def squares(config: ClipConfig) -> Squares:
    """Says how the tower takes pictures: by default 32 x 32 patches."""
    patch = config.vision.patch_size
    return Squares(patch, patch, 32 * patch, config.image_mean, config.image_std)


def self_attention(
    params: Params,
    config: ClipConfig,
    pixels: Float[Array, "B H W 3"],
    *,
    layers: Sequence[str] = LAYERS,
    weights: Sequence[float] | None = None,
) -> Float[Array, "B N N"]:
    """Computes patch-to-patch attention: weighted mean over layers, mean over heads, float32.

    The tower runs as far as the highest block asked for. Maps come in blocks of rows: beside A, one
    block of all heads is in memory, whatever N. Has derivatives in `params` and `pixels`.

    Args:
        params, config: as `clip.load` gives them.
        pixels: in 0..1, then normalised by the config's image_mean and image_std; H and W any
            multiples of the patch size, to whose grid positions are resampled bicubically.
        layers: some of `layer_names`, blocks, whose maps are softmax(qkᵀ/√d).
        weights: of each layer, not negative; all alike if None.

    Returns:
        A [B, N, N]. The class token is dropped from the mean, after which the rows are brought to
        sum to one: a block counts by what its patches look at patches.

    Raises:
        ValueError: see `weigh`; pixels of another shape, H or W no multiple of the patch size.
    """
    return attention_maps(params, config, pixels, weigh(layers, weights, layer_names(config)))
