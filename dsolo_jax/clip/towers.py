"""CLIP's two towers (Radford et al. 2021), with the last block's starts for dense features.

Letters: B batch, N patches (with padding), S = 1 + N tokens, K heads, d head size, W width of the
tower, D of the shared space, P patch size, L text length, Q queries.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dsolo_jax.checkpoints import Params
from dsolo_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from dsolo_jax.transformer import (
    Bias,
    Block,
    Heads,
    attend,
    cubic_weights,
    hidden,
    layer_norm,
    logits,
    patchify,
    precision,
)
from dsolo_jax.utils.checks import choose

# Distance, in patches, over which NACLIP's neighbourhood term fades.
_NEIGHBOURHOOD_SIGMA = 5.0


class ImageEncoding(NamedTuple):
    """What the image tower gives; h, w is the picture's patch grid.

    patches: [B, h, w, D] (of `encode_patches` [B, N, D]), projected, not normalised.
    pooled: [B, D], projected class token of the unmodified tower, not normalised.
    attention: [B, N, N] patch-to-patch attention, rows sum to one; None unless asked for.
    """

    patches: Float[Array, "B h w D"] | Float[Array, "B N D"]
    pooled: Float[Array, "B D"]
    attention: Float[Array, "B N N"] | None


# ------------------------------------------------------------------------------------ starts


class _Start(NamedTuple):
    """How the last block mixes the values, and whether its residual sum and MLP are kept."""

    mix: Callable[[Heads, Heads, Heads, Bias, Bias], Heads]
    whole: bool


# mix(q, k, v, keys, near): `keys` hides the padding, `near` is NACLIP's G.
_STARTS = {
    "vanilla": _Start(lambda q, k, v, keys, near: attend(q, k, v, keys), whole=True),
    "maskclip": _Start(lambda q, k, v, keys, near: v, whole=False),
    "sclip": _Start(
        lambda q, k, v, keys, near: attend(q, q, v, keys) + attend(k, k, v, keys), whole=True
    ),
    "kk": _Start(lambda q, k, v, keys, near: attend(k, k, v, keys), whole=False),
    "clearclip": _Start(lambda q, k, v, keys, near: attend(q, q, v, keys), whole=False),
    "naclip": _Start(lambda q, k, v, keys, near: attend(k, k, v, keys + near), whole=False),
}

STARTS = tuple(_STARTS)


# ------------------------------------------------------------------------------------ towers


class _Tokens(NamedTuple):
    """Where the tokens of a padded sequence of patches lie."""

    row: Int[Array, "B N"]
    column: Int[Array, "B N"]
    real: Bool[Array, "B N"]


def _locate(grid: Int[Array, "B 2"], n: int) -> _Tokens:
    h, w = grid[:, :1], grid[:, 1:]
    index = jnp.arange(n)
    return _Tokens(index // w, index % w, index < h * w)


def _neighbourhood(tokens: _Tokens) -> Bias:
    """NACLIP's G[i, j] = exp(-dist(i, j)² / (2 σ²)) between patches, 0 for the class token."""
    rows, columns = tokens.row[:, None], tokens.column[:, None]
    squared = (rows - rows.mT) ** 2 + (columns - columns.mT) ** 2
    near = jnp.exp(-squared / (2 * _NEIGHBOURHOOD_SIGMA**2))
    return jnp.pad(near, ((0, 0), (1, 0), (1, 0)))[:, None]


class _VisionTower(nn.Module):
    config: VisionConfig
    projection_dim: int

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "B N P*P*3"],
        grid: Int[Array, "B 2"],
        start: str,
        attention_layers: frozenset[int],
    ) -> ImageEncoding:
        config, width = self.config, self.config.hidden_size
        b, n, _ = patches.shape
        tokens = _locate(grid, n)
        normal = nn.initializers.normal(0.02)
        class_embedding = self.param("class_embedding", normal, (width,))
        p, side = config.patch_size, config.image_size // config.patch_size
        kernel = self.param("patch_kernel", normal, (p, p, 3, width))
        table = self.param("positions", normal, (1 + side * side, width))

        # The checkpoint's grid of positions, resampled to the picture's own.
        rows = cubic_weights(tokens.row, side, grid[:, :1])
        columns = cubic_weights(tokens.column, side, grid[:, 1:])
        over = (rows[..., :, None] * columns[..., None, :]).reshape(b, n, side * side)
        positions = over @ table[1:].astype(jnp.float32)

        x = patches.astype(kernel.dtype) @ kernel.reshape(-1, width)
        x = x + positions.astype(x.dtype)
        first = jnp.broadcast_to(class_embedding + table[0], (b, 1, width))
        x = jnp.concatenate([first, x], axis=1)
        x = layer_norm(config.layer_norm_eps, "norm_pre")(x).astype(x.dtype)

        real = jnp.pad(tokens.real, ((0, 0), (1, 0)), constant_values=True)
        keys = hidden(real)[:, None, None]
        blocks = [Block(config, name=f"blocks_{i}") for i in range(config.num_hidden_layers)]
        maps = []
        for i, block in enumerate(blocks):
            q, k, v = block.heads(x)
            if i in attention_layers:
                weights = jax.nn.softmax(logits(q, k, keys), axis=-1)
                maps.append(weights.mean(axis=1)[:, 1:, 1:])
            if block is not blocks[-1]:
                x = block.finish(x, attend(q, k, v, keys))

        # The last block: the class token as CLIP has it, the patches by the chosen start.
        pooled = block.finish(x[:, :1], attend(q[:, :, :1], k, v, keys))
        mix, whole = _STARTS[start]
        mixed = mix(q, k, v, keys, _neighbourhood(tokens))
        x = block.finish(x, mixed) if whole else block.merge(mixed)

        x = jnp.concatenate([pooled, x[:, 1:]], axis=1)
        x = layer_norm(config.layer_norm_eps, "norm_post")(x).astype(x.dtype)
        x = nn.Dense(self.projection_dim, use_bias=False, name="projection")(x)
        patches = jnp.where(tokens.real[..., None], x[:, 1:], 0)
        return ImageEncoding(patches, x[:, 0], _mean_map(maps, tokens.real) if maps else None)


