"""Checkpoint folders and conversion tables."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dsolo_jax import checkpoints
from dsolo_jax.checkpoints import Row, convolution, linear, pointwise
from dsolo_jax.utils import configs

ROWS = (
    Row("stem.weight", "stem/kernel", convolution),
    Row("mix.weight", "mix/kernel", pointwise),
    Row("layers.{i}.mlp.{j}.weight", "blocks_{i}/mlp_{j}/kernel", linear),
    Row("scale", "scale"),
)


def _tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"stem.weight": (5, 3, 2, 4), "mix.weight": (5, 3, 1, 1), "scale": ()}
    shapes |= {f"layers.{i}.mlp.{j}.weight": (6, 7 + j) for i in (0, 1, 11) for j in (0, 1)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _shapes() -> dict:
    tree = {f"blocks_{i}": {f"mlp_{j}": {"kernel": (7 + j, 6)} for j in (0, 1)} for i in (0, 1, 11)}
    tree |= {"stem": {"kernel": (2, 4, 3, 5)}, "mix": {"kernel": (3, 5)}, "scale": ()}
    flat = checkpoints.flatten(tree)
    return checkpoints.unflatten({path: np.empty(shape) for path, shape in flat.items()})


def test_convert_places_each_array():
    tensors = _tensors()
    tree = checkpoints.convert(tensors, ROWS, _shapes())
    np.testing.assert_array_equal(
        tree["stem"]["kernel"], np.einsum("oihw->hwio", tensors["stem.weight"])
    )
    np.testing.assert_array_equal(
        tree["mix"]["kernel"], np.einsum("oixy->io", tensors["mix.weight"])
    )
    np.testing.assert_array_equal(
        tree["blocks_11"]["mlp_1"]["kernel"], tensors["layers.11.mlp.1.weight"].T
    )


def test_export_inverts_convert():
    tensors = _tensors()
    exported = checkpoints.export(checkpoints.convert(tensors, ROWS, _shapes()), ROWS)
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(exported[name], tensor)


def test_every_misfit_is_listed_at_once():
    tensors = _tensors()
    del tensors["layers.1.mlp.0.weight"], tensors["scale"]
    tensors["layers.2.mlp.0.weight"] = np.zeros((6, 7), np.float32)  # one layer too many
    tensors["head.bias"] = np.zeros(3, np.float32)
    tensors["layers.0.mlp.0.weight"] = np.zeros((6, 9), np.float32)
    tensors["stem.weight"] = np.zeros(4, np.float32)  # another number of axes
    tensors["mix.weight"] = np.zeros((5, 3, 3, 3), np.float32)  # not pointwise
    with pytest.raises(ValueError, match="7 problems.*another architecture") as error:
        checkpoints.convert(tensors, ROWS, _shapes(), source="the/folder")
    message = str(error.value)
    for line in (
        "the/folder",
        "unknown: layers.2.mlp.0.weight (6, 7)",
        "unknown: head.bias (3,)",
        "missing: layers.1.mlp.0.weight, for blocks_1/mlp_0/kernel (7, 6)",
        "missing: scale, for scale ()",
        "wrong shape: layers.0.mlp.0.weight (6, 9) gives blocks_0/mlp_0/kernel (9, 6), "
        "wanted (7, 6)",
        "wrong shape: stem.weight (4,) gives stem/kernel (4,), wanted (2, 4, 3, 5)",
        "wrong shape: mix.weight (5, 3, 3, 3) gives mix/kernel (5, 3, 3, 3), wanted (3, 5)",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.where(x == x.max(), np.nan, x), "not finite in 1 of 42 places"),
        (lambda x: x.astype(np.float16) * np.float16(np.inf), "not finite in 42 of 42 places"),
        (lambda x: (x * np.inf).astype(ml_dtypes.bfloat16), "not finite in 42 of 42 places"),
        (lambda x: x.astype(np.float64) + 1e300, "not finite in 42 of 42 places"),
        (lambda x: x.astype(np.int8), "int8 instead of float32, float16 or bfloat16"),
        (lambda x: x > 0, "bool instead of float32"),
        (lambda x: x.astype(np.complex64), "complex64 instead of float32"),
        (lambda x: x.astype(ml_dtypes.float8_e4m3fn), "float8_e4m3fn instead of float32"),
    ],
)
def test_numbers_that_are_no_weights_are_named(change, words):
    tensors, name = _tensors(), "layers.0.mlp.0.weight"
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=rf"1 problems(?s:.*){words}.*: {name} \(6, 7\)"):
        checkpoints.convert(tensors, ROWS, _shapes(), source="the/folder")


def test_ignored_names_stay_in_the_file(tmp_path):
    tensors = _tensors() | {"layers.3.position_ids": np.arange(3)}
    with pytest.raises(ValueError, match="unknown: layers.3.position_ids"):
        checkpoints.convert(tensors, ROWS, _shapes())
    checkpoints.write_tensors(tmp_path / "model.safetensors", tensors)
    read = checkpoints.read_tensors(tmp_path, ignore=("position_ids", "*.position_ids"))
    assert read.keys() == _tensors().keys()


def test_norms_stay_float32():
    tree = {
        "block": {"norm1": {"scale": np.ones(2, np.float16)}, "out": {"bias": np.ones(2)}},
        "conv_norm_out": {"bias": np.ones(3)},
    }
    for dtype in (jnp.bfloat16, jnp.float32, None):
        cast = checkpoints.flatten(checkpoints.cast(tree, dtype))
        assert cast.keys() == checkpoints.flatten(tree).keys()
        assert cast["block/out/bias"].dtype == (dtype or jnp.float32)
        assert cast["block/norm1/scale"].dtype == cast["conv_norm_out/bias"].dtype == jnp.float32


def test_export_refuses_a_path_without_a_row():
    with pytest.raises(ValueError, match="no row for: stem/bias"):
        checkpoints.export({"stem": {"bias": np.zeros(2)}}, ROWS)


def test_dots_in_a_source_are_literal():
    assert Row("a.b", "x").convert("aXb") is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_written_tensors_read_back(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in _tensors().items()}
    tensors["transposed"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    checkpoints.write_tensors(tmp_path / "new" / "model.safetensors", tensors)
    read = checkpoints.read_tensors(tmp_path / "new")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def _write_shards(folder, variant=""):
    tensors = _tensors()
    names = {
        name: f"net{variant}-0000{k % 2 + 1}-of-00002.safetensors" for k, name in enumerate(tensors)
    }
    for shard in set(names.values()):
        part = {name: value for name, value in tensors.items() if names[name] == shard}
        safetensors.numpy.save_file(part, folder / shard)
    index = folder / f"net.safetensors.index{variant}.json"
    index.write_text(json.dumps({"weight_map": names}))
    return tensors


def test_shards_are_joined(tmp_path):
    tensors = _write_shards(tmp_path)
    read = checkpoints.read_tensors(tmp_path, "net")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


def test_the_first_variant_that_is_there_is_read(tmp_path):
    _write_shards(tmp_path, ".fp16")
    safetensors.numpy.save_file({"plain": np.zeros(2)}, tmp_path / "net.safetensors")
    for variants, names in (
        (("",), {"plain"}),
        (("", "fp16"), {"plain"}),
        (("fp16", ""), _tensors().keys()),
        (("bf16", "fp16"), _tensors().keys()),
        (("bf16", ""), {"plain"}),
    ):
        assert checkpoints.read_tensors(tmp_path, "net", variants).keys() == names
    with pytest.raises(FileNotFoundError, match="no net.bf16.safetensors or net.q4.safetensors;"):
        checkpoints.read_tensors(tmp_path, "net", ("bf16", "q4"))
    for variant, there in (("", True), ("fp16", True), ("bf16", False)):
        assert checkpoints.has_tensors(tmp_path, "net", variant) is there


def test_the_names_of_a_variants_files(tmp_path):
    _write_shards(tmp_path, ".fp16")
    _write_shards(tmp_path)
    (tmp_path / "net.fp16.safetensors").touch()
    (tmp_path / "net.safetensors").touch()
    (tmp_path / "net.non_ema.safetensors").touch()
    plain, half = (
        {
            path.name
            for pattern in checkpoints.weight_files("net", v)
            for path in tmp_path.glob(pattern)
        }
        for v in ("", "fp16")
    )
    assert not plain & half and len(plain) == len(half) == 4
    assert {path.name for path in tmp_path.iterdir()} - plain - half == {"net.non_ema.safetensors"}


def test_a_missing_shard_is_named(tmp_path):
    _write_shards(tmp_path)
    (tmp_path / "net-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks: net-00002-of-00002.safetensors"):
        checkpoints.read_tensors(tmp_path, "net")


@pytest.mark.parametrize("content", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 5}}])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="index.json names no file of each tensor"):
        checkpoints.read_tensors(tmp_path)


def test_eight_bits_are_named(tmp_path):
    header = {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    said = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(said).to_bytes(8, "little") + said + bytes(4))
    with pytest.raises(ValueError, match="model.safetensors .*in 8 bits.*float32, float16"):
        checkpoints.read_tensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, -3])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(_tensors(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors .*truncated.*fetch it again"):
        checkpoints.read_tensors(tmp_path)


def test_other_formats_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="only pytorch_model.bin.*safe_serialization=True"):
        checkpoints.read_tensors(tmp_path)


def test_a_damaged_json_is_named(tmp_path):
    for damaged in ('{"model_type": ', "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match="config.json is no JSON"):
            configs.read_json(tmp_path / "config.json")


@dataclasses.dataclass(frozen=True)
class _Config:
    size: int = 3
    ratio: float = 0.5
    deep: bool = False
    widths: tuple[int, ...] = (1, 2)
    kinds: tuple[str, ...] = ("a",)
    extra: int = 0


def test_a_section_takes_the_keys_it_knows():
    content = {"size": 4, "ratio": 2, "deep": True, "widths": [5], "other": None}
    assert configs.section(_Config, content, "x") == _Config(4, 2, True, (5,))
    assert configs.section(_Config, {}, "x") == _Config()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"size": True}, "size is True, wanted one int"),
        ({"size": 1.5}, "size is 1.5, wanted one int"),
        ({"size": [1]}, r"size is \(1,\), wanted one int"),
        ({"ratio": "1"}, "ratio is '1', wanted one float"),
        ({"deep": 1}, "deep is 1, wanted one bool"),
        ({"widths": 5}, "widths is 5, wanted a list of int"),
        ({"widths": [5, None]}, r"widths is \(5, None\), wanted a list of int"),
        ({"kinds": "a"}, "kinds is 'a', wanted a list of str"),
        ({"size": 0}, "size is 0, wanted one int above 0"),
        ({"ratio": float("inf")}, "ratio is inf, wanted one float above 0"),
        ({"ratio": float("nan")}, "ratio is nan, wanted one float above 0"),
        ({"widths": [3, -1]}, r"widths is \(3, -1\), wanted a list of int above 0"),
        ({"extra": -1}, "extra is -1, wanted one int at least 0"),
        ({"size": 10**7}, "size is 10000000, wanted one int above 0, at most 1000000"),
        ({"size": [[1]]}, "size is ..1.,., wanted one int"),
        ({"size": {"a": 1}}, "size is .'a': 1., wanted one int"),
        ({"size": None}, "size is None, wanted one int"),
    ],
)
def test_a_section_names_a_value_of_another_type(content, words):
    with pytest.raises(ValueError, match=f"the/file: {words}"):
        configs.section(_Config, content, "the/file")


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", '{"a":' * 50_000, "[" * 100_000])
def test_what_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json (is no JSON|holds a JSON)"):
        configs.read_json(tmp_path / "config.json")


def test_dtypes_of_weights():
    for given in ("bf16", "bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
        assert checkpoints.weights_dtype(given) == jnp.bfloat16
    assert checkpoints.weights_dtype(None) == checkpoints.weights_dtype(np.float32) == np.float32
    for given in ("int8", np.int8, "float8_e4m3fn", float, "half-ish", "float64"):
        with pytest.raises(ValueError, match="dtype is .*float32, float16 or bfloat16"):
            checkpoints.weights_dtype(given)


def test_required_values():
    supported = {"act": ("silu", "swish"), "scale": (1,), "only": (False,)}
    configs.require({"act": "swish", "scale": 1.0, "more": 2}, supported, "x")
    with pytest.raises(ValueError, match="the/file: act is 'gelu', wanted 'silu' or 'swish'; only"):
        configs.require({"act": "gelu", "only": [True]}, supported, "the/file")
