"""The field's methods as presets: the table fits the library, and each of them labels a picture."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

import dsolo_jax as dsolo
from dsolo_jax import clip, datasets
from dsolo_jax.attention import dino, stable_diffusion
from dsolo_jax.datasets.protocols import PROTOCOLS
from dsolo_jax.model import _check_windows
from dsolo_jax.peers import PEERS, PUBLISHED, published
from dsolo_jax.solver.discrepancy import needs_graph
from tests.oracles.last_layers import affinity, last_features

_KNOWN = [name for name in PROTOCOLS if name not in ("miniature", "folder")]


def test_every_peer_is_a_preset_of_pieces_that_exist():
    layers = {
        "dino": dino.layer_names(dino.DINO_B16),
        "stable_diffusion": stable_diffusion.layer_names(stable_diffusion.SD2),
    }
    for name, peer in PEERS.items():
        for scale in peer.scales:
            preset = dsolo.PRESETS[f"{name}_{scale}"]
            assert (preset.readings, preset.method) == (peer.readings, peer.method)
            assert (preset.attention, preset.attention_size) == (peer.attention, peer.size)
        assert peer.method in dsolo.METHODS and peer.readings.start in clip.STARTS
        assert peer.readings.presence == 0
        wanted = needs_graph(peer.method) or clip.needs_graph(peer.readings.start)
        assert wanted == bool(peer.layers) == (peer.attention != "clip")
        assert all(layer in layers[peer.kind] for layer in peer.layers)
    assert dsolo.PRESETS["dslo_b16"].method == "velocity"


def test_published_protocols_are_protocols():
    assert PUBLISHED.keys() == PEERS.keys()
    fields = {field.name for field in dataclasses.fields(datasets.Protocol)}
    for peer in PEERS:
        assert PUBLISHED[peer].keys() - {""} <= set(_KNOWN)
        for name in _KNOWN:
            changes = published(peer, name)
            assert changes.keys() <= fields
            protocol = datasets.protocol(name, **changes)
            datasets.protocols.classes(name, protocol)
            for patch in (16, 14):  # of B/16 and L/14
                side = protocol.short_side
                _check_windows(protocol.crop, protocol.stride, short_side=side, patch=patch)


def test_published_values_are_those_of_the_repositories():
    """A few that are unlike the others."""
    assert published("sclip", "voc21") == {
        "short_side": 336, "crop": 224, "stride": 112, "vocabulary": "naclip",
        "background_rule": "threshold", "probability_threshold": 0.1,
        "logit_scale": 65.0, "area_threshold": 0.1,
    }  # fmt: skip
    assert "area_threshold" not in published("maskclip", "voc21")
    assert "crop" not in published("naclip", "voc20")
    assert published("naclip", "cityscapes")["crop"] == 224
    proxy = published("proxyclip", "ade20k")
    assert (proxy["short_side"], proxy["crop"], proxy["stride"]) == (448, 336, 112)
    assert published("clearclip", "coco_object")["probability_threshold"] == 0.4


def test_what_no_peer_ran_is_cut_into_windows_of_the_same_share():
    assert published("naclip", "folder") == {"crop": 224, "stride": 112}
    assert published("naclip", "folder", short_side=448) == {"crop": 304, "stride": 144}
    assert published("proxyclip", "miniature", short_side=112) == {"crop": 112, "stride": 32}
    assert published("proxyclip", "miniature", short_side=112, patch=8) == {
        "crop": 112,
        "stride": 40,
    }
    assert published("cliper", "folder") == {}
    with pytest.raises(ValueError, match="unknown peer 'naklip' .did you mean 'naclip'"):
        published("naklip", "voc21")
    with pytest.raises(ValueError, match="unknown dataset 'voc12'"):
        published("naclip", "voc12")


# ---------------------------------------------------------------------------------- end to end


def _torch_dino():
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=64,
        patch_size=8,
        layer_norm_eps=1e-12,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.ViTModel(config, add_pooling_layer=False).eval()
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def torch_dino():
    return _torch_dino()


@pytest.fixture(scope="module")
def tiny_dino(torch_dino, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch_dino.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)


@pytest.mark.parametrize("name", ["naclip_b16", "proxyclip_b16", "lposs_b16"])
def test_a_peer_labels_a_picture(name, tiny_clip, tiny_dino, picture):
    peer = PEERS[name.removesuffix("_b16")]
    sizes = {"short_side": 64}
    sizes |= {"attention": tiny_dino, "attention_size": 64} if peer.layers else {"grid": 8}
    model = dsolo.load(name, tiny_clip, **sizes)
    assert model.config.method == peer.method
    assert model.config.source.layers == (peer.layers or ("0",))
    result = dsolo.segment(model, picture, ["cat", "a photo"], return_scores=True)
    assert result.labels.shape == (70, 100) and np.isfinite(result.scores).all()
    other = dsolo.segment(model, picture, ["cat", "a photo"], method="class_token")
    assert len(np.unique(other.labels)) == 1


def test_a_start_that_needs_the_graph_is_never_without(tiny_clip, tiny_dino):
    given = {"attention": tiny_dino, "attention_size": 64, "graph": False}
    assert dsolo.load("lposs_b16", tiny_clip, **given).params["attention"] is None
    assert dsolo.load("proxyclip_b16", tiny_clip, **given).params["attention"] is not None


def test_a_source_without_a_peers_layers_is_refused(tiny_clip):
    for name, layer in (("proxyclip_b16", "affinity"), ("cliper_b16", "cliper")):
        with pytest.raises(ValueError, match=f"unknown layer of appearance '{layer}'.*colour, te"):
            dsolo.load(name, tiny_clip, "appearance")


def test_proxyclip_is_torchs_from_dinos_pixels_to_projected_patches(
    torch_clip, torch_dino, tiny_dino, tmp_path
):
    """transformers' DINO, ProxyCLIP's formula, transformers' CLIP; each picture not square."""
    model = torch_clip()
    model.save_pretrained(tmp_path)
    random = np.random.default_rng(3)
    pixels, seen = (random.standard_normal(s).astype(np.float32) for s in _SHAPES)
    with torch.no_grad():
        given = torch.tensor(seen).permute(0, 3, 1, 2)
        features = torch_dino(given, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    graph = np.stack([affinity(picture) for picture in features.numpy()]).astype(np.float32)
    expected = last_features(model, pixels, "proxyclip", graph)

    config, params = dino.load(tiny_dino)
    graph = dino.self_attention(params, config, seen, layers=("affinity",))
    config, params = clip.load(tmp_path)
    found = clip.encode_image(params, config, pixels, start="proxyclip", graph=graph).patches
    assert found.shape == (2, 7, 7, 24)
    error = np.linalg.norm(found.reshape(expected.shape) - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


_SHAPES = (2, 48, 80, 3), (2, 56, 56, 3)
