import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsolo_jax.upsample import (
    bilateral,
    joint_bilateral_upsample,
    strip_labels,
    strip_length,
    strips,
    tile_pixels,
    upsample_labels,
)

FORMS = ["bilinear", "kopf", "dense"]

# C, h, w, H, W: scales whole and not, equal and not, enlarging, reducing and one of each.
SHAPES = [
    (1, 4, 4, 16, 16),
    (3, 5, 4, 18, 23),
    (2, 4, 7, 21, 15),
    (5, 1, 3, 9, 10),
    (2, 6, 6, 6, 6),
    (2, 9, 8, 5, 21),
    (3, 7, 9, 3, 1),
]


def random_case(C, h, w, H, W, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(C, h, w)).astype(np.float32), rng.random((H, W, 3), np.float32)


def bilinear_sample(scores, y, x):
    """scores [C] at low-resolution (y, x), clamped to the centres of the border patches."""
    _, h, w = scores.shape
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    y0, x0 = math.floor(y), math.floor(x)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    top = scores[:, y0, x0] * (1 - x + x0) + scores[:, y0, x1] * (x - x0)
    bottom = scores[:, y1, x0] * (1 - x + x0) + scores[:, y1, x1] * (x - x0)
    return top * (1 - y + y0) + bottom * (y - y0)


def by_definition(scores, guide, form, spatial_sigma=1.0, range_sigma=0.1):
    """The window sums, pixel by pixel and tap by tap, in float64."""
    scores, guide = scores.astype(np.float64), guide.astype(np.float64)
    (C, h, w), (H, W, _) = scores.shape, guide.shape
    down = [
        [((y + 0.5) * h / H - 0.5, (x + 0.5) * w / W - 0.5) for x in range(W)] for y in range(H)
    ]
    if form == "bilinear":
        return np.array(
            [[bilinear_sample(scores, *down[y][x]) for x in range(W)] for y in range(H)]
        ).transpose(2, 0, 1)
    if form == "kopf":
        taps = [
            (q, guide[int((q[0] + 0.5) * H / h), int((q[1] + 0.5) * W / w)], scores[:, q[0], q[1]])
            for q in itertools.product(range(h), range(w))
        ]
    else:
        taps = [
            (down[y][x], guide[y, x], bilinear_sample(scores, *down[y][x]))
            for y, x in itertools.product(range(H), range(W))
        ]
    positions, colours, values = (np.array(part) for part in zip(*taps, strict=True))
    out = np.empty((C, H, W))
    for y, x in itertools.product(range(H), range(W)):
        distance = ((positions - down[y][x]) ** 2).sum(-1)
        contrast = ((colours - guide[y, x]) ** 2).sum(-1)
        inside = distance <= 9 * spatial_sigma**2 + 1e-5
        weights = inside * np.exp(
            -distance / (2 * spatial_sigma**2) - contrast / (2 * range_sigma**2)
        )
        out[:, y, x] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition(form, shape):
    scores, guide = random_case(*shape)
    out = joint_bilateral_upsample(scores, guide, form=form)
    np.testing.assert_allclose(out, by_definition(scores, guide, form), atol=1e-5)


@pytest.mark.parametrize("spatial_sigma, range_sigma", [(0.4, 0.3), (1.5, 0.05), (0.75, 1.0)])
@pytest.mark.parametrize("form", ["kopf", "dense"])
def test_other_sigmas_equal_the_definition(form, spatial_sigma, range_sigma):
    scores, guide = random_case(2, 5, 6, 17, 22)
    sigmas = {"spatial_sigma": spatial_sigma, "range_sigma": range_sigma}
    out = joint_bilateral_upsample(scores, guide, form=form, **sigmas)
    np.testing.assert_allclose(out, by_definition(scores, guide, form, **sigmas), atol=1e-5)


def test_default_form_is_kopf():
    scores, guide = random_case(*SHAPES[1])
    np.testing.assert_array_equal(
        joint_bilateral_upsample(scores, guide),
        joint_bilateral_upsample(scores, guide, form="kopf"),
    )


@pytest.mark.parametrize("shape", [*SHAPES, (21, 24, 32, 75, 100)])
def test_bilinear_is_torchs(shape):
    scores, guide = random_case(*shape)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None], guide.shape[:2], mode="bilinear", align_corners=False
    )[0]
    out = joint_bilateral_upsample(scores, guide, form="bilinear")
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


