"""DINO's towers against transformers, the maps' properties, and the errors."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from dsolo_jax import checkpoints
from dsolo_jax.attention import dino
from dsolo_jax.attention.dino import config as configs
from dsolo_jax.attention.dino import tower as towers
from tests.oracles.last_layers import affinity

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_DINOV2 = {"image_size": 70, "patch_size": 14, "mlp_ratio": 2, **_SIZES}

# A checkpoint of each kind, and of each choice that a config.json may make.
KINDS = {
    "vit": {"image_size": 64, "patch_size": 16, "intermediate_size": 48, **_SIZES},
    "vit, patch 8": {"image_size": 48, "patch_size": 8, "intermediate_size": 48, **_SIZES},
    "dinov2": {**_DINOV2, "use_mask_token": False},
    "dinov2, swiglu": {**_DINOV2, "use_swiglu_ffn": True},
    "dinov2_with_registers": {**_DINOV2, "num_register_tokens": 3},
}

# Each resamples its positions in its own way, or reads them from another grid.
PLAIN = ("vit", "dinov2", "dinov2_with_registers")

# More patches than the checkpoint's own grid on both sides, fewer, both at once, and its own.
GRIDS = [(7, 9), (3, 2), (9, 3), (5, 5)]


def _error(found, expected) -> float:
    """Relative Frobenius error."""
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _oracle(kind: str):
    """A tiny model of transformers whose weights are large enough for every part to matter."""
    config = transformers.AutoConfig.for_model(kind.split(",")[0], **KINDS[kind])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> (transformers' model, its folder)."""
    made = {kind: (_oracle(kind), tmp_path_factory.mktemp("dino")) for kind in KINDS}
    for model, folder in made.values():
        model.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    """kind -> (transformers' model, our config, our params)."""
    return {kind: (model, *dino.load(folder)) for kind, (model, folder) in folders.items()}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the tiny DINOv2, to be damaged."""
    return shutil.copytree(folders["dinov2"][1], tmp_path / "dino")


def _pixels(config: dino.DinoConfig, h: int, w: int, batch: int = 2) -> np.ndarray:
    shape = (batch, h * config.patch_size, w * config.patch_size, 3)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _torch(model, pixels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Patch features [B, N, D] and each block's patch-to-patch map, mean over heads."""
    options = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    skip = 1 + getattr(model.config, "num_register_tokens", 0)
    with torch.no_grad():
        given = torch.tensor(pixels).permute(0, 3, 1, 2)
        out = model(given, output_attentions=True, **options)
    maps = [attention.mean(1)[:, skip:, skip:].numpy() for attention in out.attentions]
    return out.last_hidden_state[:, skip:].numpy(), maps


def _rows(maps: np.ndarray) -> np.ndarray:
    return maps / maps.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("kind", KINDS)
