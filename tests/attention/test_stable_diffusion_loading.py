"""Reading Stable Diffusion checkpoints."""

import functools
import inspect
import json
import shutil
import subprocess
import sys
import types
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import diffusers
import huggingface_hub
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from huggingface_hub import errors as hub_errors

from dsolo_jax import checkpoints
from dsolo_jax.attention.stable_diffusion import config as configs
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.attention.stable_diffusion.prompt import empty_tokens
from dsolo_jax.attention.stable_diffusion.weights import HUB_IDS, load
from dsolo_jax.checkpoints import flatten

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Tracing the tiny networks for their shapes is most of the time that loading them takes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (unet, vae):
            patch.setattr(module, "parameter_shapes", functools.cache(module.parameter_shapes))
        yield


@pytest.fixture(scope="module")
def exact(sd2):
    """The parameters of the tiny checkpoint."""
    return load(sd2.folder)[1]


@pytest.fixture
def folder(sd2, tmp_path):
    """A copy of the tiny checkpoint, to be changed."""
    return shutil.copytree(sd2.folder, tmp_path / "sd2")


def _edit(path: Path, **changes) -> None:
    """Changes keys of a JSON file; `...` removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def _weights(folder: Path, name: str, variant: str = "") -> Path:
    return folder / name / checkpoints.weight_files(WEIGHTS[name], variant)[0]


def _rewrite(path: Path, change, to: Path | None = None) -> None:
    """Rewrites a safetensors file: `change(name, array)` gives a new (name, array)."""
    tensors = safetensors.numpy.load_file(path)
    tensors = dict(change(*item) for item in tensors.items())
    safetensors.numpy.save_file(tensors, to or path)


def _assert_equal(found, expected, change=lambda x: x):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], change(np.asarray(leaf)), err_msg=path)


# -------------------------------------------------------------------------------------- trees


def test_every_tensor_is_there_once(checkpoint):
    """Whatever their layout: where each belongs is for the tests of the networks to show."""
    config, params = load(checkpoint.folder)
    assert config == checkpoint.config
    for name, skipped in (("unet", ()), ("vae", ("decoder.", "post_quant_conv."))):
        state = getattr(checkpoint.models, name).state_dict()
        expected = Counter(
            np.sort(tensor.numpy().ravel()).tobytes()
            for key, tensor in state.items()
            if not key.startswith(skipped)
        )
        found = Counter(
            np.sort(np.ravel(leaf)).tobytes() for leaf in flatten(params[name]).values()
        )
        assert found == expected


def test_the_prompt_is_the_text_encoders(checkpoint):
    tokenizer, encoder = checkpoint.models.tokenizer, checkpoint.models.text_encoder
    token_ids = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder(token_ids).last_hidden_state[0].numpy()
        (other,) = encoder(token_ids % 520 + 1).last_hidden_state.numpy()
    _, params = load(checkpoint.folder)
    assert params["prompt"].shape == (77, 24) and params["prompt"].dtype == jnp.float32
    assert np.abs(params["prompt"] - expected).max() <= 1e-5
    assert np.abs(params["prompt"] - other).max() > 0.1


def test_half_precision_but_for_norms_and_prompt(sd2, exact):
    _, params = load(sd2.folder, jnp.bfloat16)
    for path, leaf in flatten(params).items():
        kept = path == "prompt" or "norm" in path
        assert leaf.dtype == (jnp.float32 if kept else jnp.bfloat16), path
    np.testing.assert_array_equal(params["prompt"], exact["prompt"])
    assert all(leaf.dtype == jnp.float32 for leaf in flatten(exact).values())


# -------------------------------------------------------------------------------------- files


def test_old_names_load(checkpoint, tmp_path):
    """Those of the hub: of the VAE's attention, of the text encoder, and a counter."""
    folder = shutil.copytree(checkpoint.folder, tmp_path / "old")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(name, tensor):
        for new, old in names.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        return name, tensor

    _rewrite(_weights(folder, "vae"), older)
    assert any("proj_attn" in n for n in safetensors.numpy.load_file(_weights(folder, "vae")))
    text = _weights(folder, "text_encoder")
    _rewrite(text, lambda name, tensor: (f"text_model.{name.removeprefix('text_model.')}", tensor))
    tensors = safetensors.numpy.load_file(text)
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    safetensors.numpy.save_file(tensors, text)
    _assert_equal(load(folder)[1], load(checkpoint.folder)[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_files_in_half_precision_are_read_as_float32(exact, folder, dtype):
    for name in WEIGHTS:
        _rewrite(_weights(folder, name), lambda name, tensor: (name, tensor.astype(dtype)))
    _, params = load(folder)
    for name in ("unet", "vae"):
        _assert_equal(params[name], exact[name], lambda x: x.astype(dtype).astype(np.float32))
    assert params["prompt"].dtype == jnp.float32
    distance = np.abs(params["prompt"] - exact["prompt"]).max()
    assert 0 < distance < 1000 * ml_dtypes.finfo(dtype).eps


def _add_half(folder: Path, names) -> None:
    """An fp16 variant, of other weights than the plain one."""
    for name in names:

        def change(name, tensor):
            return name, (2 * tensor).astype(np.float16)

        _rewrite(_weights(folder, name), change, _weights(folder, name, "fp16"))


@pytest.mark.parametrize(
    ("dtype", "left", "read"),
    [
        (None, ("", "fp16"), ""),
        (jnp.float32, ("fp16",), "fp16"),
        (jnp.bfloat16, ("", "fp16"), "fp16"),
        (jnp.bfloat16, ("",), ""),
    ],
)
def test_the_variant_nearest_to_the_dtype_is_read(exact, folder, dtype, left, read):
    _add_half(folder, WEIGHTS)
    for name in WEIGHTS:
        for variant in {"", "fp16"} - set(left):
            _weights(folder, name, variant).unlink()
    _, params = load(folder, dtype)
    for name in ("unet", "vae"):
        leaf = flatten(exact[name])["conv_in/kernel"]
        if read == "fp16":
            leaf = (2 * leaf).astype(np.float16)
        np.testing.assert_array_equal(
            params[name]["conv_in"]["kernel"], leaf.astype(dtype or np.float32)
        )
    assert np.array_equal(params["prompt"], exact["prompt"]) == (read == "")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_files_give_the_same_tree(sd2, exact, folder, variant):
    for name in ("unet", "vae"):
        _weights(folder, name).unlink()
        model = getattr(sd2.models, name)
        model.save_pretrained(folder / name, max_shard_size="600KB", variant=variant)
        assert len(list((folder / name).glob("*.safetensors"))) > 1
    _assert_equal(load(folder)[1], exact)


def test_pickled_weights_are_refused(folder):
    _weights(folder, "vae").rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="sd2/vae holds no .*only diffusion_pytorch_model"):
        load(folder)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_finite_are_named(folder, name):
    path = _weights(folder, name)
    last = {"unet": "conv_out.", "vae": "encoder.conv_out.", "text_encoder": "fc1."}[name]
    bad = next(key for key in safetensors.numpy.load_file(path) if last in key)
    _rewrite(path, lambda key, x: (key, x * np.float32(np.inf if key == bad else 1)))
    with pytest.raises(ValueError, match=f"{name} (?s:.*)1 problems(?s:.*)not finite .*: {bad}"):
        load(folder)


def test_a_vae_of_another_depth_is_named(folder):
    _edit(folder / "vae" / "config.json", layers_per_block=1)
    with pytest.raises(
        ValueError, match=r"sd2/vae does not fit(?s:.*)unknown: encoder.*resnets\.1"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_missing_component_is_named(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(FileNotFoundError, match=f"sd2 holds no {name}, which its model_index.json"):
        load(folder)


def test_a_folder_of_another_layout_is_named(tiny_clip):
    with pytest.raises(FileNotFoundError, match="holds no model_index.json.*layout.*diffusers"):
        load(tiny_clip)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer_2": ["transformers", "CLIPTokenizer"],
            },
            "a StableDiffusionXLPipeline of .*text_encoder_2.*wanted Stable Diffusion 1.x or 2.x",
        ),
        (
            {
                "_class_name": "StableDiffusion3Pipeline",
                "unet": ...,
                "transformer": ["diffusers", "SD3Transformer2DModel"],
            },
            "a StableDiffusion3Pipeline of .*transformer.*wanted Stable Diffusion 1.x or 2.x",
        ),
        ({"vae": [None, None]}, "a StableDiffusionPipeline of .*, of unet, vae, text_encoder"),
    ],
)
def test_other_pipelines_are_refused(folder, changes, words):
    _edit(folder / "model_index.json", **changes)
    with pytest.raises(ValueError, match=f"model_index.json: {words}"):
        load(folder)


