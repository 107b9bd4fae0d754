"""Attention sources behind their one interface, and the whole way from picture to labels."""

import copy
import functools
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors

import dsolo_jax.clip
from dsolo_jax import attention, images
from dsolo_jax.attention import appearance, dino, sources, stable_diffusion
from dsolo_jax.attention.stable_diffusion import unet, vae

SIZE = 128  # 16 x 16 patches of the tiny Stable Diffusion


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Tracing the tiny networks for their shapes is most of the time that loading them takes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (unet, vae):
            patch.setattr(module, "parameter_shapes", functools.cache(module.parameter_shapes))
        yield


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """Folder of a tiny DINOv2 whose weights are large enough for every part to matter."""
    config = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=70,
        patch_size=14,
    )
    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(config)
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def squares():
    """Of two pictures that are not square."""
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 256, (*shape, 3), np.uint8) for shape in ((120, 160), (160, 120))
    ]
    return np.stack([images.squeeze(picture, SIZE) for picture in pictures])


@pytest.fixture(scope="module")
def loaded(sd2, dinov2, tiny_clip):
    """Kind -> source, parameters; the largest size that `SIZE` holds."""
    clip = dsolo_jax.clip.load(tiny_clip)
    return {
        "stable_diffusion": attention.load(sd2.folder, size=SIZE),
        "dino": attention.load(dinov2, layers=["0", "affinity"], weights=[0.5, 2.0], size=126),
        "clip": attention.load("clip", clip=clip, layers=["0", "-1"], size=SIZE),
        "appearance": attention.load("appearance", size=SIZE),
    }


KINDS = ("stable_diffusion", "dino", "clip", "appearance")


# -------------------------------------------------------------------------------- the interface


def test_a_folder_is_known_by_what_it_holds(sd2, dinov2):
    source, _ = attention.load(sd2.folder)
    assert (source.name, source.kind) == (str(sd2.folder), "stable_diffusion")
    assert (source.layers, source.weights) == (("up.0", "up.1"), None)
    assert (source.size, source.grid) == (512, 64)
    source, _ = attention.load(str(dinov2))
    assert (source.kind, source.layers, source.weights) == ("dino", ("-1",), None)
    assert (source.size, source.grid) == (518, 37)


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_pure_and_static(loaded, squares, kind):
    """One program for equal settings; rows sum to one; a picture has its graph alone too."""
    source, params = loaded[kind]
    squares = squares[:, : source.size, : source.size]
    assert hash(source) == hash(copy.deepcopy(source)) and source.kind == kind
    program = jax.jit(attention.graph, static_argnums=1)
    together = np.asarray(program(params, source, squares))
    programs = program._cache_size()
    program(params, copy.deepcopy(source), squares)
    assert program._cache_size() == programs
    assert together.shape == (2, source.grid**2, source.grid**2) and together.dtype == np.float32
    np.testing.assert_allclose(together.sum(-1), 1, atol=1e-5)
    for picture, ours in zip(squares, together, strict=True):
        alone = attention.graph(params, source, picture[None])[0]
        np.testing.assert_allclose(alone, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_x64_changes_no_result(loaded, squares, sd2, kind):
    source, params = loaded[kind]
    squares = squares[:1, : source.size, : source.size]
    expected = attention.graph(params, source, squares)
    with jax.enable_x64(True):
        if kind == "stable_diffusion":  # part of it is computed when it is loaded
            source, params = attention.load(sd2.folder, size=SIZE)
        found = attention.graph(params, source, squares)
        assert found.dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_layers_have_one_name_each(loaded):
    names = {kind: attention.layer_names(source) for kind, (source, _) in loaded.items()}
    assert names["clip"] == ("0", "1") and names["dino"] == ("0", "1", "affinity", "neighbours")
    assert names["appearance"] == ("colour", "texture", "distance")
    own = unet.layer_names(loaded["stable_diffusion"][0].config.unet)
    assert names["stable_diffusion"] == (*own, "cliper")


def test_stable_diffusion_sees_pixels_in_its_range(loaded, sd2, squares):
    source, fixed = loaded["stable_diffusion"]
    config, params = stable_diffusion.load(sd2.folder)
    pixels = squares.astype(np.float32) / 127.5 - 1
    expected = stable_diffusion.self_attention(
        params, config, pixels, layers=("up.0", "up.1"), timestep=100
    )
    found = attention.graph(fixed, source, squares)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "weights"), [(None, None), (["0", "affinity"], [0.5, 2.0])], ids=["default", "two"]
)
def test_dino_sees_pixels_normalised(dinov2, squares, layers, weights):
    source, params = attention.load(dinov2, layers=layers, weights=weights, size=126)
    # ImageNet's, by torchvision.
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = (squares[:, :126, :126] / np.float32(255) - mean) / std
    expected = dino.self_attention(
        params, source.config, pixels, layers=tuple(layers or ("-1",)), weights=weights
    )
    found = attention.graph(params, source, squares[:, :126, :126])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_appearance_needs_no_checkpoint(squares):
    pixels = squares / np.float32(255)
    source, params = attention.load("appearance", size=SIZE)
    assert (source.kind, source.grid, params) == ("appearance", 16, {})
    expected = appearance.self_affinity(pixels)
    np.testing.assert_allclose(attention.graph(params, source, squares), expected, atol=1e-5)
    colour, _ = attention.load("appearance", layers=["colour"], weights=[3.0], size=SIZE)
    expected = appearance.self_affinity(pixels, layers=["colour"], weights=[3.0])
    np.testing.assert_allclose(attention.graph({}, colour, squares), expected, atol=1e-5)