def test_dense_with_a_wide_range_is_a_blur_of_the_bilinear_picture():
    """Without range weights the window is one kernel: a convolution normalised at the border."""
    scores, guide = random_case(3, 6, 6, 36, 24)
    dy, dx = np.mgrid[-18:19, -12:13]
    distance = (dy / 6) ** 2 + (dx / 4) ** 2
    kernel = torch.tensor(np.exp(-distance / 2) * (distance <= 9))[None, None]
    picture = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[:, None].double(), (36, 24), mode="bilinear"
    )
    blur = functools.partial(torch.nn.functional.conv2d, weight=kernel, padding=(18, 12))
    expected = (blur(picture) / blur(torch.ones_like(picture)))[:, 0]
    out = joint_bilateral_upsample(scores, guide, range_sigma=1e3, form="dense")
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 24),
    st.integers(1, 24),
)
def test_constants_stay_and_means_stay_between_extremes(form, h, w, H, W):
    scores, guide = random_case(1, h, w, H, W)
    scores = np.concatenate([scores, np.full_like(scores, -3.5)])
    mixed, constant = np.asarray(joint_bilateral_upsample(scores, guide, form=form))
    np.testing.assert_allclose(constant, -3.5, rtol=1e-6)
    assert scores[0].min() - 1e-5 <= mixed.min() <= mixed.max() <= scores[0].max() + 1e-5


@pytest.mark.parametrize("form, leak", [("kopf", 1e-6), ("dense", 0.15)])
def test_an_edge_of_the_guide_stays_an_edge(form, leak):
    """Kopf's taps are on one side each; the dense window averages a bilinear ramp on one side."""
    scores = np.zeros((1, 8, 8), np.float32)
    scores[:, :, 4:] = 1
    guide = np.zeros((64, 64, 3), np.float32)
    guide[:, 32:] = 1
    expected = guide[..., 0]
    blurred = joint_bilateral_upsample(scores, guide, form="bilinear")[0]
    sharp = joint_bilateral_upsample(scores, guide, form=form)[0]
    assert np.abs(blurred - expected).max() > 0.4
    assert np.abs(sharp - expected).max() < leak


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("H, W", [(37, 50), (48, 64), (11, 7), (3, 60)])
def test_padding_changes_nothing_inside(form, H, W):
    scores, guide = random_case(4, 8, 6, H, W)
    rng = np.random.default_rng(1)
    picture = (255 * guide).astype(np.uint8)
    padded = rng.integers(0, 256, (48, 64, 3), np.uint8)
    padded[:H, :W] = picture
    size = jnp.array([H, W])
    alone = joint_bilateral_upsample(scores, picture, form=form)
    in_bucket = joint_bilateral_upsample(scores, padded, size, form=form)
    np.testing.assert_allclose(in_bucket[:, :H, :W], alone, atol=1e-5)
    assert np.isfinite(in_bucket).all()
    labels = upsample_labels(scores, padded, size, form=form)
    assert labels.shape == (48, 64) and labels.dtype == jnp.int32
    top_two = np.sort(np.asarray(alone), axis=0)[-2:]
    decided = top_two[1] - top_two[0] > 1e-5
    np.testing.assert_array_equal(
        np.asarray(labels)[:H, :W][decided], np.asarray(alone).argmax(0)[decided]
    )


def test_sizes_of_one_bucket_share_a_compilation():
    scores, _ = random_case(2, 4, 4, 1, 1)
    guide = np.zeros((32, 40, 3), np.uint8)
    before = upsample_labels._cache_size()
    for size in [(32, 40), (20, 31), (7, 40)]:
        upsample_labels(scores, guide, np.array(size, np.int32))
    assert upsample_labels._cache_size() == before + 1


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_the_argmax_of_the_scores(form):
    scores, guide = random_case(6, 8, 9, 50, 61)
    picture = (255 * guide).astype(np.uint8)
    volume = joint_bilateral_upsample(scores, picture, form=form)
    np.testing.assert_array_equal(
        upsample_labels(scores, picture, form=form), np.asarray(volume).argmax(0)
    )


def test_the_first_class_wins_ties():
    scores, guide = random_case(1, 4, 4, 16, 16)
    low, high = scores - 1, scores
    labels = upsample_labels(np.concatenate([low, high, high]), (255 * guide).astype(np.uint8))
    np.testing.assert_array_equal(labels, 1)


def test_uint8_is_the_float_guide_in_0_to_1():
    scores, guide = random_case(*SHAPES[1])
    picture = (255 * guide).astype(np.uint8)
    np.testing.assert_allclose(
        joint_bilateral_upsample(scores, picture),
        joint_bilateral_upsample(scores, picture.astype(np.float32) / 255),
        atol=1e-5,
    )


