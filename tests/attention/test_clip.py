"""CLIP's own maps against transformers, and their properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dsolo_jax.clip
from dsolo_jax import attention
from dsolo_jax.attention import clip


@pytest.fixture(scope="module")
def loaded(tiny_clip):
    return dsolo_jax.clip.load(tiny_clip)


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*shape, 3)).astype(np.float32)


def _torch_maps(model, pixels) -> np.ndarray:
    """Of each block, mean over heads, patches alone."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = torch.tensor(pixels).permute(0, 3, 1, 2)
        out = model.vision_model(given, interpolate_pos_encoding=True, output_attentions=True)
    return np.stack([maps.mean(1)[:, 1:, 1:].numpy() for maps in out.attentions])


@pytest.mark.parametrize(
    ("layers", "weights", "mix"),
    [
        (("0",), None, (1, 0)),
        (("0", "-1"), None, (1, 1)),
        (("1", "-1", "0"), (0.5, 1, 2), (2, 1.5)),
    ],
)
@pytest.mark.parametrize("shape", [(96, 96), (48, 80)])
def test_maps_equal_transformers(torch_clip, loaded, layers, weights, mix, shape):
    pixels = _pixels(2, *shape)
    maps = np.einsum("l,lbij->bij", mix, _torch_maps(torch_clip(), pixels))
    found = clip.self_attention(*loaded[::-1], pixels, layers=layers, weights=weights)
    assert found.dtype == jnp.float32
    expected = maps / maps.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_squares_are_normalised_as_the_checkpoint_says(torch_clip, loaded):
    config = dataclasses.replace(loaded[0], image_mean=(0.1, 0.2, 0.3), image_std=(0.3, 0.5, 0.7))
    squares = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    source, params = attention.load("clip", clip=(config, loaded[1]), size=128)
    assert params is loaded[1] and source.grid == 8 and source.layers == ("0",)
    found = jax.jit(attention.graph, static_argnums=1)(params, source, squares)
    pixels = (squares / np.float32(255) - np.float32([0.1, 0.2, 0.3])) / np.float32([0.3, 0.5, 0.7])
    maps = _torch_maps(torch_clip(), pixels)[0]
    np.testing.assert_allclose(found, maps / maps.sum(-1, keepdims=True), rtol=0, atol=1e-6)


def test_nothing_runs_behind_the_highest_block(loaded):
    def flops(layer):
        source, _ = attention.load("clip", clip=loaded, layers=[layer], size=128)
        squares = jnp.zeros((1, 128, 128, 3), jnp.uint8)
        lowered = jax.jit(attention.graph, static_argnums=1).lower(loaded[1], source, squares)
        return lowered.compile().cost_analysis()["flops"]

    assert flops("0") < 0.75 * flops("1")


def test_unusable_settings_are_named(loaded):
    with pytest.raises(ValueError, match="wants clip="):
        attention.load("clip")
    with pytest.raises(ValueError, match="unknown layer of clip '2'.*0, 1, -1, -2"):
        attention.load("clip", clip=loaded, layers=["2"])
    with pytest.raises(ValueError, match="attention_size is 100.*multiple of 16 .* as 96"):
        attention.load("clip", clip=loaded, size=100)
    source, _ = attention.load("clip", clip=loaded)
    assert (source.size, source.grid) == (512, 32)
    assert attention.layer_names(source) == ("0", "1")
    with pytest.raises(ValueError, match="64 x 70 pixels.*patch size 16"):
        clip.self_attention(*loaded[::-1], _pixels(1, 64, 70))