# -------------------------------------------------------------------------------------- errors


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match="'klip' .did you mean 'clip'.*sd2, sd1, dino, .*appearance"
    ):
        attention.load("klip")


def test_unusable_settings_are_named(sd2, dinov2):
    with pytest.raises(ValueError, match="unknown layer of .* 'up.7'.*: down.0, down.1, up.0"):
        attention.load(sd2.folder, layers=["up.0", "up.7"])
    with pytest.raises(ValueError, match="unknown layer of .* 'up.0'.*-1"):
        attention.load(dinov2, layers=["up.0"])
    with pytest.raises(ValueError, match="unknown layer of appearance 'shape'.*colour, texture"):
        attention.load("appearance", layers=["shape"])
    with pytest.raises(ValueError, match="attention_size is 500.*multiple of 32 .* as 512"):
        attention.load(sd2.folder, size=500)
    with pytest.raises(ValueError, match="weights .1.0. for layers .*up.0.*up.1"):
        attention.load(sd2.folder, weights=[1])
    for name, timestep in ((sd2.folder, 1000), (sd2.folder, float("nan")), ("appearance", 50)):
        with pytest.raises(ValueError, match=f"timestep is {timestep} for .*0..999"):
            attention.load(name, timestep=timestep)
    for size, nearest in ((512, 518), (0, 14), (-28, 14), (1, 14)):
        with pytest.raises(ValueError, match=f"attention_size is {size};.* of 14 .* as {nearest}$"):
            attention.load(dinov2, size=size)


def test_pictures_that_are_no_squares_are_named(loaded, squares):
    source, params = loaded["appearance"]
    for wrong in (squares[:, :120, :120], squares / 255, squares[0]):
        with pytest.raises(ValueError, match=r"squares are .*wanted uint8 \[B, 128, 128, 3\]"):
            attention.graph(params, source, wrong)


def test_damaged_folders_are_named(sd2, dinov2, tiny_clip, tmp_path):
    folder = shutil.copytree(sd2.folder, tmp_path / "sd")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="sd/unet .*only diffusion_pytorch_model.bin"):
        attention.load(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match="sd holds no unet"):
        attention.load(folder)
    folder = shutil.copytree(dinov2, tmp_path / "dino")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="dino .*only pytorch_model.bin.*safetensors"):
        attention.load(folder)
    with pytest.raises(ValueError, match="model_type is 'clip'"):
        attention.load(tiny_clip)


def test_a_hub_id_is_known_by_what_the_hub_holds(monkeypatch, dinov2):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(dinov2)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert attention.load("owner/name")[0].kind == "dino"
    # Before gigabytes of a model that may be another's are fetched.
    assert asked[0] == ("owner/name", ["model_index.json", "config.json"])
    asked.clear()
    assert attention.load("dinov2")[0].kind == "dino"
    assert {name for name, _ in asked} == {"facebook/dinov2-base"}


@pytest.mark.parametrize(
    ("name", "copies"),
    [("stabilityai/stable-diffusion-2-1-base", True), ("sd2", True), ("dinov2", False)],
)
def test_a_hub_that_does_not_answer_leads_to_the_copies(monkeypatch, name, copies):
    def download(*args, **kwargs):
        raise hub_errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConnectionError, match="local folder") as error:
        attention.load(name)
    assert sources.HUB_IDS.get(name, name) in str(error.value)
    assert ("stable-diffusion-v1-5/stable-diffusion-v1-5" in str(error.value)) is copies
