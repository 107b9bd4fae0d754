"""Presets and loading; a model is weights and settings, apart."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax.model import suitable_batch_size
from dsolo_jax.readings import BUNDLES, resolve
from dsolo_jax.utils import memory


def load(demo, **options):
    sizes = {"attention": "clip", "short_side": 224, "attention_size": 256}
    return dsolo.load(clip=demo / "clip", **{**sizes, **options})


def test_presets_name_their_weights_and_readings():
    paper, robust = dsolo.PRESETS["paper_l14"], dsolo.PRESETS["dslo_b16"]
    assert (paper.clip, paper.attention) == ("openai/clip-vit-large-patch14", "sd2")
    assert (robust.clip, robust.attention) == ("openai/clip-vit-base-patch16", "sd2")
    assert (paper.readings, robust.readings) == (BUNDLES["paper"], BUNDLES["robust"])
    assert {"dslo_b16", "dslo_l14", "paper_b16", "paper_l14", "miniature"} <= dsolo.PRESETS.keys()


def test_a_model_is_a_tree_of_its_weights(model):
    same = jax.tree.map(lambda x: x, model)
    assert isinstance(same, dsolo.Model) and same.config == model.config
    leaves = jax.tree.leaves(model)
    assert leaves and len(leaves) == len(jax.tree.leaves(model.params))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    assert half.params["clip"]["vision"]["patch_kernel"].dtype == jnp.bfloat16
    assert "Array" not in repr(model)


def test_a_model_can_be_pickled(model):
    again = pickle.loads(pickle.dumps(model))
    assert again.config == model.config and hash(again.config) == hash(model.config)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_loaded_twice_shares_its_programs(demo, model):
    assert load(demo).config == model.config
    assert load(demo, readings="robust,tau=0.3").config != model.config


def test_readings_grid_and_sides_can_be_chosen(demo):
    chosen = load(demo, readings="paper,tau=0.1", grid=12, short_side=None, long_side=500).config
    assert chosen.readings == resolve("paper,tau=0.1")
    assert (chosen.grid, chosen.short_side, chosen.long_side) == (12, 336, 500)


def test_without_the_graphs_weights_the_grid_is_the_same(demo, model):
    bare = load(demo, graph=False)
    assert bare.params["attention"] is None
    assert bare.config == model.config


def test_loading_refuses_by_name(demo):
    with pytest.raises(ValueError, match="unknown preset 'dslo_b61' .did you mean 'dslo_b16'"):
        dsolo.load("dslo_b61")
    with pytest.raises(ValueError, match="unknown attention source .* 'klip'"):
        load(demo, attention="klip")
    with pytest.raises(FileNotFoundError, match="no such place"):
        dsolo.load(clip="no such place", attention="clip")
    with pytest.raises(ValueError, match="grid is 0"):
        load(demo, grid=0)
    with pytest.raises(ValueError, match="unknown layer of clip '7'"):
        load(demo, attention_layers=("7",))
    with pytest.raises(ValueError, match="unknown reading 'taw'"):
        load(demo, readings="robust,taw=1")


def test_a_grid_beyond_the_memory_is_refused_before_anything_is_tried(demo, monkeypatch):
    """Four matrices [N, N] in float32: 256 MiB for N = 64 x 64."""
    monkeypatch.setattr(memory, "available", lambda: 2**28)
    assert load(demo, grid=64).config.grid == 64
    with pytest.raises(
        ValueError, match="65 x 65 patches.*0.3 GiB for each.*0.2 GiB are free.*at most 64 x 64"
    ):
        load(demo, grid=65)
    assert load(demo, grid=65, graph=False).config.grid == 65
    monkeypatch.setattr(memory, "available", lambda: None)
    assert load(demo, grid=65).config.grid == 65


@pytest.mark.parametrize(
    ("gibibytes", "size"), [(56, 32), (12, 8), (5, 2), (3.5, 1), (1, 1), (None, 1)]
)
def test_an_accelerator_takes_as_many_pictures_as_it_has_room_for(
    demo, monkeypatch, gibibytes, size
):
    """Of 512 pixels and 4,096 patches: 0.75 GiB each, and 3 GiB in any case."""
    model = load(demo, graph=False)
    source = dataclasses.replace(model.config.source, size=512)
    model = dataclasses.replace(
        model, config=dataclasses.replace(model.config, source=source, grid=64)
    )
    free = None if gibibytes is None else int(gibibytes * 2**30)
    monkeypatch.setattr(memory, "available", lambda: free)
    assert suitable_batch_size(model) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert suitable_batch_size(model) == size


def test_dtypes_are_taken_by_their_short_names_and_others_refused(demo):
    assert load(demo, dtype="bf16").params["clip"]["text"]["tokens"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="dtype is int8; .* float32, float16 or bfloat16"):
        load(demo, dtype="int8")


def test_an_absurd_grid_of_clips_own_attention_is_refused(demo):
    with pytest.raises(ValueError, match="grid of 2000 x 2000 patches.*smaller attention_size"):
        load(demo, grid=2000)
