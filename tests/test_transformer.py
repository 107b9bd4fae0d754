"""Attention in blocks of queries against all queries at once, and against torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dsolo_jax import transformer


def _heads(seed: int, n: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, 3, n, 4)), jnp.float32)


@pytest.fixture
def heads():
    """Queries of 11 tokens, keys and values of 7."""
    return _heads(0, 11), _heads(1, 7), _heads(2, 7)


def test_attention_equals_torch(heads):
    query, key, value = heads
    q, k, v = (torch.tensor(np.asarray(x)) for x in heads)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    np.testing.assert_allclose(transformer.attend(query, key, value), expected, atol=1e-6)
    weights = (q @ k.mT / 4**0.5).softmax(-1).mean(1)
    np.testing.assert_allclose(transformer.attention_rows(query, key), weights, atol=1e-6)


def test_derivatives_equal_torch_the_bias_one_too(heads):
    bias = np.random.default_rng(3).standard_normal((2, 3, 11, 7)).astype(np.float32)
    theirs = [torch.tensor(np.asarray(x), requires_grad=True) for x in (*heads, bias)]
    q, k, v, mask = theirs
    (torch.nn.functional.scaled_dot_product_attention(q, k, v, mask) ** 2).sum().backward()

    def square(*given):
        return (transformer.attend(*given) ** 2).sum()

    found = jax.grad(square, argnums=(0, 1, 2, 3))(*heads, jnp.asarray(bias))
    for ours, x in zip(found, theirs, strict=True):
        np.testing.assert_allclose(ours, x.grad, rtol=1e-4, atol=1e-5)
    along = tuple(jnp.ones_like(x) for x in (*heads, bias))
    _, forward = jax.jvp(square, (*heads, jnp.asarray(bias)), along)
    np.testing.assert_allclose(forward, sum(x.sum() for x in found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2 * 3 * 7, 200, 10**6])
def test_blocks_of_rows_change_nothing(heads, monkeypatch, block):
    query, key, value = heads
    monkeypatch.setattr(transformer, "_BLOCK", {jax.default_backend(): block})
    for function in (
        partial(transformer.attend, key=key, value=value),
        partial(transformer.attention_rows, key=key),
    ):
        found = transformer.by_rows(function, query, 7)
        np.testing.assert_allclose(found, function(query), rtol=0, atol=1e-6)


def test_a_block_holds_no_more_than_its_share(monkeypatch):
    seen = []

    def function(query):
        seen.append(query.shape)
        return jnp.zeros((2, query.shape[2], 7))

    monkeypatch.setattr(transformer, "_BLOCK", {jax.default_backend(): 2 * 3 * 4 * 7})
    found = jax.eval_shape(lambda q: transformer.by_rows(function, q, 7), _heads(0, 11))
    assert found.shape == (2, 11, 7)
    assert seen and all(shape == (2, 3, 4, 4) for shape in seen)


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 4), (1, 3, 64, 64)])
def test_pixels_of_another_layout_are_named(shape):
    with pytest.raises(ValueError, match=rf"pixels \({shape[0]}, .*\[B, H, W, 3\]"):
        transformer.patchify(np.zeros(shape), 16)


@pytest.mark.parametrize("length", [None, np.array([7, 3])])
@pytest.mark.parametrize("keys", [2, 1])  # a prompt's keys are those of all pictures
def test_a_kernel_of_the_device_takes_what_it_can_and_gives_the_same(monkeypatch, keys, length):
    random = np.random.default_rng(0)
    heads = (random.standard_normal((b, 3, n, 8)) for b, n in ((2, 11), (keys, 7), (keys, 7)))
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in heads)
    alone = [
        transformer.attend(query[i : i + 1], *(x[i % keys][None, :, :m] for x in (key, value)))
        for i, m in enumerate([7, 7] if length is None else length)
    ]
    expected = transformer.attend_in_blocks(query, key, value, length)
    np.testing.assert_array_equal(np.float32(jnp.concatenate(alone)), np.float32(expected))
    device = type("Device", (), {"device_kind": "NVIDIA H100", "compute_capability": "9.0"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    plain = jax.nn.dot_product_attention
    asked = []

    def kernel(*heads, implementation, **lengths):
        asked.append(implementation)
        return plain(*heads, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    found = transformer.attend_in_blocks(query, key, value, length)
    np.testing.assert_allclose(*(np.float32(x) for x in (found, expected)), rtol=0, atol=2e-2)
    in_float32 = [x.astype(jnp.float32) for x in (query, key, value)]
    transformer.attend_in_blocks(*in_float32, length)
    assert asked == ["cudnn"] * (keys == 2)