def _mean_map(maps: list[Float[Array, "B N N"]], real: Bool[Array, "B N"]) -> Float[Array, "B N N"]:
    mean = sum(maps) / len(maps)
    mean = jnp.where(real[:, :, None] & real[:, None, :], mean, 0)
    total = mean.sum(axis=-1, keepdims=True)
    return mean / jnp.where(total > 0, total, 1)


class _TextTower(nn.Module):
    config: TextConfig
    projection_dim: int = 0  # `states` ends before the projection

    def setup(self):
        config, width = self.config, self.config.hidden_size
        normal = nn.initializers.normal(0.02)
        self.tokens = self.param("tokens", normal, (config.vocab_size, width))
        self.positions = self.param("positions", normal, (config.max_position_embeddings, width))
        self.blocks = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm_post = layer_norm(config.layer_norm_eps)
        self.projection = nn.Dense(self.projection_dim, use_bias=False)

    def __call__(self, token_ids: Int[Array, "Q L"]) -> Float[Array, "Q D"]:
        x, end = self._encode(token_ids), self.config.eos_token_id
        # Checkpoints older than transformers 4.31 name token 2 as the end; theirs is the largest.
        score = token_ids if end == 2 else token_ids == end
        x = jnp.take_along_axis(x, score.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm_post(x).astype(x.dtype))

    def states(self, token_ids: Int[Array, "Q L"]) -> Float[Array, "Q L W"]:
        x = self._encode(token_ids)
        return self.norm_post(x).astype(x.dtype)

    def _encode(self, token_ids: Int[Array, "Q L"]) -> Float[Array, "Q L W"]:
        length = token_ids.shape[1]
        x = self.tokens[token_ids] + self.positions[:length]
        causal = hidden(jnp.tril(jnp.ones((length, length), bool)))[None, None]
        for block in self.blocks:
            q, k, v = block.heads(x)
            x = block.finish(x, attend(q, k, v, causal))
        return x


# ------------------------------------------------------------------------------------ public


def parameter_shapes(config: ClipConfig) -> dict[str, Any]:
    """The tree of parameters, as `jax.ShapeDtypeStruct`s."""
    vision, size = _VisionTower(config.vision, config.projection_dim), config.vision.patch_size**2
    text = _TextTower(config.text, config.projection_dim)

    def image_tower():
        patches, grid = jnp.zeros((1, 1, size * 3)), jnp.ones((1, 2), int)
        return vision.init(jax.random.key(0), patches, grid, "vanilla", frozenset())

    return {
        "vision": jax.eval_shape(image_tower)["params"],
        "text": jax.eval_shape(lambda: text.init(jax.random.key(0), _one_token()))["params"],
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }


def text_parameter_shapes(config: TextConfig) -> dict[str, Any]:
    """The tree of parameters that `encode_tokens` takes, as `jax.ShapeDtypeStruct`s."""
    tower = _TextTower(config)
    return jax.eval_shape(lambda: tower.init(jax.random.key(0), _one_token(), method="states"))[
        "params"
    ]


def _one_token() -> Int[Array, "1 1"]:
    return jnp.zeros((1, 1), int)


@partial(jax.jit, static_argnames=("config", "start", "attention_layers"))
def _encode_patches(params, config, patches, grid, start, attention_layers) -> ImageEncoding:
    tower = _VisionTower(config.vision, config.projection_dim)
    with precision(params["vision"]["patch_kernel"]):
        return tower.apply({"params": params["vision"]}, patches, grid, start, attention_layers)


@partial(jax.jit, static_argnames=("config",))
def _encode_text(params, config, token_ids) -> Float[Array, "Q D"]:
    with precision(params["text"]["tokens"]):
        tower = _TextTower(config.text, config.projection_dim)
        return tower.apply({"params": params["text"]}, token_ids)


@partial(jax.jit, static_argnames=("config",))
def _encode_tokens(params, config, token_ids) -> Float[Array, "Q L W"]:
    with precision(params["tokens"]):
        return _TextTower(config).apply({"params": params}, token_ids, method="states")


