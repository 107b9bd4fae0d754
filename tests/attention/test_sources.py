"""Attention sources behind their one interface, and the whole way from picture to labels."""

import functools
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors

import dsolo_jax as dsolo
from dsolo_jax import images, pipeline, vocabulary
from dsolo_jax.attention import appearance, dino, sources, stable_diffusion
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.utils import memory
from experiments.demo import CLASSES

SIZE = 128  # 16 x 16 patches of the tiny Stable Diffusion
SHAPES = [(120, 160), (160, 120)]  # of pictures, of one bucket


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
def small(demo, sd2):
    """The demo's CLIP with the tiny Stable Diffusion."""
    return dsolo.load(clip=demo / "clip", attention=sd2.folder, attention_size=SIZE)


@pytest.fixture(scope="module")
def pictures(demo, small):
    found = [images.read_image(demo / "images" / f"scene_{i}.png") for i in range(len(SHAPES))]
    resized = [images.resize(*pair) for pair in zip(found, SHAPES, strict=True)]
    return [dsolo.prepare(small, pixels) for pixels in resized]


@pytest.fixture(scope="module")
def squares(pictures):
    return np.stack([picture.square for picture in pictures])


# -------------------------------------------------------------------------------- the interface


def test_a_folder_is_known_by_what_it_holds(sd2, dinov2):
    source = sources.load(sd2.folder)
    assert (source.kind, source.layers, source.weights) == (
        "stable_diffusion",
        ("up.0", "up.1"),
        None,
    )
    assert (source.size, source.grid) == (512, 64)
    source = sources.load(str(dinov2))
    assert (source.kind, source.layers, source.weights) == ("dino", ("-1",), None)
    assert (source.size, source.grid) == (518, 37)


def test_stable_diffusion_sees_pixels_in_its_range(small, sd2, squares):
    attention = np.asarray(sources.graph(small.source, squares))
    assert small.source.grid == 16 and attention.shape == (2, 256, 256)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    config, params = stable_diffusion.load(sd2.folder)
    pixels = squares.astype(np.float32) / 127.5 - 1
    expected = stable_diffusion.self_attention(
        params, config, pixels, layers=("up.0", "up.1"), timestep=100
    )
    np.testing.assert_allclose(attention, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "weights"), [(None, None), (["0", "affinity"], [0.5, 2.0])], ids=["default", "two"]
)
def test_dino_sees_pixels_normalised(dinov2, squares, layers, weights):
    source = sources.load(dinov2, layers=layers, weights=weights, size=126)
    attention = np.asarray(sources.graph(source, squares[:, :126, :126]))
    assert source.grid == 9 and attention.shape == (2, 81, 81)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    config, params = dino.load(dinov2)
    # ImageNet's, by torchvision.
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = (squares[:, :126, :126] / np.float32(255) - mean) / std
    expected = dino.self_attention(
        params, config, pixels, layers=tuple(layers or ("-1",)), weights=weights
    )
    np.testing.assert_allclose(attention, expected, rtol=0, atol=1e-5)


def test_appearance_needs_no_checkpoint(squares):
    source = sources.load("appearance", size=96)
    assert (source.kind, source.grid) == ("appearance", 12)
    expected = appearance.self_affinity(squares[:, :96, :96] / np.float32(255))
    np.testing.assert_allclose(sources.graph(source, squares[:, :96, :96]), expected, atol=1e-5)
    colour = sources.load("appearance", layers=["colour"], weights=[3.0], size=96)
    expected = appearance.self_affinity(
        squares[:, :96, :96] / np.float32(255), cues=["colour"], weights=[3.0]
    )
    np.testing.assert_allclose(sources.graph(colour, squares[:, :96, :96]), expected, atol=1e-5)


# -------------------------------------------------------------------------------------- errors


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match="'klip' .did you mean 'clip'.*sd2, sd1, dino, .*appearance"
    ):
        sources.load("klip")


