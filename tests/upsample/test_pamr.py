"""PAMR against loops over pixels and taps, whole and cut into tiles."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dsolo_jax import upsample
from dsolo_jax.background import Decision, Threshold
from dsolo_jax.upsample import joint_bilateral, pamr
from tests.oracles import upsampling

# C, h, w, H, W: the dilations reach beyond every border, or within.
SHAPES = [(3, 4, 5, 21, 26), (1, 1, 1, 1, 1), (9, 3, 2, 2, 40)]


def random_case(C, h, w, H, W, seed=0):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(C, h, w)).astype(np.float32)
    pixels = random.integers(0, 256, (H, W, 3), np.uint8)
    pixels[: H // 2, : W // 2] = 77  # where nothing differs every tap weighs the same
    return scores, pixels


def by_loops(scores, pixels):
    """Every pixel, tap and channel by itself, in float64."""
    (H, W, _), x = pixels.shape, pixels.astype(np.float64) / 255
    values = upsampling.interpolate(scores.astype(np.float64), (H, W)).numpy()
    nine = list(itertools.product((-1, 0, 1), repeat=2))

    def there(y, x, dy, dx):
        return min(max(y + dy, 0), H - 1), min(max(x + dx, 0), W - 1)

    weights, taps = {}, {}
    for p in itertools.product(range(H), range(W)):
        windows = [[there(*p, d * dy, d * dx) for dy, dx in nine] for d in (8, 16)]
        std = np.std([x[q] for window in windows for q in window], axis=0, ddof=1)
        taps[p] = [q for window in windows for q in window[:4] + window[5:]]
        logits = np.array([-np.mean(np.abs(x[p] - x[q]) / (1e-8 + 0.1 * std)) for q in taps[p]])
        weights[p] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for _ in range(10):
        before, values = values, np.empty_like(values)
        for p in taps:
            values[:, *p] = sum(w * before[:, *q] for w, q in zip(weights[p], taps[p], strict=True))
    return values


def by_torch(scores, pixels, dtype=torch.float64):
    """The formula over whole pictures, in torch."""
    size = pixels.shape[:2]
    x = torch.tensor(pixels).permute(2, 0, 1).to(dtype)[None] / 255
    values = torch.nn.functional.interpolate(
        torch.tensor(scores)[None].to(dtype), size, mode="bilinear", align_corners=False
    )

    def windows(picture):
        kept = []
        for d in (8, 16):
            padded = torch.nn.functional.pad(picture, [d] * 4, mode="replicate")
            nine = itertools.product((0, d, 2 * d), repeat=2)
            kept += [padded[..., y : y + size[0], x : x + size[1]] for y, x in nine]
        return torch.stack(kept)

    taps = [k for k in range(18) if k % 9 != 4]
    around = windows(x)
    contrast = (x - around[taps]).abs() / (1e-8 + 0.1 * around.std(dim=0))
    weights = (-contrast.mean(dim=2, keepdim=True)).softmax(dim=0)
    for _ in range(10):
        values = (weights * windows(values)[taps]).sum(dim=0)
    return values[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_loops_over_pixels_and_taps(shape):
    scores, pixels = random_case(*shape)
    expected = by_loops(scores, pixels)
    np.testing.assert_allclose(upsample.scores(scores, pixels, form="pamr"), expected, atol=1e-5)
    labels = upsample.labels(scores, pixels, form="pamr")()
    np.testing.assert_array_equal(labels, expected.argmax(axis=0))
    np.testing.assert_allclose(by_torch(scores, pixels), expected, atol=1e-9)


@pytest.mark.parametrize("unit", [1, 255])
def test_one_function_of_arrays_does_the_same(unit):
    scores, pixels = random_case(2, 4, 4, 20, 31)
    guide = pixels if unit == 1 else pixels.astype(np.float32) / unit
    found = joint_bilateral(scores, guide, form="pamr")
    np.testing.assert_allclose(found, by_torch(scores, pixels), atol=1e-5)


@pytest.mark.parametrize("size", [(420, 61), (61, 420)])
def test_a_picture_in_many_tiles_is_the_picture(monkeypatch, size):
    """By one program, whichever way it is cut."""
    scores, pixels = random_case(2, 7, 6, *size)
    length = 94 * 400
    _, tiles = pamr.cut(size, (length,))
    assert len(tiles) >= 4
    expected = by_torch(scores, pixels)
    monkeypatch.setattr(pamr, "cut", functools.partial(pamr.cut, lengths=(length,)))
    before = pamr._program._cache_size()
    found = upsample.scores(scores, pixels, form="pamr")
    assert pamr._program._cache_size() <= before + 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9000), (9000, 1), (375, 500), (3000, 4000), (700, 1025), (90, 30000)]
)
def test_tiles_cover_the_picture_and_hold_what_their_pixels_reach(size):
    length, tiles = pamr.cut(size)
    covered = np.zeros(size, np.int8)
    for tile in tiles:
        covered[slice(*tile.rows), slice(*tile.columns)] += 1
        rows, columns = tile.bottom - tile.top, tile.right - tile.left
        assert 33 <= rows and rows * columns <= length
        held = (tile.top, tile.bottom, *tile.rows), (tile.left, tile.right, *tile.columns)
        for side, (first, last, start, stop) in zip(size, held, strict=True):
            assert first == max(start - 160, -16) and last == min(stop + 160, side + 16)
    assert (covered == 1).all()


def test_pictures_of_many_sizes_share_programs():
    scores, before = np.zeros((2, 3, 3), np.float32), pamr._program._cache_size()
    for size in [(100, 120), (120, 100), (90, 130), (60, 200)]:
        upsample.labels(scores, np.zeros((*size, 3), np.uint8), form="pamr")()
    assert pamr._program._cache_size() - before == 1


def test_decide_comes_behind_the_refinement():
    scores, pixels = random_case(5, 4, 4, 30, 31)
    decide = Decision((0, 0, 1, 2, 2), 3, Threshold(0.3, 4.0))
    expected = np.asarray(decide(by_torch(scores, pixels).astype(np.float32)))
    found = upsample.scores(scores, pixels, form="pamr", decide=decide)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(expected.argmax(axis=0))) == 3


def test_it_is_linear_in_the_scores_and_can_be_mapped():
    cases = [random_case(2, 3, 3, 9, 12, seed) for seed in range(2)]
    scores, pixels = (jnp.stack(part) for part in zip(*cases, strict=True))
    function = functools.partial(joint_bilateral, form="pamr")
    for (one, guide), found in zip(cases, jax.vmap(function)(scores, pixels), strict=True):
        np.testing.assert_allclose(found, by_torch(one, guide), atol=1e-5)
    weight = np.random.default_rng(1).normal(size=(2, 9, 12)).astype(np.float32)
    total = lambda some: (weight * function(some, pixels[0])).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total))(scores[0])
    for direction in scores:
        np.testing.assert_allclose((gradient * direction).sum(), total(direction), rtol=1e-4)


def test_float32_where_float64_is_the_default():
    scores, pixels = random_case(3, 4, 4, 20, 20)
    expected = upsample.scores(scores, pixels, form="pamr")
    with jax.enable_x64(True):
        found = upsample.scores(scores, pixels, form="pamr")
        assert found.dtype == np.float32
        program = str(
            jax.make_jaxpr(pamr._refine)(scores, pixels.reshape(-1, 3), np.zeros(9, np.int32))
        )
    assert "f64" not in program
    np.testing.assert_allclose(found, expected, atol=1e-6)
