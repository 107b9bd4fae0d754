"""CLIP's towers against transformers, and the properties the pipeline leans on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dsolo_jax import checkpoints, clip
from dsolo_jax.clip import towers
from tests.oracles.last_layers import last_features

ACTS = ("quick_gelu", "gelu")
SIZES = [(64, 64), (224, 224), (336, 448), (448, 336)]


def _error(found, expected) -> float:
    """Relative Frobenius error."""
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folders(torch_clip, tmp_path_factory):
    """hidden_act -> (transformers' model, its folder)."""
    made = {act: (torch_clip(hidden_act=act), tmp_path_factory.mktemp(act)) for act in ACTS}
    for model, folder in made.values():
        model.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    """hidden_act -> (transformers' model, our config, our params)."""
    return {act: (model, *clip.load(folder)) for act, (model, folder) in folders.items()}


@pytest.fixture(scope="module")
def half(folders):
    """The params of quick_gelu in bfloat16."""
    return clip.load(folders["quick_gelu"][1], jnp.bfloat16)[1]


def _torch_image(model, pixels):
    """Patches [B, N, D] and pooled [B, D] as transformers gives them."""
    with torch.no_grad():
        out = model.vision_model(
            torch.tensor(pixels).permute(0, 3, 1, 2), interpolate_pos_encoding=True
        )
        normed = model.vision_model.post_layernorm(out.last_hidden_state[:, 1:])
        pooled = model.visual_projection(out.pooler_output)
        return model.visual_projection(normed).numpy(), pooled.numpy()


@pytest.mark.parametrize(
    ("act", "size"), [*(("quick_gelu", size) for size in SIZES), ("gelu", SIZES[-1])]
)
def test_image_tower_equals_transformers(loaded, act, size):
    model, config, params = loaded[act]
    pixels = _pixels(2, *size)
    patches, pooled = _torch_image(model, pixels)
    encoding = clip.encode_image(params, config, pixels)
    assert encoding.patches.shape == (2, size[0] // 16, size[1] // 16, 24)
    assert _error(encoding.patches.reshape(patches.shape), patches) <= 1e-5
    assert _error(encoding.pooled, pooled) <= 1e-5


@pytest.mark.parametrize(
    ("act", "legacy_eos", "length"),
    [("gelu", False, 5), ("gelu", True, 16), ("quick_gelu", False, 77), ("quick_gelu", True, 77)],
)
def test_text_tower_equals_transformers(torch_clip, tmp_path, act, legacy_eos, length):
    model = torch_clip(vocab_size=60, hidden_act=act, legacy_eos=legacy_eos)
    model.save_pretrained(tmp_path)
    config, params = clip.load(tmp_path)
    random = np.random.default_rng(2)
    token_ids = random.integers(3, 58, (4, length))
    token_ids[:, 0] = 58
    token_ids[np.arange(4), random.integers(2, length, 4)] = 59
    with torch.no_grad():
        expected = model.get_text_features(torch.tensor(token_ids)).pooler_output
    assert _error(clip.encode_text(params, config, token_ids), expected) <= 1e-5


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("length", [5, 77])
def test_token_states_equal_transformers(loaded, folders, act, length):
    _, config, params = loaded[act]
    token_ids = np.random.default_rng(6).integers(0, 522, (3, length))
    oracle = transformers.CLIPTextModel.from_pretrained(folders[act][1]).eval()
    with torch.no_grad():
        expected = oracle(torch.tensor(token_ids)).last_hidden_state
    found = clip.encode_tokens(params["text"], config.text, token_ids)
    assert found.shape == (3, length, 16)
    assert _error(found, expected) <= 1e-5


def test_token_states_need_no_projection(loaded):
    _, config, params = loaded["gelu"]
    tower = {name: leaf for name, leaf in params["text"].items() if name != "projection"}
    shapes = checkpoints.flatten(towers.text_parameter_shapes(config.text))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        path: leaf.shape for path, leaf in checkpoints.flatten(tower).items()
    }
    token_ids = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(
        clip.encode_tokens(tower, config.text, token_ids),
        clip.encode_tokens(params["text"], config.text, token_ids),
    )


def test_what_follows_the_end_of_a_text_never_matters(loaded):
    _, config, params = loaded["gelu"]
    token_ids = np.full((2, 24), 521)
    token_ids[:, :7] = np.random.default_rng(3).integers(0, 520, (2, 7))
    other = token_ids.copy()
    other[:, 8:] = np.random.default_rng(4).integers(0, 520, (2, 16))
    expected = clip.encode_text(params, config, token_ids[:, :8])
    for ids in (token_ids, other):
        np.testing.assert_allclose(
            clip.encode_text(params, config, ids), expected, rtol=1e-5, atol=1e-5
        )


def _graph(start: str, side: int, batch: int = 2) -> np.ndarray | None:
    """A random one for the starts that need one."""
    if not clip.needs_graph(start):
        return None
    logits = np.random.default_rng(7).standard_normal((batch, side**2, side**2))
    return np.asarray(jax.nn.softmax(logits.astype(np.float32)))


@pytest.mark.parametrize("start", clip.STARTS)
def test_starts_equal_an_independent_last_block(loaded, start):
    model, config, params = loaded["quick_gelu"]
    pixels = _pixels(2, 80, 144)
    graph = _graph(start, 6)
    expected = last_features(model, pixels, start, graph)
    encoding = clip.encode_image(params, config, pixels, start=start, graph=graph)
    assert _error(encoding.patches.reshape(expected.shape), expected) <= 1e-5
    # The class token stays CLIP's own, whatever becomes of the patches.
    assert _error(encoding.pooled, _torch_image(model, pixels)[1]) <= 1e-5


def test_starts_differ(loaded):
    _, config, params = loaded["quick_gelu"]
    pixels = _pixels(2, 80, 144)
    found = [
        clip.encode_image(params, config, pixels, start=start).patches
        for start in clip.STARTS
        if not clip.needs_graph(start)
    ]
    for i, a in enumerate(found):
        assert all(_error(a, b) > 1e-2 for b in found[:i])


def _pad(patches: np.ndarray, n: int, fill: float) -> np.ndarray:
    return np.pad(patches, ((0, 0), (0, n - patches.shape[1]), (0, 0)), constant_values=fill)


@pytest.mark.parametrize("start", clip.STARTS)
def test_a_picture_is_encoded_alike_alone_in_a_batch_and_padded(loaded, start):
    _, config, params = loaded["quick_gelu"]
    grids, n = [(4, 6), (3, 8), (7, 4)], 28
    pictures = [np.asarray(clip.patchify(_pixels(1, 16 * h, 16 * w), 16)) for h, w in grids]
    padded = np.concatenate([_pad(p, n, fill=50.0) for p in pictures])
    graph = _graph(start, 5, batch=3)
    batch = clip.encode_patches(params, config, padded, jnp.array(grids), start=start, graph=graph)
    for i, (h, w) in enumerate(grids[:2]):
        real = 25 if clip.needs_graph(start) else h * w
        own = None if graph is None else graph[i : i + 1]
        pixels = _pixels(1, 16 * h, 16 * w)
        alone = clip.encode_image(params, config, pixels, start=start, graph=own)
        assert _error(batch.patches[i, :real], alone.patches.reshape(real, -1)) <= 1e-5
        assert _error(batch.pooled[i], alone.pooled[0]) <= 1e-5
        assert not batch.patches[i, real:].any()


def test_what_lies_in_the_padding_never_matters(loaded):
    _, config, params = loaded["quick_gelu"]
    patches = np.repeat(clip.patchify(_pixels(1, 64, 96), 16), 3, axis=0)
    one, two = (
        clip.encode_patches(
            params, config, _pad(patches, 28, fill), jnp.array([(4, 6)] * 3), start="naclip"
        )
        for fill in (0.0, 50.0)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_compilation_serves_all_grids(loaded):
    _, config, params = loaded["gelu"]
    encode = jax.jit(lambda patches, grid: clip.encode_patches(params, config, patches, grid))
    patches = np.zeros((1, 30, 768), np.float32)
    for grid in [(5, 6), (6, 5), (3, 4)]:
        encode(patches, jnp.array([grid]))
    assert encode._cache_size() == 1


def test_patchify_cuts_in_raster_order():
    pixels = np.arange(4 * 6 * 3, dtype=np.float32).reshape(1, 4, 6, 3)
    patches = clip.patchify(pixels, 2)
    assert patches.shape == (1, 6, 12)
    np.testing.assert_array_equal(patches[0, 4], pixels[0, 2:4, 2:4].ravel())


@pytest.mark.parametrize("start", ["vanilla", "naclip", "proxyclip"])
def test_bfloat16_stays_close(loaded, half, start):
    _, config, params = loaded["quick_gelu"]
    pixels, graph = _pixels(2, 80, 144), _graph(start, 6)
    exact = clip.encode_image(params, config, pixels, start=start, graph=graph)
    found = clip.encode_image(half, config, pixels, start=start, graph=graph)
    assert found.patches.dtype == found.pooled.dtype == jnp.bfloat16
    assert _error(found.patches, exact.patches) <= 2e-2
    assert _error(found.pooled, exact.pooled) <= 2e-2


def test_bfloat16_text_stays_close(loaded, half):
    _, config, params = loaded["quick_gelu"]
    token_ids = np.random.default_rng(5).integers(0, 520, (16, 8))
    token_ids[:, 6] = 521
    exact = clip.encode_text(params, config, token_ids)
    assert _error(clip.encode_text(half, config, token_ids), exact) <= 2e-2


def test_errors_name_the_value_and_the_way_out(loaded):
    _, config, params = loaded["gelu"]
    with pytest.raises(ValueError, match="64 x 70 pixels.*patch size 16"):
        clip.encode_image(params, config, _pixels(1, 64, 70))
    with pytest.raises(ValueError, match="unknown start 'naclp'.*'naclip'"):
        clip.encode_image(params, config, _pixels(1, 64, 64), start="naclp")
    with pytest.raises(ValueError, match="start 'proxyclip' mixes .* found None; .*'affinity'"):
        clip.encode_image(params, config, _pixels(1, 64, 64), start="proxyclip")
    with pytest.raises(ValueError, match=r"graph \(2, 8, 8\) for 1 pictures: wanted \[1, N, N\]"):
        graph = np.ones((2, 8, 8), np.float32)
        clip.encode_image(params, config, _pixels(1, 64, 64), start="proxyclip", graph=graph)
    with pytest.raises(ValueError, match=r"\(1, 4, 700\).*\[B, n, 768\]"):
        clip.encode_patches(params, config, np.zeros((1, 4, 700)), np.ones((1, 2), int))
    with pytest.raises(ValueError, match=r"\(1, 78\).*context length 77"):
        clip.encode_text(params, config, np.zeros((1, 78), int))
    with pytest.raises(ValueError, match=r"\(1, 78\).*context length 77"):
        clip.encode_tokens(params["text"], config.text, np.zeros((1, 78), int))
