"""What the transformers of the package share: patches, attention, the pre-norm block.

Letters: B batch, N patches, P patch size, n queries, m keys, S tokens, K heads, d head size,
W width. All is ordinary JAX and has derivatives, forward and reverse, in every float argument.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

# A prompt has one key for all pictures; keys are as many as they like.
Heads = Float[Array, "#B K _ d"]
Bias = Float[Array, "B 1 #S S"]
Weights = tuple[tuple[str, float], ...]  # name of a layer, its weight

# Logits of one block of queries in `by_rows`. On CPU they should not leave the caches by much
# (32 MiB in float32 were best of 1 to 512); accelerators want large products (1 GiB).
_BLOCK = {"cpu": 2**23}
_BLOCK_OF_ACCELERATORS = 2**28


def _swiglu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    # x · sigmoid(1.702 x); XLA's tanh needs no exponential and no division by a sum.
    "quick_gelu": lambda x: x * (0.5 + 0.5 * jnp.tanh(0.851 * x)),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "swiglu": _swiglu,  # halves the width
}


def precision(weight: Float[Array, "..."]) -> Any:
    """float32 weights ask for float32 products, which accelerators do not give by default."""
    exact = weight.dtype == jnp.float32
    return jax.default_matmul_precision("highest" if exact else "default")


def patchify(
    pixels: Num[Array | np.ndarray, "B H W 3"], patch_size: int
) -> Num[Array | np.ndarray, "B N K"]:
    """Cuts pictures into flat patches, in raster order.

    Raises:
        ValueError: pixels of another shape; H or W is no multiple of the patch size.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(
            f"pixels {pixels.shape}: wanted [B, H, W, 3]; give one picture as pixels[None]"
        )
    b, height, width, channels = pixels.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"picture of {height} x {width} pixels: both must be multiples of the patch size "
            f"{patch_size}; resize it first"
        )
    h, w = height // patch_size, width // patch_size
    x = pixels.reshape(b, h, patch_size, w, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w, -1)


@partial(jax.jit, static_argnames=("tower", "method", "static"))
def apply(tower: nn.Module, params: Any, *arrays: Array, method="__call__", static=()) -> Any:
    """Runs a tower that has `positions` on arrays, and on what is no array."""
    with precision(params["positions"]):
        return tower.apply({"params": params}, *arrays, *static, method=method)


def parameter_shapes(module: nn.Module, *arrays: Any, **options: Any) -> dict[str, Any]:
    """Gives the tree of a module's parameters, as `jax.ShapeDtypeStruct`s, when called so."""
    return jax.eval_shape(partial(module.init, **options), jax.random.key(0), *arrays)["params"]


# --------------------------------------------------------------------------------- attention