def test_unusable_settings_are_named(sd2, dinov2):
    with pytest.raises(ValueError, match="unknown layer of .* 'up.7'.*: down.0, down.1, up.0"):
        sources.load(sd2.folder, layers=["up.0", "up.7"])
    with pytest.raises(ValueError, match="unknown layer of .* 'up.0'.*-1"):
        sources.load(dinov2, layers=["up.0"])
    with pytest.raises(ValueError, match="unknown layer of appearance 'shape'.*colour, texture"):
        sources.load("appearance", layers=["shape"])
    with pytest.raises(ValueError, match="attention_size is 500.*multiple of 32 .* as 512"):
        sources.load(sd2.folder, size=500)
    for size, nearest in ((512, 518), (0, 14), (-28, 14), (1, 14)):
        with pytest.raises(ValueError, match=f"attention_size is {size};.* of 14 .* as {nearest}$"):
            sources.load(dinov2, size=size)


def test_damaged_folders_are_named(sd2, dinov2, tiny_clip, tmp_path):
    folder = shutil.copytree(sd2.folder, tmp_path / "sd")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="sd/unet .*only diffusion_pytorch_model.bin"):
        sources.load(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match="sd holds no unet"):
        sources.load(folder)
    folder = shutil.copytree(dinov2, tmp_path / "dino")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="dino .*only pytorch_model.bin.*safetensors"):
        sources.load(folder)
    with pytest.raises(ValueError, match="model_type is 'clip'"):
        sources.load(tiny_clip)


def test_a_hub_id_is_known_by_what_the_hub_holds(monkeypatch, dinov2):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(dinov2)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert sources.load("owner/name").kind == "dino"
    # Before gigabytes of a model that may be another's are fetched.
    assert asked[0] == ("owner/name", ["model_index.json", "config.json"])
    asked.clear()
    assert sources.load("dinov2").kind == "dino"
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
        sources.load(name)
    assert sources.HUB_IDS.get(name, name) in str(error.value)
    assert ("stable-diffusion-v1-5/stable-diffusion-v1-5" in str(error.value)) is copies


# --------------------------------------------------------------------------------- the whole way


def test_a_picture_gets_labels_of_its_shape(small, pictures):
    assert (small.grid, small.attention_layers) == (16, ("up.0", "up.1"))
    labels = dsolo.segment(small, pictures[0].pixels, CLASSES).labels
    assert labels.shape == SHAPES[0] and labels.dtype == np.int32
    assert 0 <= labels.min() and labels.max() < len(CLASSES)


def test_a_picture_scores_the_same_alone_and_in_a_batch(small, pictures):
    words = vocabulary.parse(CLASSES)

    def scores(batch):
        graph = pipeline.graph(small, batch)
        encoded = pipeline.encode(small, batch, words, small.readings.start, graph)
        return np.asarray(pipeline.solve(encoded, words, "velocity", small.readings))

    together = scores(pictures)
    assert together.shape == (2, len(CLASSES), 16, 16)
    assert np.abs(together[0] - together[1]).max() > 1e-3  # in cosines
    for picture, ours in zip(pictures, together, strict=True):
        np.testing.assert_allclose(scores([picture])[0], ours, rtol=0, atol=1e-4)


def test_the_solvers_grid_may_be_smaller_than_the_sources(demo, sd2, pictures):
    coarse = dsolo.load(clip=demo / "clip", attention=sd2.folder, attention_size=SIZE, grid=8)
    graph = np.asarray(pipeline.graph(coarse, pictures))
    assert coarse.source.grid == 16 and graph.shape == (2, 64, 64)
    np.testing.assert_allclose(graph.sum(-1), 1, atol=1e-5)
    assert dsolo.segment(coarse, pictures[0].pixels, CLASSES).labels.shape == SHAPES[0]


def test_a_graph_too_large_for_memory_is_refused_before_clip_is_loaded(monkeypatch, dinov2):
    """64 x 64 patches: four float32 matrices of 4096 x 4096 are 2²⁸ bytes."""

    def load():
        dsolo.load(clip="no such place", attention=dinov2, attention_size=14 * 64)

    for free in (10**6, 2**28 - 1):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        with pytest.raises(ValueError, match="64 x 64 patches.* 0.2 GiB .*attention_size"):
            load()
    for free in (2**28, None):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        with pytest.raises(FileNotFoundError, match="no such place"):
            load()