def encode_patches(
    params: Params,
    config: ClipConfig,
    patches: Float[Array, "B N P*P*3"],
    grid: Int[Array, "B 2"],
    *,
    start: str = "vanilla",
    attention_layers: Sequence[int] = (),
) -> ImageEncoding:
    """Encodes pictures of different sizes as sequences of patches padded to one length.

    Nothing depends on the padding, so a picture is encoded alike alone, in a batch or padded. One
    compilation serves all grids of at most N patches.

    Args:
        params, config: as `load` gives them.
        patches: of normalised pictures, see `patchify`; whatever lies behind h · w is padding.
        grid: (h, w) of each picture, both at least 1. Positions are resampled to it by bicubic
            interpolation, as transformers does with interpolate_pos_encoding=True.
        start: what the last block does, one of `STARTS`: "vanilla" (CLIP itself), "maskclip" (the
            values alone), "sclip" (softmax(qqᵀ) + softmax(kkᵀ)), "kk" (softmax(kkᵀ)), "clearclip"
            (softmax(qqᵀ)), "naclip" (softmax(kkᵀ + a Gaussian of distance, σ = 5 patches)); all
            but "vanilla" and "sclip" drop its residual sum and MLP.
        attention_layers: blocks, negative ones from the end, whose maps softmax(qkᵀ/√d) are
            averaged, over heads too, into `.attention`.

    Returns:
        patches [B, N, D] and attention [B, N, N] (rows sum to one), both zero at padding, and
        pooled [B, D], CLIP's own image embedding whatever the start. None is normalised to unit
        length.

    Raises:
        ValueError: unknown start or layer, patches or grid of another shape.

    Sources: MaskCLIP (Zhou et al. 2022), SCLIP (Wang et al. 2024), ClearCLIP (Lan et al. 2024),
    NACLIP (Hajimiri et al. 2025).
    """
    choose("start", start, STARTS)
    count = config.vision.num_hidden_layers
    unknown = [layer for layer in attention_layers if not -count <= layer < count]
    if unknown:
        raise ValueError(
            f"attention_layers {unknown} do not exist; this CLIP's image tower has {count} blocks: "
            f"choose from {-count} to {count - 1}"
        )
    size = config.vision.patch_size**2 * 3
    if patches.ndim != 3 or patches.shape[-1] != size or grid.shape != (len(patches), 2):
        raise ValueError(
            f"patches {patches.shape} with grid {grid.shape}: wanted [B, N, {size}] with [B, 2]; "
            "`patchify` cuts pictures so"
        )
    layers = frozenset(layer % count for layer in attention_layers)
    return _encode_patches(params, config, patches, grid, start, layers)


def encode_image(
    params: Params,
    config: ClipConfig,
    pixels: Float[Array, "B H W 3"],
    *,
    start: str = "vanilla",
    attention_layers: Sequence[int] = (),
) -> ImageEncoding:
    """Encodes pictures of one size; `start` and `attention_layers` as for `encode_patches`.

    Args:
        pixels: normalised by CLIP's mean and standard deviation; H and W any multiples of the
            patch size.

    Returns:
        patches [B, h, w, D] with h = H / P, w = W / P, pooled [B, D], attention [B, N, N], N = h·w.

    Raises:
        ValueError: H or W is no multiple of the patch size; unknown start or layer.
    """
    b, height, width, _ = pixels.shape
    patch = config.vision.patch_size
    h, w = height // patch, width // patch
    patches = patchify(pixels, patch)
    grid = jnp.broadcast_to(jnp.array([h, w]), (b, 2))
    encoding = encode_patches(
        params, config, patches, grid, start=start, attention_layers=attention_layers
    )
    return encoding._replace(patches=encoding.patches.reshape(b, h, w, -1))


def encode_text(
    params: Params, config: ClipConfig, token_ids: Int[Array, "Q L"]
) -> Float[Array, "Q D"]:
    """Encodes token sequences, projected, not normalised to unit length.

    The tower is causal and pools at the end token: what follows it never matters, and L may be cut
    to the longest text. The end token is the first `eos_token_id`, or the largest id where the
    config says 2, as transformers does.

    Raises:
        ValueError: L exceeds the context length.
    """
    _check_length(config.text, token_ids)
    return _encode_text(params, config, token_ids)


def encode_tokens(
    params: Params, config: TextConfig, token_ids: Int[Array, "Q L"]
) -> Float[Array, "Q L W"]:
    """The text tower's last states of every token, after its final layer norm, not projected.

    This is what Stable Diffusion is conditioned on.

    Args:
        params: the text tower's, "text" of what `load` gives; a projection in it is not used.
        config: the text tower's.

    Raises:
        ValueError: L exceeds the context length.
    """
    _check_length(config, token_ids)
    return _encode_tokens(params, config, token_ids)


def _check_length(config: TextConfig, token_ids: Int[Array, "Q L"]) -> None:
    longest = config.max_position_embeddings
    if token_ids.ndim != 2 or token_ids.shape[1] > longest:
        raise ValueError(
            f"token_ids {token_ids.shape}: wanted [Q, L] with L at most the context length "
            f"{longest}; shorten the texts"
        )