def hidden(visible: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Gives 0 where a key is visible; elsewhere so low that its weight is exactly zero."""
    return jnp.where(visible, jnp.float32(0), jnp.finfo(jnp.float32).min / 2)


def hidden_behind(length: Int[Array, "B"], num_keys: int) -> Float[Array, "B 1 1 {num_keys}"]:
    """Gives the bias that hides all but the first `length` keys of each picture."""
    return hidden(jnp.arange(num_keys) < length[:, None])[:, None, None]


def _exponentials(
    query: Float[Array, "B K n d"],
    key: Float[Array, "#B K m d"],
    bias: Float[Array, "#B #K #n m"] | float = 0.0,
) -> tuple[Float[Array, "B K n m"], Float[Array, "B K n 1"]]:
    """The softmax of query keyᵀ / √d + bias before its division, and what it is to be divided by;
    in float32.
    """
    query = query * query.shape[-1] ** -0.5
    scores = jnp.matmul(query, key.mT, preferred_element_type=jnp.float32) + bias
    # A softmax does not change with what is subtracted, so no derivative has to go through it.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return weights, weights.sum(axis=-1, keepdims=True)


def attend(
    query: Float[Array, "B K n d"],
    key: Float[Array, "#B K m d"],
    value: Float[Array, "#B K m d"],
    bias: Float[Array, "#B #K #n m"] | float = 0.0,
) -> Float[Array, "B K n d"]:
    """Computes softmax(logits) value; divides last, where there are fewer numbers."""
    weights, total = _exponentials(query, key, bias)
    mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / total).astype(value.dtype)


def attention_rows(
    query: Float[Array, "B K n d"], key: Float[Array, "#B K m d"], skip: int = 0
) -> Float[Array, "B n m-{skip}"]:
    """Computes softmax(query keyᵀ / √d), mean over heads, float32, without the first `skip` keys.

    Rows sum to one if none is left out.
    """
    weights, total = _exponentials(query, key)
    shares = 1 / (query.shape[1] * total)
    # Head by head: XLA's CPU code for a mean over an outer axis takes several times as long.
    heads = (weights[:, k, :, skip:] * shares[:, k] for k in range(query.shape[1]))
    return reduce(jnp.add, heads)


def by_rows(
    function: Callable[[Float[Array, "B K r d"]], Float[Array, "... r x"]],
    query: Float[Array, "B K n d"],
    num_keys: int,
) -> Float[Array, "... n x"]:
    """Calls function(query) in blocks of queries, so that the logits of all never exist at once.

    Args:
        function: treats each query by itself, as `attention_rows` and `attend` do with key and
            value bound; what it returns has the queries on its second last axis.
        num_keys: m, which with B and K sets the size of a block.
    """
    b, heads, n, d = query.shape
    block = _BLOCK.get(jax.default_backend(), _BLOCK_OF_ACCELERATORS)
    size = 1 << max(block // (b * heads * num_keys), 1).bit_length() - 1
    if size >= n:
        return function(query)
    count = -(-n // size)
    size = -(-n // count)  # evenly: the last one should not be nearly empty
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, count * size - n), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(b, heads, count, size, d), 2, 0)
    rows = jnp.moveaxis(jax.lax.map(function, blocks), 0, -3)
    return rows.reshape(*rows.shape[:-3], count * size, rows.shape[-1])[..., :n, :]


def attend_in_blocks(
    query: Float[Array, "B K n d"],
    key: Float[Array, "#B K m d"],
    value: Float[Array, "#B K m d"],
    length: Int[Array, "B"] | None = None,
) -> Float[Array, "B K n d"]:
    """Computes `attend`, and never the logits of all queries at once: in blocks of queries, or in
    the device's own kernel where that takes them (which has a reverse derivative alone).

    Args:
        length: keys behind so many are hidden; none of them if None.
    """
    (b, heads, n, _), m = query.shape, key.shape[2]
    kernel = _attention_kernel(query)
    if kernel and key.shape[:2] == (b, heads):
        tokens_first = (x.swapaxes(1, 2) for x in (query, key, value))
        given: dict[str, Any] = {"implementation": kernel}
        if length is not None:
            given |= {"query_seq_lengths": jnp.full(b, n, jnp.int32)}
            given |= {"key_value_seq_lengths": length.astype(jnp.int32)}
        return jax.nn.dot_product_attention(*tokens_first, **given).swapaxes(1, 2)
    bias: Array | float = 0.0
    if length is not None:
        bias = hidden_behind(length, m)
    return by_rows(partial(attend, key=key, value=value, bias=bias), query, m)


def _attention_kernel(query: Heads) -> Any:
    """What `jax.nn.dot_product_attention` calls the device's kernel for such heads, if it has one:
    cuDNN's, from Ampere on."""
    device, size = jax.devices()[0], query.shape[-1]
    half = query.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128
    nvidia = half and device.device_kind.startswith("NVIDIA")
    return "cudnn" if nvidia and float(device.compute_capability) >= 8 else None


# ------------------------------------------------------------------------------------- block


def layer_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon, jnp.float32, use_fast_variance=False, name=name)