@pytest.mark.parametrize("form", FORMS)
def test_many_blocks_are_one_picture(form, monkeypatch):
    """However few rows of cells a block of tiles has, the answer is the same."""
    scores, guide = random_case(3, 4, 5, 41, 33)
    whole = joint_bilateral_upsample(scores, guide, form=form)
    assert bilateral._group(*scores.shape, form, 1.0) == 4
    monkeypatch.setattr(bilateral, "_BLOCK_ELEMENTS", {"cpu": 200})
    assert bilateral._group(*scores.shape, form, 1.0) == 1  # unwrapped: not the compiled one
    in_blocks = joint_bilateral_upsample.__wrapped__(scores, jnp.asarray(guide), form=form)
    np.testing.assert_allclose(in_blocks, whole, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_strips_are_the_picture(form, monkeypatch):
    """Pictures of many sizes, cut into strips of one length, by one program."""
    monkeypatch.setattr(bilateral, "_STRIP_OF_LABELS", 1024)
    monkeypatch.setattr(bilateral, "_BLOCK_ELEMENTS", {"cpu": 200})
    scores, _ = random_case(3, 6, 5, 1, 1)
    options = {"form": form, "spatial_sigma": 0.5}
    lengths, numbers, before = [], [], strip_labels._cache_size()
    for H, W in [(41, 33), (60, 71), (7, 3), (5, 61)]:
        picture = np.random.default_rng(H).integers(0, 256, (H, W, 3), np.uint8)
        lengths.append(strip_length((H, W), scores.shape, **options))
        labels = np.full((H, W), -1)
        cut = list(strips(picture, scores.shape, length=lengths[-1], **options))
        for rows, strip in cut:
            found = np.asarray(strip_labels(scores, strip, **options))
            labels[rows] = found[: labels[rows].size].reshape(-1, W)
        numbers.append(len(cut))
        padded = np.zeros((60, 71, 3), np.uint8)
        padded[:H, :W] = picture
        whole = upsample_labels(scores, padded, np.array([H, W], np.int32), **options)
        np.testing.assert_array_equal(labels, whole[:H, :W])
    assert numbers[1] > 1 and numbers[2:] == [1, 1]
    # A row of cells of the second picture does not fit into a strip, with the dense form's windows.
    assert set(lengths) == ({1024, 4096} if form == "dense" else {1024})
    assert strip_labels._cache_size() - before == len(set(lengths))


def test_tiles_hold_the_picture_and_little_else():
    for H, W in [(512, 683), (375, 500), (683, 512), (3000, 4000)]:
        assert H * W <= tile_pixels((H, W), (21, 64, 64)) <= 1.25 * H * W


@pytest.mark.parametrize("form", FORMS)
def test_vmap_is_one_picture_at_a_time(form):
    cases = [random_case(3, 5, 4, 18, 23, seed) for seed in range(3)]
    scores = jnp.stack([scores for scores, _ in cases])
    guides = jnp.stack([(255 * guide).astype(np.uint8) for _, guide in cases])
    sizes = jnp.array([(18, 23), (10, 23), (18, 9)])
    upsample = functools.partial(joint_bilateral_upsample, form=form)
    batched = jax.vmap(upsample)(scores, guides, sizes)
    for args, picture in zip(zip(scores, guides, sizes, strict=True), batched, strict=True):
        np.testing.assert_allclose(picture, upsample(*args), atol=1e-5)
    labels = jax.vmap(functools.partial(upsample_labels, form=form))(scores, guides, sizes)
    np.testing.assert_array_equal(labels, batched.argmax(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_large_picture_stays_within_a_gibibyte(form):
    """150 classes at 4000 x 3000 are 6.7 GiB of scores; compiled only, by XLA's own account."""
    arguments = (
        jax.ShapeDtypeStruct((150, 64, 64), jnp.float32),
        jax.ShapeDtypeStruct((3000, 4000, 3), jnp.uint8),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    compiled = upsample_labels.lower(*arguments, form=form).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**30


def test_errors_name_value_and_way_out():
    scores, guide = random_case(*SHAPES[1])
    with pytest.raises(ValueError, match=r"upsampling form 'kopff'.*'kopf'"):
        joint_bilateral_upsample(scores, guide, form="kopff")
    with pytest.raises(ValueError, match=r"\[C, h, w\], found shape \(1, 3, 5, 4\)"):
        joint_bilateral_upsample(scores[None], guide)
    with pytest.raises(ValueError, match=r"\[H, W, 3\], found shape \(18, 23, 1\)"):
        joint_bilateral_upsample(scores, guide[..., :1])
    with pytest.raises(ValueError, match=r"uint8, found int32"):
        upsample_labels(scores, guide.astype(np.int32))
    with pytest.raises(ValueError, match=r"range_sigma must be positive, found 0"):
        joint_bilateral_upsample(scores, guide, range_sigma=0.0)
    with pytest.raises(ValueError, match=r"at least 0.25.*found\s+0.2"):
        joint_bilateral_upsample(scores, guide, spatial_sigma=0.2)
