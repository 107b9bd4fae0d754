"""Reading and writing CLIP checkpoints."""

import dataclasses
import json
import shutil
from fnmatch import fnmatch

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import torch
import transformers

from dsolo_jax import checkpoints, clip
from dsolo_jax.clip.config import config_json, read_config


def _edit(folder, **changes) -> None:
    """Changes config.json's keys; a dotted key reaches into a section, None removes."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split("__")
        node = content
        for section in sections:
            node = node[section]
        node[last] = value
        if value is None:
            del node[last]
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tiny_clip, tmp_path):
    """A copy of the tiny checkpoint, to be damaged."""
    return shutil.copytree(tiny_clip, tmp_path / "clip")


def _assert_equal_trees(found, expected):
    found, expected = checkpoints.flatten(found), checkpoints.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)


def test_every_weight_is_float32(tiny_clip):
    _, params = clip.load(tiny_clip)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_norms_stay_float32_in_bfloat16(tiny_clip):
    _, params = clip.load(tiny_clip, dtype=jnp.bfloat16)
    for path, leaf in checkpoints.flatten(params).items():
        assert leaf.dtype == (jnp.float32 if "/norm" in path else jnp.bfloat16)


def test_sharded_files_give_the_same_tree(tiny_clip, torch_clip, tmp_path):
    torch_clip(vocab_size=522).save_pretrained(tmp_path, max_shard_size="60KB")
    assert not (tmp_path / "model.safetensors").exists()
    _assert_equal_trees(clip.load(tmp_path)[1], clip.load(tiny_clip)[1])


def test_half_precision_files_are_read_as_float32(tiny_clip, torch_clip, tmp_path):
    model = torch_clip(vocab_size=522)
    model.half().save_pretrained(tmp_path)
    _, params = clip.load(tmp_path)
    exact = checkpoints.flatten(clip.load(tiny_clip)[1])
    for path, leaf in checkpoints.flatten(params).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.asarray(exact[path]).astype(np.float16))


def test_saved_checkpoint_agrees_in_transformers(tmp_path):
    config = clip.ClipConfig(
        clip.VisionConfig(32, 64, 2, 4, image_size=64, patch_size=16, hidden_act="gelu"),
        clip.TextConfig(60, 16, 48, 2, 2, eos_token_id=59),
        projection_dim=24,
    )
    params = clip.init(config, jax.random.key(0))
    clip.save(tmp_path / "new", config, params)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    model, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(report.values())
    model.eval()
    pixels = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
    token_ids = np.array([[58, 4, 5, 59]])
    with torch.no_grad():
        image = model.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2)).pooler_output
        text = model.get_text_features(torch.tensor(token_ids)).pooler_output
    pairs = (
        (clip.encode_image(params, config, pixels).pooled, image.numpy()),
        (clip.encode_text(params, config, token_ids), text.numpy()),
    )
    for found, expected in pairs:
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)

    again, tree = clip.load(tmp_path / "new")
    assert again == config
    _assert_equal_trees(tree, params)


def test_init_is_random_by_key_and_tame():
    config = clip.ClipConfig(
        clip.VisionConfig(32, 64, 2, 4, image_size=64, patch_size=16),
        clip.TextConfig(60, 16, 48, 2, 2),
    )
    one, two = (clip.init(config, jax.random.key(seed)) for seed in (1, 2))
    _assert_equal_trees(one, clip.init(config, jax.random.key(1)))
    kernel = one["vision"]["blocks_0"]["query"]["kernel"]
    assert not np.array_equal(kernel, two["vision"]["blocks_0"]["query"]["kernel"])
    np.testing.assert_allclose(kernel.std(), 32**-0.5, rtol=0.1)


def test_old_files_with_position_ids_load(folder):
    _, params = clip.load(folder)
    tensors = checkpoints.read_tensors(folder)
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    _assert_equal_trees(clip.load(folder)[1], params)


def test_misfits_are_listed_together(folder):
    tensors = checkpoints.read_tensors(folder)
    del tensors["visual_projection.weight"]
    tensors["text_model.extra"] = np.zeros(2, np.float32)
    tensors["logit_scale"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="3 problems") as error:
        clip.load(folder)
    for line in (
        "missing: visual_projection.weight, for vision/projection/kernel (32, 24)",
        "unknown: text_model.extra (2,)",
        "wrong shape: logit_scale (1,)",
    ):
        assert line in str(error.value)


def test_a_config_of_other_depth_does_not_fit(folder):
    _edit(folder, vision_config__num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"16 problems(?s:.*)encoder.layers.2.layer_norm1.bias"):
        clip.load(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin.*safe_serialization"):
        clip.load(folder)


# What the config files on the hub leave out or say differently.
_HUB_CONFIGS = {
    "openai_l14": {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "eos_token_id": 2,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    },
    "openclip_h14": {
        "model_type": "clip",
        "projection_dim": 1024,
        "text_config": {"hidden_size": 512},
        "text_config_dict": {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
        },
        "vision_config": {},
        "vision_config_dict": {
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "patch_size": 14,
        },
    },
    "bare": {"model_type": "clip"},
    "null_dicts": {"model_type": "clip", "text_config_dict": None, "vision_config_dict": None},
}


@pytest.mark.parametrize("name", _HUB_CONFIGS)
def test_configs_are_read_as_transformers_reads_them(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(_HUB_CONFIGS[name]))
    config = read_config(tmp_path)
    oracle = transformers.CLIPConfig.from_pretrained(tmp_path)
    assert config.projection_dim == oracle.projection_dim
    for ours, theirs in (
        (config.vision, oracle.vision_config),
        (config.text, oracle.text_config),
    ):
        for field in dataclasses.fields(ours):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_config_json_is_read_back(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_json(clip.VIT_L14)))
    assert read_config(tmp_path) == clip.VIT_L14
    assert hash(clip.VIT_L14) != hash(clip.VIT_B16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip', wanted 'clip'"),
        ({"model_type": None}, "model_type is None"),
        ({"vision_config__hidden_act": "relu"}, "vision_config: hidden_act is 'relu'"),
        ({"text_config__hidden_size": "16"}, "text_config: hidden_size is '16', wanted one int"),
        ({"text_config__eos_token_id": [1, 2]}, "eos_token_id is .1, 2., wanted one int"),
        ({"vision_config__num_attention_heads": 5}, "hidden_size 32 is no multiple of.*5"),
        ({"vision_config__image_size": 65}, "image_size 65 is no multiple of patch_size 16"),
        ({"projection_dim": "24"}, "projection_dim is '24'"),
        ({"projection_dim": -24}, "projection_dim is -24, wanted one int above 0"),
        ({"vision_config__patch_size": 0}, "vision_config: patch_size is 0, wanted one int above"),
        ({"vision_config": 5}, "vision_config is 5, wanted an object"),
        ({"vision_config": "x"}, "vision_config is 'x', wanted an object"),
        ({"vision_config__num_attention_heads": 0}, "num_attention_heads is 0, wanted one int abo"),
        ({"vision_config__image_size": -224}, "image_size is -224, wanted one int above 0"),
        ({"vision_config__layer_norm_eps": float("nan")}, "layer_norm_eps is nan, wanted one floa"),
        ({"text_config__vocab_size": [9]}, "text_config: vocab_size is .9,., wanted one int"),
        ({"text_config__num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000.*most 1000"),
        ({"model_type": {}}, "model_type is {}"),
    ],
)
def test_unusable_configs_are_named(folder, changes, words):
    _edit(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json.*{words}"):
        clip.load(folder)


NORMALISATIONS = (
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.0, 0.5, 1.0), (0.1, 0.5, 1.0)),
)


def _normalise(config, pixels):
    mean, std = np.array([config.image_mean, config.image_std], np.float32)
    return (pixels.astype(np.float32) / 255 - mean) / std


@pytest.mark.parametrize(("mean", "std"), NORMALISATIONS)
def test_pictures_are_normalised_by_the_folders_own_processor(
    folder, torch_clip, monkeypatch, mean, std
):
    """From the folder, and from a stand-in of the hub that hands out the files asked for."""
    transformers.CLIPImageProcessorPil(
        image_mean=mean, image_std=std, size={"shortest_edge": 64}, do_center_crop=False
    ).save_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    oracle = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    given = oracle(PIL.Image.fromarray(picture), return_tensors="pt").pixel_values
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model.get_image_features(given).pooler_output[0].numpy()

    def download(name, allow_patterns):
        remote = folder.parent / "remote"
        remote.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, remote)
        return str(remote)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for source in (folder, "owner/name"):
        config, params = clip.load(source)
        assert (config.image_mean, config.image_std) == (mean, std)
        found = clip.encode_image(params, config, _normalise(config, picture[None])).pooled[0]
        cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine > 0.99999


def test_normalisation_is_saved_too(folder, tmp_path):
    config, params = clip.load(folder)
    other = dataclasses.replace(config, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6))
    clip.save(tmp_path / "other", other, params)
    assert clip.load(tmp_path / "other")[0] == other
    oracle = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "other")
    assert tuple(oracle.image_mean) == other.image_mean


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"image_std": [0.2, 0, 0.3]}, r"image_std is \[0.2, 0, 0.3\], wanted three numbers from"),
        ({"image_std": [0.2, 0.3]}, "image_std is .*wanted three numbers"),
        ({"image_std": [0.2, 0.3, float("nan")]}, "image_std is .*nan"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "image_mean is .*from 0 to 1, for pixels in 0..1"),
        ({"image_mean": 0.5}, "image_mean is 0.5, wanted three numbers"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean is .*'a'"),
        ({"do_normalize": False}, "do_normalize is False, wanted True"),
        ({"rescale_factor": 1}, "rescale_factor is 1, wanted 0.0039"),
    ],
)
def test_unusable_normalisations_are_named(folder, content, words):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: {words}"):
        clip.load(folder)


def test_weights_that_are_not_finite_are_named(folder):
    tensors = checkpoints.read_tensors(folder)
    tensors["vision_model.encoder.layers.1.mlp.fc2.bias"][3] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    words = r"not finite in 1 of 32 places: vision_model.encoder.layers.1.mlp.fc2.bias \(32,\)"
    with pytest.raises(ValueError, match=words):
        clip.load(folder)


def test_a_folder_without_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        clip.load(folder)
