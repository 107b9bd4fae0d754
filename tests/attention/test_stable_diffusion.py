"""Latents, the denoiser and its self-attention against diffusers in torch."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dsolo_jax.attention import resample_attention, stable_diffusion
from dsolo_jax.attention.stable_diffusion import layers, maps, unet, vae
from dsolo_jax.attention.stable_diffusion.config import ATTENDING_DOWN, ATTENDING_UP
from dsolo_jax.attention.stable_diffusion.maps import mean_attention
from tests.oracles.stable_diffusion import TorchMaps, relative, torch_maps

TIMESTEP = 100


@pytest.fixture(scope="module")
def pixels():
    """Two pictures, 16 x 16 patches."""
    return np.random.default_rng(0).uniform(-1, 1, (2, 128, 128, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def loaded(checkpoints_by_family):
    return {
        name: stable_diffusion.load(found.folder) for name, found in checkpoints_by_family.items()
    }


@pytest.fixture(scope="module")
def expected_by_family(checkpoints_by_family, pixels):
    return {
        name: torch_maps(found.models, pixels, TIMESTEP)
        for name, found in checkpoints_by_family.items()
    }


class Family(NamedTuple):
    """Ours and torch's of one family."""

    config: stable_diffusion.StableDiffusionConfig
    params: dict
    expected: TorchMaps
    noise: np.ndarray
    lookings: dict[str, unet.Looking]


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def family(request, loaded, expected_by_family):
    config, params = loaded[request.param]
    expected = expected_by_family[request.param]
    denoise = jax.jit(lambda *arrays: unet.denoise(*arrays[:1], config.unet, *arrays[1:]))
    given = params["unet"], expected.latents, params["prompt"], TIMESTEP
    return Family(config, params, expected, *denoise(*given))


def test_latents_are_diffusers(family, pixels):
    latents = stable_diffusion.encode(family.params, family.config, pixels)
    np.testing.assert_allclose(latents, family.expected.latents, atol=1e-5)


def test_parameters_are_float32_by_name(sd2):
    with jax.enable_x64(True):
        shapes = unet.parameter_shapes(sd2.config.unet), vae.parameter_shapes(sd2.config.vae)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_latents_of_any_shape(loaded, checkpoints_by_family):
    """Not square: rows and columns are not exchanged."""
    config, params = loaded["sd2"]
    oracle = checkpoints_by_family["sd2"].models.vae
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 32, 72, 3)).astype(np.float32)
    with torch.inference_mode():
        mode = oracle.encode(torch.tensor(pixels).permute(0, 3, 1, 2)).latent_dist.mode()
    expected = mode.permute(0, 2, 3, 1).numpy() * oracle.config.scaling_factor
    np.testing.assert_allclose(stable_diffusion.encode(params, config, pixels), expected, atol=1e-5)


def test_the_denoiser_is_diffusers(family):
    """The whole network, also behind the layers that give maps."""
    expected = family.expected.noise
    np.testing.assert_allclose(family.noise, expected, atol=2e-5 * np.abs(expected).max())


def test_every_layer_is_diffusers(family):
    """Those of lower resolution are resampled to the latent's."""
    names = unet.layer_names(family.config.unet)
    assert set(family.lookings) == set(family.expected.maps) == set(names)
    for name in names:
        found = mean_attention([family.lookings[name]], [1.0], 16)
        expected = family.expected.maps[name]
        side = math.isqrt(expected.shape[-1])
        if side < 16:
            expected = jnp.stack([resample_attention(a, jnp.full(2, side), 16) for a in expected])
        assert found.shape == (2, 256, 256) and found.dtype == jnp.float32
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
        assert relative(found, np.asarray(expected)) <= 1e-4


