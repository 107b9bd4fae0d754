"""Tiny Stable Diffusion checkpoints, written by the libraries that are the oracles."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest

from dsolo_jax.attention.stable_diffusion.config import StableDiffusionConfig


class Checkpoint(NamedTuple):
    """A folder in diffusers' layout, its sizes, and the torch models that it was written from.

    models: .unet, .vae, .text_encoder and .tokenizer.
    """

    folder: Path
    config: StableDiffusionConfig
    models: NamedTuple


def _kinds() -> dict:
    from tests.oracles.stable_diffusion import KINDS, Kind

    config, padding, gain = KINDS["tiny"]
    older = dataclasses.replace(
        config,
        unet=dataclasses.replace(
            config.unet, use_linear_projection=False, num_heads=(4, 4, 4), layers_per_block=1
        ),
        vae=dataclasses.replace(config.vae, layers_per_block=1),
        text=dataclasses.replace(config.text, hidden_act="quick_gelu"),
    )
    return {"sd1": Kind(older, "<|endoftext|>", gain), "sd2": Kind(config, padding, gain)}


@pytest.fixture(scope="session")
def checkpoints_by_family(tiny_clip, tmp_path_factory) -> dict[str, Checkpoint]:
    """Of the shape of Stable Diffusion 1, with convolutions around attention, and of 2."""
    from tests.oracles.stable_diffusion import build, save

    found = {}
    for family, kind in _kinds().items():
        models = build(kind, tiny_clip, seed=0)
        folder = tmp_path_factory.mktemp(family)
        save(models, folder)
        text = dataclasses.replace(kind.config.text, vocab_size=len(models.tokenizer))
        found[family] = Checkpoint(folder, dataclasses.replace(kind.config, text=text), models)
    return found


@pytest.fixture(scope="session", params=["sd1", "sd2"])
def checkpoint(request, checkpoints_by_family) -> Checkpoint:
    """Either family."""
    return checkpoints_by_family[request.param]


@pytest.fixture(scope="session")
def sd2(checkpoints_by_family) -> Checkpoint:
    """The second family, for what is the same in both."""
    return checkpoints_by_family["sd2"]
