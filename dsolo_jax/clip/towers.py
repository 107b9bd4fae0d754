"""CLIP's two towers (Radford et al. 2021); what the last block does is in `starts`.

Letters: B batch, n patches (with padding), S = 1 + n tokens, N = r · r nodes of a graph, W width of
the tower, D of the shared space, P patch size, L text length, Q queries. All has derivatives in
`params` and pictures.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax import transformer
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import starts
from dsolo_jax.clip.config import ClipConfig, TextConfig, VisionConfig
from dsolo_jax.transformer import (
    Block,
    Weights,
    apply,
    attend,
    attend_in_blocks,
    cubic_weights,
    hidden,
    hidden_behind,
    layer_norm,
)


class ImageEncoding(NamedTuple):
    """What the image tower gives; h, w is the picture's patch grid.

    patches: [B, h, w, D] (of `encode_patches` [B, n, D]), projected, not normalised; with a start
        that needs a graph [B, r, r, D] ([B, N, D]).
    pooled: [B, D], projected class token of the unmodified tower, not normalised.
    """

    patches: Float[Array, "B h w D"] | Float[Array, "B n D"]
    pooled: Float[Array, "B D"]


class _VisionTower(nn.Module):
    config: VisionConfig
    projection_dim: int

    def setup(self):
        config, width, p = self.config, self.config.hidden_size, self.config.patch_size
        normal = nn.initializers.normal(0.02)
        self.class_embedding = self.param("class_embedding", normal, (width,))
        self.patch_kernel = self.param("patch_kernel", normal, (p, p, 3, width))
        self.positions = self.param("positions", normal, (1 + (config.image_size // p) ** 2, width))
        self.norm_pre = layer_norm(config.layer_norm_eps)
        self.blocks = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm_post = layer_norm(config.layer_norm_eps)
        self.projection = nn.Dense(self.projection_dim, use_bias=False)

    def _embed(
        self, patches: Float[Array, "B n K"], grid: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B S W"], Int[Array, "B n 2"]]:
        """The first block's input, and the row and column of each patch."""
        b, n, _ = patches.shape
        place = jnp.stack(jnp.divmod(jnp.arange(n), grid[:, 1:]), axis=-1)
        # The checkpoint's grid of positions, resampled to the picture's own.
        side = self.config.image_size // self.config.patch_size
        rows, columns = (cubic_weights(place[..., i], side, grid[:, i : i + 1]) for i in (0, 1))
        over = (rows[..., :, None] * columns[..., None, :]).reshape(b, n, side * side)
        positions = over @ self.positions[1:].astype(jnp.float32)

        kernel = self.patch_kernel
        x = patches.astype(kernel.dtype) @ kernel.reshape(-1, kernel.shape[-1])
        x = x + positions.astype(x.dtype)
        first = jnp.broadcast_to(self.class_embedding + self.positions[0], (b, 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)
        return self.norm_pre(x).astype(x.dtype), place

    def __call__(
        self,
        patches: Float[Array, "B n K"],
        grid: Int[Array, "B 2"],
        graph: Float[Array, "B N N"] | None,
        start: str,
    ) -> ImageEncoding:
        x, place = self._embed(patches, grid)
        count = jnp.prod(grid, axis=1)
        *blocks, last = self.blocks
        for block in blocks:
            q, k, v = block.heads(x)
            x = block.finish(x, attend_in_blocks(q, k, v, 1 + count))

        # The class token as CLIP has it, the patches by the chosen start.
        keys = hidden_behind(1 + count, x.shape[1])
        q, k, v = last.heads(x)
        pooled = last.finish(x[:, :1], attend(q[:, :, :1], k, v, keys))
        x = starts.patches(start, last, x, (q, k, v), keys, place, grid, graph)
        x = jnp.concatenate([pooled, x], axis=1)
        x = self.projection(self.norm_post(x).astype(x.dtype))
        if starts.needs_graph(start):
            return ImageEncoding(x[:, 1:], x[:, 0])
        real = jnp.arange(patches.shape[1]) < count[:, None]
        return ImageEncoding(jnp.where(real[..., None], x[:, 1:], 0), x[:, 0])

    def maps(
        self, patches: Float[Array, "B n K"], grid: Int[Array, "B 2"], weights: Weights
    ) -> Float[Array, "B n n"]:
        x, _ = self._embed(patches, grid)
        total, _, _ = transformer.patch_maps(self.blocks, x, dict(weights), skip=1)
        return total / total.sum(axis=-1, keepdims=True)


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

_ONE_TOKEN = np.zeros((1, 1), np.int32)


def _vision(config: ClipConfig) -> _VisionTower:
    return _VisionTower(config.vision, config.projection_dim)


def parameter_shapes(config: ClipConfig) -> dict[str, Any]:
    """Gives the tree of parameters, as `jax.ShapeDtypeStruct`s."""
    patches = jnp.zeros((1, 1, config.vision.patch_size**2 * 3))
    given = patches, jnp.ones((1, 2), jnp.int32), None
    vision, text = _vision(config), _TextTower(config.text, config.projection_dim)
    return {
        "vision": transformer.parameter_shapes(vision, *given, start="vanilla"),
        "text": transformer.parameter_shapes(text, _ONE_TOKEN),
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }


def text_parameter_shapes(config: TextConfig) -> dict[str, Any]:
    """Gives the tree of parameters that `encode_tokens` takes, as `jax.ShapeDtypeStruct`s."""
    return transformer.parameter_shapes(_TextTower(config), _ONE_TOKEN, method="states")


def encode_patches(
    params: Params,
    config: ClipConfig,
    patches: Float[Array | np.ndarray, "B n K"],
    grid: Int[Array | np.ndarray, "B 2"],
    *,
    start: str = "vanilla",
    graph: Float[Array | np.ndarray, "B N N"] | None = None,
) -> ImageEncoding:
    """Encodes pictures of different sizes as sequences of patches padded to one length.

    Nothing depends on the padding, so a picture is encoded alike alone, in a batch or padded. One
    compilation serves all grids of at most n patches.

    Args:
        params, config: as `load` gives them.
        patches: of normalised pictures, see `patchify`; whatever lies behind h · w is padding.
        grid: (h, w) of each picture, both at least 1. Positions are resampled to it by bicubic
            interpolation, as transformers does with interpolate_pos_encoding=True.
        start: what the last block does, one of `STARTS`; their formulas and sources are in
            `clip.starts`.
        graph: A of each picture on a grid of r x r nodes, N = r · r, rows sum to one, see
            `attention.graph`; only looked at by a start that needs it, see `needs_graph`.

    Returns:
        patches [B, n, D], zero at padding, or [B, N, D], on the graph's grid, by a start that needs
        a graph; and pooled [B, D], CLIP's own image embedding whatever the start. Neither is
        normalised to unit length.

    Raises:
        ValueError: unknown start; a start without the graph it needs; patches, grid or graph of
            another shape.
    """
    graph = _checked(graph, start, len(patches))
    size = config.vision.patch_size**2 * 3
    if patches.ndim != 3 or patches.shape[-1] != size or grid.shape != (len(patches), 2):
        raise ValueError(
            f"patches {patches.shape} with grid {grid.shape}: wanted [B, n, {size}] with [B, 2]; "
            "`patchify` cuts pictures so"
        )
    return apply(_vision(config), params["vision"], patches, grid, graph, static=(start,))


def _checked(
    graph: Float[Array | np.ndarray, "B N N"] | None, start: str, count: int
) -> Float[Array | np.ndarray, "B N N"] | None:
    """The graph if the start looks at it."""
    if not starts.needs_graph(start):
        return None
    if graph is None:
        raise ValueError(
            f"start {start!r} mixes patches by a graph, found None; give it a graph, such as that "
            "of the attention source 'dino' with the layer 'affinity', of 'dinov2', 'sd2', 'sd1', "
            f"'clip' or 'appearance', or choose another start than {start!r}"
        )
    side = math.isqrt(graph.shape[-1])
    if graph.shape != (count, side**2, side**2):
        raise ValueError(
            f"graph {graph.shape} for {count} pictures: wanted [{count}, N, N] with N = r · r nodes"
        )
    return graph


def _cut(
    config: ClipConfig, pixels: Float[Array, "B H W 3"]
) -> tuple[Float[Array | np.ndarray, "B n K"], Int[Array, "B 2"], tuple[int, int]]:
    patches = transformer.patchify(pixels, config.vision.patch_size)
    h, w = (side // config.vision.patch_size for side in pixels.shape[1:3])
    return patches, jnp.broadcast_to(jnp.array([h, w]), (len(pixels), 2)), (h, w)


def encode_image(
    params: Params,
    config: ClipConfig,
    pixels: Float[Array, "B H W 3"],
    *,
    start: str = "vanilla",
    graph: Float[Array | np.ndarray, "B N N"] | None = None,
) -> ImageEncoding:
    """Encodes pictures of one size; `start` and `graph` as for `encode_patches`.

    Args:
        pixels: in 0..1, then normalised by the config's image_mean and image_std; H and W any
            multiples of the patch size.

    Returns:
        patches [B, h, w, D] with h = H / P, w = W / P, or [B, r, r, D], on the graph's grid, by a
        start that needs a graph; and pooled [B, D].

    Raises:
        ValueError: H or W is no multiple of the patch size; see `encode_patches`.
    """
    patches, grid, sides = _cut(config, pixels)
    encoding = encode_patches(params, config, patches, grid, start=start, graph=graph)
    if starts.needs_graph(start):
        sides = 2 * (math.isqrt(encoding.patches.shape[1]),)
    return encoding._replace(patches=encoding.patches.reshape(len(pixels), *sides, -1))


def attention_maps(
    params: Params, config: ClipConfig, pixels: Float[Array, "B H W 3"], weights: Weights
) -> Float[Array, "B n n"]:
    """Gives the image tower's patch-to-patch attention, see `attention.clip.self_attention`."""
    patches, grid, _ = _cut(config, pixels)
    params = params["vision"]
    return apply(_vision(config), params, patches, grid, static=(weights,), method="maps")


def encode_text(
    params: Params, config: ClipConfig, token_ids: Int[Array | np.ndarray, "Q L"]
) -> Float[Array, "Q D"]:
    """Encodes token sequences, projected, not normalised to unit length.

    The tower is causal and pools at the end token: what follows it never matters, and L may be cut
    to the longest text. The end token is the first `eos_token_id`, or the largest id where the
    config says 2, as transformers does.

    Raises:
        ValueError: L exceeds the context length.
    """
    _check_length(config.text, token_ids)
    return apply(_TextTower(config.text, config.projection_dim), params["text"], token_ids)


def encode_tokens(
    params: Params, config: TextConfig, token_ids: Int[Array | np.ndarray, "Q L"]
) -> Float[Array, "Q L W"]:
    """Gives the text tower's last states of every token, after its final layer norm, not projected.

    This is what Stable Diffusion is conditioned on. `params` are the text tower's alone, "text" of
    what `load` gives; a projection in them is not used.

    Raises:
        ValueError: L exceeds the context length.
    """
    _check_length(config, token_ids)
    return apply(_TextTower(config), params, token_ids, method="states")


def _check_length(config: TextConfig, token_ids: Int[Array | np.ndarray, "Q L"]) -> None:
    longest = config.max_position_embeddings
    if token_ids.ndim != 2 or token_ids.shape[1] > longest:
        raise ValueError(
            f"token_ids {token_ids.shape}: wanted [Q, L] with L at most the context length "
            f"{longest}; shorten the texts"
        )