def test_maps_equal_transformers(loaded, kind):
    model, config, params = loaded[kind]
    pixels = _pixels(config, 4, 6)
    _, maps = _torch(model, pixels)
    for name, expected in zip(("0", "-1"), maps, strict=True):
        attention = dino.self_attention(params, config, pixels, layers=(name,))
        assert attention.dtype == jnp.float32
        np.testing.assert_allclose(attention, _rows(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("grid", GRIDS)
def test_positions_are_resampled_as_transformers_does(loaded, kind, grid):
    model, config, params = loaded[kind]
    pixels = _pixels(config, *grid)
    expected = _rows(_torch(model, pixels)[1][-1])
    found = dino.self_attention(params, config, pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers"])
def test_layers_are_averaged_by_their_weights(loaded, kind):
    model, config, params = loaded[kind]
    pixels = _pixels(config, 4, 6)
    features, maps = _torch(model, pixels)
    near = np.stack([affinity(picture) for picture in features])
    layers, weights = ("0", "affinity", "-1"), (0.5, 0.2, 2.0)
    found = dino.self_attention(params, config, pixels, layers=layers, weights=weights)
    expected = _rows(0.5 * maps[0] + 0.2 * near + 2.0 * maps[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_last_block_is_the_default_and_weights_are_alike(loaded):
    _, config, params = loaded["dinov2"]
    pixels = _pixels(config, 4, 6)

    def ask(**options):
        return dino.self_attention(params, config, pixels, **options)

    np.testing.assert_array_equal(ask(), ask(layers=("1",)))
    both = ask(layers=("0", "-1"))
    assert _error(both, ask()) > 1e-2
    np.testing.assert_allclose(both, ask(layers=("0", "1"), weights=(7, 7)), atol=1e-6)
    # A layer named twice counts twice.
    twice = ask(layers=("0", "-1", "1"))
    assert _error(twice, both) > 1e-2
    np.testing.assert_allclose(twice, ask(layers=("0", "1"), weights=(1, 2)), atol=1e-6)


# ---------------------------------------------------------------------------------- affinity


@pytest.mark.parametrize("kind", KINDS)
def test_affinity_is_proxyclips_on_the_last_features(loaded, kind):
    model, config, params = loaded[kind]
    pixels = _pixels(config, 4, 6)
    found = dino.self_attention(params, config, pixels, layers=("affinity",))
    for picture, features in zip(found, _torch(model, pixels)[0], strict=True):
        expected = affinity(features)
        assert (expected == 0).any() and (expected > 0).sum() > len(expected)
        np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-5)


def test_affinity_of_patches_nearly_alike_keeps_the_diagonal():
    # Their mean cosine exceeds 1 / 1.2, so no pair is near enough.
    features = 5 + 0.01 * np.random.default_rng(0).standard_normal((1, 6, 8))
    np.testing.assert_array_equal(towers.affinity(jnp.asarray(features)), np.eye(6)[None])


def test_affinity_of_two_groups_is_uniform_inside_each():
    features = np.repeat(np.eye(2), [3, 5], axis=0)[None]
    expected = np.zeros((8, 8))
    expected[:3, :3], expected[3:, 3:] = 1 / 3, 1 / 5
    np.testing.assert_allclose(towers.affinity(jnp.asarray(features))[0], expected, atol=1e-6)


# -------------------------------------------------------------------------------- neighbours


def _values(model, pixels: np.ndarray) -> np.ndarray:
    """The last block's values of patches [B, N, D], as transformers computes them."""
    found = []
    value = [module for name, module in model.named_modules() if name.endswith("v_proj")][-1]
    hook = value.register_forward_hook(lambda module, given, out: found.append(out.numpy()))
    _torch(model, pixels)
    hook.remove()
    [values] = found
    return values[:, 1 + getattr(model.config, "num_register_tokens", 0) :]


def _lposs(values: np.ndarray, h: int, w: int, patch: int) -> np.ndarray:
    """LPOSS's W of one picture, neighbour by neighbour, in float64."""
    unit = values.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity, n = unit @ unit.T, h * w
    found = np.zeros((n, n))
    for i in range(n):
        for j in np.argsort(-similarity[i])[:400]:
            apart = patch * np.hypot(i // w - j // w, i % w - j % w)
            found[i, j] = max(similarity[i, j], 0) ** 3 * np.exp(-0.01 * apart)
    found = found + found.T
    np.fill_diagonal(found, 0)
    return found


@pytest.mark.parametrize(
    ("kind", "grid"),
    [*((kind, (4, 6)) for kind in KINDS), ("vit", (21, 20)), ("dinov2", (21, 20))],
)
def test_neighbours_are_lposs_graph_of_the_last_values(loaded, kind, grid):
    """The larger grid has more than 400 patches."""
    model, config, params = loaded[kind]
    pixels = _pixels(config, *grid, batch=1)
    [found] = np.asarray(dino.self_attention(params, config, pixels, layers=("neighbours",)))
    expected = _lposs(_values(model, pixels)[0], *grid, config.patch_size)
    if len(expected) > 400:
        assert (expected == 0).sum() > len(expected)
    off = ~np.eye(len(expected), dtype=bool)
    scale = expected.sum(axis=1).max()
    np.testing.assert_allclose(found[off] * scale, expected[off], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-7)


def test_neighbours_of_patches_that_have_none_are_themselves():
    place = np.zeros((3, 2), np.float32)
    found = towers.neighbours(jnp.eye(3)[None], place)
    np.testing.assert_array_equal(found, np.eye(3)[None])


# -------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers"])
def test_bfloat16_stays_close(loaded, folders, kind):
    _, config, params = loaded[kind]
    half = dino.load(folders[kind][1], jnp.bfloat16)[1]
    pixels = _pixels(config, 4, 6)
    for layers in (("-1",), ("affinity",), ("neighbours",)):
        exact = dino.self_attention(params, config, pixels, layers=layers)
        found = dino.self_attention(half, config, pixels, layers=layers)
        assert found.dtype == jnp.float32
        deviation = np.linalg.norm(exact - 1 / 24)
        assert np.linalg.norm(found - exact) <= 5e-2 * deviation


def _largest(jaxpr) -> int:
    """Numbers in the largest array that a program makes, loops and inner functions included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            sizes += [_largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


@pytest.mark.parametrize("layers", [("0", "-1"), ("affinity",), ("neighbours",)])
def test_the_logits_of_all_heads_never_exist_at_once(layers):
    # By shapes: XLA's own account leaves out what its libraries for CPU allocate.
    heads, n = 16, 48 * 48
    config = dino.DinoConfig(
        "vit", 64, 64, num_hidden_layers=2, num_attention_heads=heads, patch_size=16
    )
    shapes = towers.parameter_shapes(config)
    pixels = jax.ShapeDtypeStruct((1, 48 * 16, 48 * 16, 3), jnp.float32)
    traced = jax.make_jaxpr(
        lambda params, pixels: dino.self_attention(params, config, pixels, layers=layers)
    )(shapes, pixels)
    assert n * n <= _largest(traced.jaxpr) < heads * n * n / 2


# ----------------------------------------------------------------------------------- reading


def test_bfloat16_keeps_norms_in_float32(folders):
    _, params = dino.load(folders["dinov2"][1], jnp.bfloat16)
    for path, leaf in checkpoints.flatten(params).items():
        assert leaf.dtype == (jnp.float32 if "norm" in path else jnp.bfloat16)


def test_sharded_half_precision_files_are_read(loaded, folders, tmp_path):
    model, path = _oracle("dinov2"), tmp_path / "sharded"
    model.half().save_pretrained(path, max_shard_size="30KB")
    assert not (path / "model.safetensors").exists()
    exact = checkpoints.flatten(loaded["dinov2"][2])
    for name, leaf in checkpoints.flatten(dino.load(path)[1]).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.asarray(exact[name]).astype(np.float16))


# The files on the hub, of which those of transformers 5 must stay a copy: what DINO and DINOv2 name
# their weights, and what the config files leave out.
_HUB_NAMES = {
    "vit": (
        "embeddings.cls_token",
        "encoder.layer.0.attention.attention.query.weight",
        "encoder.layer.0.attention.output.dense.bias",
        "encoder.layer.1.intermediate.dense.weight",
        "encoder.layer.1.layernorm_before.weight",
        "pooler.dense.weight",
    ),
    "dinov2, swiglu": (
        "embeddings.mask_token",
        "encoder.layer.0.attention.attention.query.weight",
        "encoder.layer.1.layer_scale1.lambda1",
        "encoder.layer.1.mlp.weights_in.weight",
    ),
    "dinov2_with_registers": (
        "embeddings.register_tokens",
        "embeddings.mask_token",
        "encoder.layer.1.mlp.fc1.weight",
    ),
}


@pytest.mark.parametrize("kind", _HUB_NAMES)
def test_the_oracles_files_are_laid_out_as_on_the_hub(folders, kind):
    assert set(_HUB_NAMES[kind]) <= checkpoints.read_tensors(folders[kind][1]).keys()


_HUB_CONFIGS = {
    "facebook/dino-vitb16": (
        {
            "model_type": "vit",
            "architectures": ["ViTModel"],
            "hidden_act": "gelu",
            "hidden_size": 768,
            "image_size": 224,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-12,
            "num_attention_heads": 12,
            "num_channels": 3,
            "num_hidden_layers": 12,
            "patch_size": 16,
            "qkv_bias": True,
        },
        dino.DINO_B16,
    ),
    "facebook/dinov2-base": (
        {"model_type": "dinov2", "image_size": 518, "mlp_ratio": 4, "layerscale_value": 1.0},
        dino.DINOV2_B14,
    ),
    "facebook/dinov2-giant": (
        {
            "model_type": "dinov2",
            "hidden_size": 1536,
            "image_size": 518,
            "num_attention_heads": 24,
            "num_hidden_layers": 40,
            "use_swiglu_ffn": True,
        },
        dino.DinoConfig("dinov2", 1536, 4096, 40, 24, 518, hidden_act="swiglu"),
    ),
    "facebook/dinov2-with-registers-base": (
        {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 14},
        dino.DinoConfig("dinov2_with_registers", image_size=518, num_register_tokens=4),
    ),
    "bare": (
        {"model_type": "dinov2_with_registers"},
        dino.DinoConfig("dinov2_with_registers", patch_size=16, num_register_tokens=4),
    ),
}


@pytest.mark.parametrize("name", _HUB_CONFIGS)
def test_configs_are_read_as_transformers_reads_them(tmp_path, name):
    content, expected = _HUB_CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = configs.read_config(tmp_path)
    assert config == expected
    oracle = transformers.AutoConfig.from_pretrained(tmp_path)
    for key in ("hidden_size", "image_size", "patch_size", "layer_norm_eps"):
        assert getattr(config, key) == getattr(oracle, key), key


# ------------------------------------------------------------------------------------ errors


def test_layer_names_are_all_accepted_and_others_are_not(loaded):
    _, config, params = loaded["dinov2"]
    pixels = _pixels(config, 2, 3)
    names = dino.layer_names(config)
    assert tuple(names) == ("0", "1", "-1", "-2", "affinity", "neighbours")
    assert dino.self_attention(params, config, pixels, layers=tuple(names)).shape == (2, 6, 6)
    for name in ("2", "-3", "last", -1):
        with pytest.raises(
            ValueError, match=f"unknown layer '?{name}'?.*0, 1, -1, -2, affinity, neighbours"
        ):
            dino.self_attention(params, config, pixels, layers=("0", name))


@pytest.mark.parametrize(
    ("layers", "weights"),
    [((), None), (("0",), ()), (("0", "1"), (1,)), (("0",), (0,)), (("0", "1"), (2, -1))],
)
def test_weights_that_do_not_fit_are_named(loaded, layers, weights):
    _, config, params = loaded["dinov2"]
    with pytest.raises(ValueError, match="at least one layer.*at least 0, not all 0"):
        dino.self_attention(params, config, _pixels(config, 2, 2), layers=layers, weights=weights)


def test_pictures_of_no_whole_patches_are_named(loaded):
    _, config, params = loaded["dinov2"]
    with pytest.raises(ValueError, match="42 x 50 pixels.*patch size 14"):
        dino.self_attention(params, config, np.zeros((1, 42, 50, 3), np.float32))
    for shape in ((42, 42, 3), (1, 42, 42, 4)):
        with pytest.raises(ValueError, match=rf"pixels \({shape[0]}, 42.*\[B, H, W, 3\]"):
            dino.self_attention(params, config, np.zeros(shape, np.float32))


def _edit(folder, **changes) -> None:
    """Changes keys of config.json; None removes."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: x for key, x in content.items() if x is not None}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "clip"}, "model_type is 'clip', wanted 'vit'.*'dinov2_with_registers'"),
        ({"model_type": "dinov3_vit"}, "model_type is 'dinov3_vit'"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["vit"]}, "model_type is .'vit'."),
        ({"qkv_bias": False}, "qkv_bias is False, wanted True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', wanted 'gelu'"),
        ({"num_channels": 4}, "num_channels is 4, wanted 3"),
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
        ({"image_size": [70, 70]}, "image_size is .*70.*wanted one int"),
        ({"mlp_ratio": "2"}, "mlp_ratio is '2'"),
    ],
)
def test_unusable_configs_are_named(folder, changes, words):
    _edit(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json: {words}"):
        dino.load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, r"18 problems(?s:.*)encoder.layer.2.attention.attention.key"),
        ({"model_type": "dinov2_with_registers"}, "missing: embeddings.register_tokens"),
        ({"use_swiglu_ffn": True}, "missing: encoder.layer.0.mlp.weights_in.weight"),
        ({"model_type": "vit"}, "unknown: encoder.layer.0.layer_scale1.lambda1"),
        ({"patch_size": 7}, "wrong shape: embeddings.patch_embeddings.projection.weight"),
    ],
)
def test_misfits_between_config_and_weights_are_listed(folder, changes, words):
    _edit(folder, **changes)
    with pytest.raises(ValueError, match=words):
        dino.load(folder)


def test_a_classifiers_weights_are_listed(folder):
    tensors = checkpoints.read_tensors(folder)
    tensors["classifier.weight"] = np.zeros((2, 32), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 problems(?s:.*)unknown: classifier.weight \(2, 32\)"):
        dino.load(folder)


def test_weights_that_are_not_finite_are_named(folder):
    tensors = checkpoints.read_tensors(folder)
    tensors["layernorm.bias"][:2] = -np.inf
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"not finite in 2 of 32 places: layernorm.bias \(32,\)"):
        dino.load(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin.*safe_serialization"):
        dino.load(folder)