def test_any_pipeline_of_the_same_components_will_do(folder):
    expected, _ = load(folder)
    _edit(folder / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    config, _ = load(folder)
    assert config == expected


# ------------------------------------------------------------------------------------ configs

# As the hub has them, without the keys that nothing here or in diffusers reads.
_BLOCKS = {
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "in_channels": 3,
}
_TEXT = {
    "model_type": "clip_text_model",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
_HUB = {
    "SD1": {
        "unet": {
            **_BLOCKS,
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": False,
            "cross_attention_dim": 768,
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
        },
        "vae": _VAE,
        "text_encoder": {
            **_TEXT,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
        },
    },
    "SD2": {
        "unet": {
            **_BLOCKS,
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": [5, 10, 20, 20],
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 1024,
            "dual_cross_attention": False,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        "vae": _VAE | {"scaling_factor": 0.18215},
        "text_encoder": {
            **_TEXT,
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
        },
    },
}


@pytest.mark.parametrize("family", _HUB)
def test_the_hubs_configs_are_the_presets(folder, family):
    for name, content in _HUB[family].items():
        (folder / name / "config.json").write_text(json.dumps(content))
    assert configs.read_config(folder) == getattr(configs, family)


# Of diffusers' keys, those that change nothing where the others have the values supported.
_HARMLESS = {
    "UNet2DConditionModel": {
        "addition_embed_type_num_heads",
        "addition_time_embed_dim",
        "attention_head_dim",
        "class_embeddings_concat",
        "dropout",
        "projection_class_embeddings_input_dim",
        "reverse_transformer_layers_per_block",
        "sample_size",
        "upcast_attention",
    },
    "AutoencoderKL": {
        "down_block_types",
        "force_upcast",
        "out_channels",
        "sample_size",
        "up_block_types",
        "use_post_quant_conv",
    },
}


@pytest.mark.parametrize(
    ("kind", "ours", "supported"),
    [
        (diffusers.UNet2DConditionModel, configs.UNetConfig, configs._UNET_SUPPORTED),
        (diffusers.AutoencoderKL, configs.VAEConfig, configs._VAE_SUPPORTED),
    ],
)
def test_every_key_of_diffusers_is_read_or_checked(kind, ours, supported):
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    for name, default in defaults.items():
        if name in supported:
            assert default in supported[name], name
        elif name not in _HARMLESS[kind.__name__]:
            assert getattr(ours(), name) == default, name


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ("unet", {"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
        (
            "unet",
            {"class_embed_type": "projection"},
            "class_embed_type is 'projection', wanted None",
        ),
        ("unet", {"only_cross_attention": [True, False]}, "only_cross_attention is .True, False"),
        ("unet", {"num_attention_heads": 8}, "num_attention_heads is 8, wanted None"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "_class_name is 'UNet3DConditionModel'"),
        (
            "unet",
            {"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]},
            "up_block_types is",
        ),
        (
            "unet",
            {"down_block_types": ["DownBlock2D"]},
            "down_block_types is .'DownBlock2D'., wanted 3",
        ),
        ("unet", {"attention_head_dim": [2, 4]}, "attention_head_dim .2, 4. does not divide"),
        ("unet", {"attention_head_dim": 5}, "attention_head_dim .5, 5, 5. does not divide"),
        ("unet", {"norm_num_groups": None}, "norm_num_groups is None, wanted one int"),
        ("unet", {"layers_per_block": [1, 2, 2]}, "layers_per_block is .*wanted one int"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1, wanted None"),
        ("vae", {"norm_num_groups": 12}, "norm_num_groups .12, 12, 12, 12. does not divide"),
        (
            "vae",
            {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
            "down_block_types is .*, wanted 4 .*of DownEncoderBlock2D",
        ),
        ("text_encoder", {"model_type": "t5"}, "model_type is 't5', wanted 'clip_text_model'"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_other_architectures_are_refused(folder, name, changes, words):
    _edit(folder / name / "config.json", **changes)
    with pytest.raises(ValueError, match=f"sd2/{name}/config.json: {words}"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "takes 9 channels.*VAE gives 4.*inpainting"),
        ({"cross_attention_dim": 32}, "prompt of width 32.*text encoder 24"),
    ],
)
def test_components_that_do_not_fit_together_are_named(folder, changes, words):
    _edit(folder / "unet" / "config.json", **changes)
    with pytest.raises(ValueError, match=f"sd2: the UNet.*{words}"):
        load(folder)


# ------------------------------------------------------------------------------------ padding

_END, _MARK = "<|endoftext|>", "!"
_TOKEN = {"content": _MARK, "lstrip": False, "normalized": True, "rstrip": False}
_SETTINGS = {
    "nothing": ({}, None),
    "sd1": ({"pad_token": _END}, {"pad_token": _END}),
    # The two files of Stable Diffusion 2 contradict each other.
    "sd2": ({"pad_token": _END}, {"pad_token": _MARK}),
    "sd2 as token": ({"pad_token": _END}, {"pad_token": _TOKEN}),
    "new": ({"pad_token": _MARK}, None),
    "new as token": ({"pad_token": {"__type": "AddedToken"} | _TOKEN}, None),
    "new lists all": (
        {"pad_token": _MARK, "added_tokens_decoder": {"0": _TOKEN | {"special": True}}},
        {"pad_token": _END},
    ),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("settings", _SETTINGS)
def test_padding_is_the_tokenizers(tiny_clip, tmp_path, settings, whole):
    if whole:
        transformers.CLIPTokenizer.from_pretrained(tiny_clip).save_pretrained(tmp_path)
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(tiny_clip / name, tmp_path)
    names = ("tokenizer_config.json", "special_tokens_map.json")
    for name, content in zip(names, _SETTINGS[settings], strict=True):
        if content is not None:
            content = {"tokenizer_class": "CLIPTokenizer"} | content
            (tmp_path / name).write_text(json.dumps(content))
    oracle = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    expected = oracle("", padding="max_length", max_length=12).input_ids
    (found,) = empty_tokens(tmp_path, 12)
    np.testing.assert_array_equal(found, expected)
    assert found[-1] == (521 if settings in ("nothing", "sd1") else 0)


def test_a_padding_token_outside_the_vocabulary_is_named(folder):
    _edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="[PAD]")
    with pytest.raises(ValueError, match="sd2/tokenizer: the padding token '.PAD.' is not in"):
        load(folder)


def test_a_tokenizer_of_another_text_encoder_is_named(folder):
    _edit(folder / "text_encoder" / "config.json", vocab_size=500)
    with pytest.raises(ValueError, match="a token 521, but the text encoder only 500"):
        load(folder)


# ---------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for a repository: the folder to fill, and the files fetched from it so far."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    cache.mkdir()

    def download(name, allow_patterns):
        assert name == "owner/name"
        for path in remote.rglob("*"):
            file = path.relative_to(remote)
            if path.is_file() and any(fnmatch(str(file), pattern) for pattern in allow_patterns):
                (cache / file).parent.mkdir(exist_ok=True)
                shutil.copy(path, cache / file)
        return str(cache)

    def fetched() -> set[str]:
        return {str(path.relative_to(cache)) for path in cache.rglob("*.*") if path.is_file()}

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "get_repo_discussions", lambda *_, **__: [])
    return remote, fetched


def _fill(remote: Path, source: Path) -> None:
    """A repository as they are on the hub: other formats, other weights, whole checkpoints."""
    shutil.copytree(source, remote)
    for name, stem in WEIGHTS.items():
        for ending in ("bin", "fp16.bin", "non_ema.safetensors", "msgpack"):
            (remote / name / f"{stem}.{ending}").write_bytes(b"not to be fetched")
    (remote / "safety_checker").mkdir()
    for name in ("v2-1_512-ema-pruned.safetensors", "safety_checker/model.safetensors"):
        (remote / name).write_bytes(b"not to be fetched")
    _add_half(remote, WEIGHTS)


_CONFIGS = {
    "model_index.json",
    *(f"{name}/config.json" for name in WEIGHTS),
    *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
}


@pytest.mark.parametrize(("dtype", "ending"), [(None, ""), (jnp.bfloat16, ".fp16")])
def test_one_variant_is_fetched(sd2, hub, dtype, ending):
    remote, fetched = hub
    _fill(remote, sd2.folder)
    load("owner/name", dtype)
    expected = {f"{name}/{stem}{ending}.safetensors" for name, stem in WEIGHTS.items()}
    assert fetched() == _CONFIGS | expected


def test_where_a_component_has_one_variant_alone_that_is_fetched(sd2, hub):
    remote, fetched = hub
    _fill(remote, sd2.folder)
    _weights(remote, "unet").unlink()
    load("owner/name")
    assert fetched() == _CONFIGS | {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


def test_shards_are_fetched(sd2, exact, hub):
    remote, fetched = hub
    _fill(remote, sd2.folder)
    _weights(remote, "unet").unlink()
    sd2.models.unet.save_pretrained(remote / "unet", max_shard_size="2MB")
    _assert_equal(load("owner/name")[1], exact)
    assert not any("fp16" in file for file in fetched())


def test_no_weights_are_fetched_of_another_architecture(sd2, hub):
    remote, fetched = hub
    _fill(remote, sd2.folder)
    _edit(remote / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    with pytest.raises(ValueError, match="text_encoder_2"):
        load("owner/name")
    assert fetched() == _CONFIGS


_ANSWER = types.SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize("source", [*HUB_IDS.values(), "stabilityai/stable-diffusion-2-1-base"])
@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (hub_errors.RepositoryNotFoundError("x", response=_ANSWER), FileNotFoundError),
        (hub_errors.GatedRepoError("x", response=_ANSWER), PermissionError),
        (hub_errors.LocalEntryNotFoundError("x"), ConnectionError),
    ],
)
def test_where_the_hub_does_not_answer_copies_are_named(monkeypatch, source, raised, wanted):
    def download(*args, **kwargs):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(wanted, match="--attention=<folder>") as caught:
        load(source)
    for copy in (*HUB_IDS.values(), "Manojb/stable-diffusion-2-1-base", "CompVis/"):
        assert str(caught.value).count(copy) == 1


# -------------------------------------------------------------------------------------- driver


def test_a_random_checkpoint_is_written_and_read(tiny_clip, tmp_path):
    command = [sys.executable, "-m", "tests.oracles.random_checkpoint", "--model=tiny"]
    command += [f"--tokenizer={tiny_clip}", f"--output_dir={tmp_path}/sd", "--half"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _weights(tmp_path / "sd", "unet", "fp16").is_file()
    config, params = load(tmp_path / "sd")
    assert config.unet.num_heads == (2, 4, 4)
    assert all(np.isfinite(leaf).all() for leaf in flatten(params).values())
