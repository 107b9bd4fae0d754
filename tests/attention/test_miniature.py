"""The latent diffusion model that comes with the package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import dsolo_jax
from dsolo_jax import attention
from dsolo_jax.attention import stable_diffusion
from dsolo_jax.datasets import miniature
from experiments.training.attention_mass import majority
from tests.oracles.stable_diffusion import Models, relative, torch_maps

FOLDER = Path(dsolo_jax.__file__).parent / "assets" / "miniature" / "stable_diffusion"
SCENES = 4


@pytest.fixture(scope="module")
def scenes():
    """Of a world that nothing was trained or chosen on."""
    return [miniature.draw(2026, i, split="tune") for i in range(SCENES)]


@pytest.fixture(scope="module")
def source():
    return attention.load("miniature")


@pytest.fixture(scope="module")
def graphs(source, scenes):
    return np.asarray(attention.graph(*source[::-1], np.stack([scene.image for scene in scenes])))


def test_it_takes_pictures_of_the_worlds_size(source):
    found, _ = source
    assert (found.kind, found.layers) == ("stable_diffusion", ("up.0", "up.1"))
    assert (found.size, found.grid) == (112, 28)


def test_diffusers_sees_the_same(source, scenes, graphs):
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    models = Models(pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer)
    pixels = np.stack([scene.image for scene in scenes]).astype(np.float32) / 127.5 - 1
    expected = torch_maps(models, pixels, timestep=100)
    latents = stable_diffusion.encode(source[1], source[0].config, pixels)
    np.testing.assert_allclose(latents, expected.latents, rtol=0, atol=1e-4)
    maps = np.mean([expected.maps[f"up_blocks.1.attentions.{j}"] for j in (0, 1)], axis=0)
    assert relative(graphs, maps) < 1e-4


def test_patches_look_at_their_own_class(scenes, graphs):
    """Twice what flat rows would, over all patches and over those of things."""
    labels = majority(np.stack([scene.labels for scene in scenes]), 4).reshape(SCENES, -1)
    same = labels[:, :, None] == labels[:, None]
    own, flat = (graphs * same).sum(-1), same.mean(-1)
    for rows in (labels >= 0, labels >= miniature.NUM_STUFF):
        assert own[rows].mean() > 2 * flat[rows].mean()


def test_it_is_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".txt", ".md"}