def test_maps_are_diffusers(family, pixels):
    """From pixels: by default the mean of the last up block's first two."""
    found = stable_diffusion.self_attention(family.params, family.config, pixels)
    expected = family.expected.maps
    mean = (expected["up_blocks.2.attentions.0"] + expected["up_blocks.2.attentions.1"]) / 2
    assert relative(found, mean) <= 1e-4


def test_short_names_are_the_blocks_of_full_resolution(family, pixels, monkeypatch):
    """The names that the compiled part is asked for; its maps of them are in the tests around."""
    config, params, *_ = family
    count = config.unet.layers_per_block
    names = {
        **{f"down.{i}": f"down_blocks.0.attentions.{i}" for i in range(count)},
        **{f"up.{i}": f"up_blocks.2.attentions.{i}" for i in range(count + 1)},
    }
    known = set(stable_diffusion.layer_names(config))
    assert known == {*names, *unet.layer_names(config.unet), "cliper"}
    monkeypatch.setattr(maps, "_self_attention", lambda *arguments: arguments[-1])
    found = stable_diffusion.self_attention(params, config, pixels, layers=tuple(names))
    assert found == tuple((name, 1.0) for name in names.values())


def _cliper(models, pixels: np.ndarray) -> np.ndarray:
    """CLIPer's product of diffusers' maps, head by head, in float64, its rows brought to one."""
    names = [f"up_blocks.2.attentions.{i}" for i in (1, 0)]
    found = torch_maps(models, pixels, TIMESTEP, only=tuple(names), each_head=True).maps
    heads = np.concatenate([found[name] for name in names], axis=1).astype(np.float64)
    products = []
    for picture in heads:
        product = np.eye(picture.shape[-1])
        for a in picture:
            a = a / (a.max(axis=0) + 1e-5)
            a[a < 0.1] = 0
            product = product @ (a / (a.sum(axis=1, keepdims=True) + 1e-5))
        products.append(product / product.sum(axis=1, keepdims=True))
    return np.stack(products)


@pytest.fixture(scope="module")
def product(checkpoints_by_family, pixels):
    return _cliper(checkpoints_by_family["sd2"].models, pixels)


@pytest.mark.parametrize("family", ["sd2"], indirect=True)
def test_clipers_product_is_that_of_diffusers_maps(family, product):
    found = maps.product_over_heads(
        [family.lookings[f"up_blocks.2.attentions.{i}"] for i in (1, 0)]
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert np.linalg.norm(found - product) <= 1e-5 * np.linalg.norm(product)


def test_a_patch_whose_row_of_the_product_is_empty_looks_at_itself():
    """The first looks at all others alike, less than a tenth of what each looks at itself."""
    n = 16
    query = 30 * np.eye(n, dtype=np.float32)
    query[0, 0] = -30
    query, key = (jnp.asarray(x)[None, None] for x in (query, n**0.5 * np.eye(n, dtype=np.float32)))
    [found] = maps.product_over_heads([unet.Looking(query, key)])
    np.testing.assert_allclose(found, np.eye(n), atol=1e-6)


def test_maps_are_weighted_from_pixels_on(loaded, expected_by_family, product, pixels):
    config, params = loaded["sd2"]
    found = stable_diffusion.self_attention(
        params, config, pixels, layers=("down.1", "cliper", "up.2"), weights=(1, 4, 3)
    )
    first, last = (
        expected_by_family["sd2"].maps[name]
        for name in ("down_blocks.0.attentions.1", "up_blocks.2.attentions.2")
    )
    wanted = 0.125 * first + 0.5 * product + 0.375 * last
    assert relative(found, wanted) <= 1e-4


def test_layers_are_weighted(family):
    """Over resolutions too; a layer without weight does not count."""
    chosen = [
        family.lookings[name]
        for name in (
            "up_blocks.2.attentions.0",
            "mid_block.attentions.0",
            "down_blocks.0.attentions.0",
            "up_blocks.2.attentions.1",
        )
    ]
    shares = [0.5, 0.25, 0.0, 0.25]
    each = [np.asarray(mean_attention([looking], [1.0], 16)) for looking in chosen]
    wanted = sum(share * a for share, a in zip(shares, each, strict=True))
    np.testing.assert_allclose(mean_attention(chosen, shares, 16), wanted, atol=1e-6)


def test_the_timestep_counts(loaded, pixels):
    config, params = loaded["sd2"]
    at_100, at_500 = (
        np.asarray(stable_diffusion.self_attention(params, config, pixels, timestep=t))
        for t in (100, 500)
    )
    assert relative(at_500, at_100) > 1e-2


def test_bfloat16_is_near_float32(loaded, sd2, pixels):
    config, half = stable_diffusion.load(sd2.folder, jnp.bfloat16)
    found = stable_diffusion.self_attention(half, config, pixels)
    wanted = stable_diffusion.self_attention(loaded["sd2"][1], config, pixels)
    assert half["unet"]["conv_in"]["kernel"].dtype == jnp.bfloat16 and found.dtype == jnp.float32
    assert relative(found, np.asarray(wanted)) <= 5e-2


def test_a_group_far_from_zero_is_normalised_as_exactly_as_float32_allows():
    """Its mean is a thousand deviations, and what lies in the first row is not typical of it."""
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 64)) + 1000
    x[:, 0] += 5
    norm, x = layers.GroupNorm(4, 1e-6), x.astype(np.float32)
    found, _ = norm.init_with_output(jax.random.key(0), x)
    grouped = x.astype(np.float64).reshape(2, 64, 4, 16)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=4 * np.spacing(np.float32(1000)))