class Block(nn.Module):
    """A pre-norm transformer block, in pieces: CLIP's starts put them together differently.

    config: the model's, whose sizes have the names of transformers.
    layer_scale: whether attention and MLP are scaled by a vector before they are added (DINOv2).
    """

    config: Any
    layer_scale: bool = False

    def setup(self):
        config, width = self.config, self.config.hidden_size
        self.norm1 = layer_norm(config.layer_norm_eps)
        self.query, self.key, self.value, self.out = (nn.Dense(width) for _ in range(4))
        self.norm2 = layer_norm(config.layer_norm_eps)
        self.expand = nn.Dense(config.intermediate_size * (1 + (config.hidden_act == "swiglu")))
        self.contract = nn.Dense(width)
        self.scales = [
            self.param(name, nn.initializers.ones, (width,)) if self.layer_scale else 1
            for name in ("scale1", "scale2")
        ]

    def heads(self, x: Float[Array, "B S W"]) -> tuple[Heads, Heads, Heads]:
        normed = self.norm1(x).astype(x.dtype)
        split = (*x.shape[:-1], self.config.num_attention_heads, -1)
        # Heads before tokens: XLA's batched products on CPU are twice as slow the other way round.
        return tuple(
            f(normed).reshape(split).swapaxes(1, 2) for f in (self.query, self.key, self.value)
        )

    def merge(self, heads: Heads) -> Float[Array, "B S W"]:
        b, _, s, _ = heads.shape
        return self.out(heads.swapaxes(1, 2).reshape(b, s, -1))

    def mlp(self, x: Float[Array, "B S W"]) -> Float[Array, "B S W"]:
        y = self.expand(self.norm2(x).astype(x.dtype))
        y = ACTIVATIONS[self.config.hidden_act](y.astype(jnp.float32))
        return self.contract(y.astype(x.dtype))

    def finish(self, x: Float[Array, "B S W"], mixed: Heads) -> Float[Array, "B S W"]:
        x = x + self.scales[0] * self.merge(mixed)
        return x + self.scales[1] * self.mlp(x)


def patch_maps(
    blocks: Sequence[Block], x: Float[Array, "B S W"], weights: Mapping[str, float], skip: int
) -> tuple[Float[Array, "B N N"] | Float[Array, ""], Float[Array, "B S W"], Heads]:
    """Runs blocks one after the other and adds up how their patches look at patches.

    XLA leaves out the blocks behind the last whose result is used.

    Args:
        x: tokens, of which the first `skip` are no patches; S = skip + N.
        weights: of the blocks whose maps count, by their number "0", "1", ...

    Returns:
        Σ weight · mean over heads of softmax(qkᵀ/√d) between patches; rows do not sum to one, as
        the other tokens are left out; 0 if no block counts. Then what the last block puts out, and
        its values v.
    """
    total, size = jnp.float32(0), x.shape[1]
    for i, block in enumerate(blocks):
        q, k, v = block.heads(x)
        if str(i) in weights:
            rows = by_rows(partial(attention_rows, key=k, skip=skip), q[:, :, skip:], size)
            total = total + weights[str(i)] * rows
        x = block.finish(x, attend_in_blocks(q, k, v))
    return total, x, v


# ------------------------------------------------------------------------------- positions

# The cubic kernel's free parameter, PyTorch's choice.
_A = -0.75


def _cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic convolution kernel: 1 at 0, 0 at the other integers and from 2 on."""
    x = jnp.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))


def cubic_weights(
    index: Num[Array, "..."], in_size: int, out_size: Num[Array, "..."] | int
) -> Float[Array, "... {in_size}"]:
    """Weighs the `in_size` samples in sample `index` of an axis resampled to `out_size`.

        w[j] = sum of cubic(s - k) over the taps k that clamp to j,  s = (index + 1/2) in/out - 1/2

    This is torch.nn.functional.interpolate(mode="bicubic", align_corners=False) along one axis: no
    antialiasing, samples beyond the border repeat it. `out_size` may be traced and broadcasts with
    `index`. Equal sizes give the identity.
    """
    scale = in_size / jnp.asarray(out_size, jnp.float32)
    source = (jnp.asarray(index, jnp.float32) + 0.5) * scale - 0.5
    # s lies in [-1/2, in_size - 1/2], so the taps within reach are -2 .. in_size + 1.
    taps = _cubic(source[..., None] - jnp.arange(-2, in_size + 2))
    weights = taps[..., 2:-2].at[..., 0].add(taps[..., :2].sum(-1))
    return weights.at[..., -1].add(taps[..., -2:].sum(-1))