def test_nothing_runs_behind_the_last_layer_asked_for(loaded):
    """Of a denoiser of two resolutions, of which only the shapes are needed."""
    config = dataclasses.replace(
        loaded["sd2"][0].unet,
        block_out_channels=(32, 64),
        down_block_types=(ATTENDING_DOWN, "DownBlock2D"),
        up_block_types=("UpBlock2D", ATTENDING_UP),
        num_heads=(2, 4),
        layers_per_block=1,
    )
    width = config.cross_attention_dim
    shapes = (
        unet.parameter_shapes(config),
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 16, 16, 4), (77, width))),
    )

    def flops(layer):
        def maps(params, latents, prompt):
            _, lookings = unet.denoise(params, config, latents, prompt, TIMESTEP)
            return mean_attention([lookings[layer]], [1.0], 16)

        return jax.jit(maps).lower(*shapes).compile().cost_analysis()["flops"]

    names = "down_blocks.0", "up_blocks.1", "up_blocks.1"
    first, later, last = (flops(f"{name}.attentions.{i // 2}") for i, name in enumerate(names))
    assert first < later / 2 and later < 0.9 * last


def test_the_maps_of_many_heads_never_exist_at_once(loaded):
    """XLA's account at N = 16384: 2.5 N² floats; those of four heads would take more."""
    config, params = loaded["sd2"]
    pixels = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)

    def maps(params, pixels):
        return stable_diffusion.self_attention(params, config, pixels)

    memory = jax.jit(maps).lower(params, pixels).compile().memory_analysis()
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert 1 <= used / (4 * 16384**2) <= 2.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": ["up.3"]}, "unknown layer 'up.3'.*did you mean 'up.2'.*mid_block.attentions.0"),
        ({"layers": []}, "at least one layer"),
        ({"weights": [1.0]}, "for each a weight"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"pixels": np.zeros((1, 128, 96, 3))}, "wanted .B, S, S, 3. with S a multiple of 32"),
        ({"pixels": np.zeros((1, 100, 100, 3))}, "multiple of 32"),
    ],
)
def test_bad_requests_are_refused(change, message, loaded, pixels):
    config, params = loaded["sd2"]
    arguments = {"pixels": pixels} | change
    with pytest.raises(ValueError, match=message):
        stable_diffusion.self_attention(params, config, **arguments)
