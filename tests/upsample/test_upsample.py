import functools
import itertools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsolo_jax import upsample
from dsolo_jax.upsample import joint_bilateral, strips
from dsolo_jax.upsample.strips import TILE, Kernel, _program, cut
from tests.oracles import upsampling

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


def random_picture(C, h, w, H, W, seed=0):
    scores, guide = random_case(C, h, w, H, W, seed)
    return scores, (255 * guide).astype(np.uint8)


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


def assert_winners(labels, scores):
    """Labels are the largest scores', but where two are as good as equal."""
    second, first = np.sort(scores, axis=0)[-2:]
    decided = first - second > 1e-5
    np.testing.assert_array_equal(labels[decided], scores.argmax(0)[decided])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition(form, shape):
    scores, guide = random_case(*shape)
    out = joint_bilateral(scores, guide, form=form)
    np.testing.assert_allclose(out, by_definition(scores, guide, form), atol=1e-5)


@pytest.mark.parametrize("spatial_sigma, range_sigma", [(0.4, 0.3), (1.5, 0.05), (0.75, 1.0)])
@pytest.mark.parametrize("form", ["kopf", "dense"])
def test_other_sigmas_equal_the_definition(form, spatial_sigma, range_sigma):
    scores, guide = random_case(2, 5, 6, 17, 22)
    sigmas = {"spatial_sigma": spatial_sigma, "range_sigma": range_sigma}
    out = joint_bilateral(scores, guide, form=form, **sigmas)
    np.testing.assert_allclose(out, by_definition(scores, guide, form, **sigmas), atol=1e-5)


def test_default_form_is_kopf():
    scores, guide = random_case(*SHAPES[1])
    np.testing.assert_array_equal(
        joint_bilateral(scores, guide),
        joint_bilateral(scores, guide, form="kopf"),
    )


@pytest.mark.parametrize("shape", [*SHAPES, (21, 24, 32, 75, 100)])
def test_bilinear_is_torchs(shape):
    scores, guide = random_case(*shape)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None], guide.shape[:2], mode="bilinear", align_corners=False
    )[0]
    out = joint_bilateral(scores, guide, form="bilinear")
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


def test_dense_is_the_loop_of_m2n2():
    scores, picture = random_picture(3, 6, 5, 31, 27)
    expected = upsampling.dense_loop(scores, picture)
    out = joint_bilateral(scores, picture, form="dense")
    np.testing.assert_allclose(out, expected, atol=1e-5)


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
    out = joint_bilateral(scores, guide, range_sigma=1e3, form="dense")
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.sampled_from([(1, 9), (6, 4)]),  # a grid has a program of its own
    st.integers(1, 24),
    st.integers(1, 24),
)
def test_constants_stay_and_means_stay_between_extremes(form, grid, H, W):
    scores, picture = random_picture(1, *grid, H, W)
    scores = np.concatenate([scores, np.full_like(scores, -3.5)])
    mixed, constant = upsample.scores(scores, picture, form=form)
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
    blurred = joint_bilateral(scores, guide, form="bilinear")[0]
    sharp = joint_bilateral(scores, guide, form=form)[0]
    assert np.abs(blurred - expected).max() > 0.4
    assert np.abs(sharp - expected).max() < leak


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_the_argmax_of_the_scores(form):
    scores, picture = random_picture(6, 8, 9, 50, 61)
    volume = upsample.scores(scores, picture, form=form)
    labels = upsample.labels(scores, picture, form=form)()
    assert labels.dtype == np.int32 and labels.shape == (50, 61)
    np.testing.assert_array_equal(labels, volume.argmax(0))


class LessTheMean(NamedTuple):
    """Classes to classes and one more, as a rule for the background would have it."""

    lift: float

    def __call__(self, scores):
        return jnp.concatenate([scores, scores.mean(axis=0, keepdims=True) + self.lift])


def test_decide_comes_before_the_argmax():
    scores, picture = random_picture(4, 6, 6, 30, 40)
    volume = by_definition(scores, picture / 255, "kopf")
    expected = np.concatenate([volume, volume.mean(axis=0, keepdims=True) + 0.4])
    decided = upsample.scores(scores, picture, decide=LessTheMean(0.4))
    np.testing.assert_allclose(decided, expected, atol=1e-5)
    labels = upsample.labels(scores, picture, decide=LessTheMean(0.4))()
    np.testing.assert_array_equal(labels, decided.argmax(0))
    assert 0 < (labels == 4).mean() < 1


def test_the_first_class_wins_ties():
    scores, picture = random_picture(1, 4, 4, 16, 16)
    labels = upsample.labels(np.concatenate([scores - 1, scores, scores]), picture)()
    np.testing.assert_array_equal(labels, 1)


def test_uint8_is_the_float_guide_in_0_to_1():
    scores, guide = random_case(*SHAPES[1])
    picture = (255 * guide).astype(np.uint8)
    np.testing.assert_allclose(
        joint_bilateral(scores, picture),
        joint_bilateral(scores, picture.astype(np.float32) / 255),
        atol=1e-5,
    )


@pytest.mark.parametrize("form", FORMS)
def test_many_blocks_are_one_picture(form, monkeypatch):
    """However few rows of cells a block of tiles has, the answer is the same."""
    scores, guide = random_case(3, 5, 4, 41, 33)
    whole = by_definition(scores, guide, form)
    assert cut((41, 33), scores.shape, form=form)[0] == 5
    taps = {"bilinear": 9, "kopf": 49, "dense": 81}[form]
    for rows in (1, 3):  # the second one leaves a row of cells without its match
        monkeypatch.setattr(strips, "_CPU", strips._CPU._replace(block=rows * 4 * TILE * taps))
        assert cut((41, 33), scores.shape, form=form)[0] == rows
        # Unwrapped: not what was compiled before.
        function = jax.jit(functools.partial(joint_bilateral.__wrapped__, form=form))
        in_blocks = function(scores, guide)
        np.testing.assert_allclose(in_blocks, whole, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_strips_are_the_picture(form, monkeypatch):
    """Pictures of many sizes, cut into strips of two lengths, by two programs."""
    monkeypatch.setattr(strips, "_CPU", strips._Limits(200, (256, 1024), (256,)))
    options = {"form": form, "spatial_sigma": 0.5}
    lengths, numbers, before = [], [], _program._cache_size()
    for H, W in [(60, 71), (41, 33), (7, 3), (5, 61), (16, 16), (3, 2)]:
        scores, picture = random_picture(3, 6, 5, H, W, seed=H)
        _, length, places = cut((H, W), scores.shape, None, 0.5, form)
        lengths.append(length)
        numbers.append(len(places))
        expected = by_definition(scores, picture / 255, form, 0.5)
        assert_winners(upsample.labels(scores, picture, **options)(), expected)
    assert numbers[0] > 1 and numbers[1] > 1 and numbers[2:] == [1, 1, 1, 1]
    # A row of cells of the first picture does not fit into a strip, with the dense form's windows.
    longer = 4096 if form == "dense" else 1024
    assert lengths == [longer, 1024, 256, 1024, 256, 256]
    assert _program._cache_size() - before == len(set(lengths))
    found = upsample.scores(scores, picture, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_accelerators_whose_loops_have_known_lengths_give_the_same(monkeypatch):
    cases = [random_picture(3, 6, 5, *size, seed=1) for size in [(60, 71), (7, 3)]]
    expected = [upsample.labels(*case)() for case in cases]
    limits = strips._Limits(200, (256, 4096), (256,))
    monkeypatch.setattr(strips, "_ACCELERATOR", limits)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert len(cut((60, 71), (3, 6, 5), limits.scores)[2]) > 1
    for case, labels in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(upsample.labels(*case)(), labels)
        np.testing.assert_array_equal(upsample.scores(*case).argmax(axis=0), labels)


def test_a_batch_of_an_accelerator_has_the_labels_of_each_picture(monkeypatch):
    sizes = [(60, 71), (7, 3), (41, 33)]
    cases = [random_picture(3, 6, 5, *size, seed=1) for size in sizes]
    pictures = [pixels for _, pixels in cases]
    scores = jnp.stack([scores for scores, _ in cases] + [jnp.full((3, 6, 5), jnp.nan)])
    decide = functools.partial(jnp.multiply, -1.0)
    for options in ({}, {"form": "bilinear"}, {"decide": decide}):
        expected = [upsample.labels(*case, **options)() for case in cases]
        with monkeypatch.context() as patched:
            patched.setattr(jax, "default_backend", lambda: "gpu")
            assert upsample.takes(pictures, options.get("form", "kopf"))
            found = upsample.batch_labels(scores, pictures, **options)()
        assert [labels.dtype for labels in found] == [np.int32] * len(cases)
        for labels, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(labels, other)


def test_a_cpu_and_pamr_and_large_pictures_go_one_by_one(monkeypatch):
    pictures = [np.zeros((4, 4, 3), np.uint8)]
    assert not upsample.takes(pictures, "kopf")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert upsample.takes(pictures, "kopf") and not upsample.takes(pictures, "pamr")
    assert not upsample.takes([np.zeros((2100, 2000, 3), np.uint8)], "kopf")


def test_a_batch_is_refused_as_a_picture_is():
    scores, pictures = jnp.zeros((1, 2, 3, 4)), [np.zeros((6, 8, 3), np.uint8)]
    with pytest.raises(ValueError, match="spatial_sigma must be at least 0.25"):
        upsample.batch_labels(scores, pictures, spatial_sigma=0.1)
    with pytest.raises(ValueError, match="pixels must be uint8, found float32"):
        upsample.batch_labels(scores, [pictures[0].astype(np.float32)])


def test_loops_are_rounded_up_to_powers_of_two():
    assert [strips.rounded(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]


def test_a_strip_is_no_longer_than_its_picture_needs():
    shape = (21, 14, 14)
    for size, length, number in [
        ((112, 112), 1 << 14, 1),
        ((160, 200), 1 << 16, 1),
        ((375, 500), 1 << 18, 1),
        ((512, 683), 1 << 18, 2),
        ((3000, 4000), 1 << 20, 14),
    ]:
        _, found, places = cut(size, shape)
        assert (found, len(places)) == (length, number), size
    assert cut((3000, 4000), (21, 64, 64))[1] == 1 << 18


@given(
    st.sampled_from(FORMS),
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.tuples(st.integers(1, 200), st.integers(1, 128), st.integers(1, 128)),
    st.floats(0.25, 2),
)
def test_strips_hold_every_row_and_what_its_windows_reach(form, size, shape, spatial_sigma):
    (H, W), h = size, shape[1]
    group, length, places = cut(size, shape, None, spatial_sigma, form)
    held, wanted, first, count = places[:, 2:6].T
    assert wanted[0] == first[0] == 0 and first[-1] + count[-1] == -(-h // group)
    np.testing.assert_array_equal(first[1:], (first + count)[:-1])
    ends = np.append(wanted[1:], H)
    reach = 3 * spatial_sigma * H / h if form == "dense" else 0
    assert (held <= np.maximum(0, wanted - reach)).all()
    assert (np.minimum(ends + reach, H) <= held + length / W).all()


def test_tiles_hold_the_picture_and_little_else():
    for H, W in [(512, 683), (375, 500), (683, 512), (3000, 4000)]:
        group, _, places = cut((H, W), (21, 64, 64))
        tiles = (places[:, 5] * places[:, 6]).sum() * group * 64
        assert H * W <= TILE * tiles <= 1.25 * H * W


@pytest.mark.parametrize("form", FORMS)
def test_vmap_is_one_picture_at_a_time(form):
    cases = [random_picture(3, 5, 4, 18, 23, seed) for seed in range(3)]
    scores, guides = (jnp.stack(part) for part in zip(*cases, strict=True))
    function = functools.partial(joint_bilateral, form=form)
    batched = jax.vmap(function)(scores, guides)
    for (scores, guide), picture in zip(cases, batched, strict=True):
        np.testing.assert_allclose(picture, by_definition(scores, guide / 255, form), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_in_the_scores(form):
    """A linear map is its own derivative; what reverse gives is its transpose."""
    scores, guide = random_case(2, 5, 4, 18, 23)
    direction, _ = random_case(2, 5, 4, 1, 1, seed=1)
    weight, _ = random_case(2, 18, 23, 1, 1, seed=2)
    function = functools.partial(joint_bilateral, guide=guide, form=form)
    out, moved = jax.jvp(function, (scores,), (direction,))
    np.testing.assert_allclose(moved, by_definition(direction, guide, form), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda scores: (weight * function(scores)).sum()))(scores)
    np.testing.assert_allclose((gradient * scores).sum(), (weight * out).sum(), rtol=1e-4)
    np.testing.assert_allclose((gradient * direction).sum(), (weight * moved).sum(), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_float32_where_float64_is_the_default(form):
    scores, picture = random_picture(3, 6, 5, 31, 27)
    guide = picture.astype(np.float64) / 255
    expected = by_definition(scores, guide, form)
    with jax.enable_x64(True):
        function = functools.partial(joint_bilateral, form=form)
        assert jax.eval_shape(function, scores, guide).dtype == jnp.float32
        # Python's own integers may be i64[].
        assert not re.search(r"f64|i64\[\d", str(jax.make_jaxpr(function)(scores, picture)))
        assert_winners(upsample.labels(scores, picture, form=form)(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_large_picture_stays_within_64_mebibytes(form):
    """150 classes at 4000 x 3000 are 6.7 GiB of scores; compiled only, by XLA's own account."""
    shape = (150, 64, 64)
    group, length, places = cut((3000, 4000), shape, form=form)
    arrays = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [
            (shape, jnp.float32),
            ((length, 3), jnp.uint8),
            ((64, 64, 3), jnp.uint8),
            (places[0, :5].shape, jnp.int32),
            (places[0, 5:].shape, jnp.int32),
        ]
    )
    kernel = Kernel(form, 1.0, 0.1)
    lowered = _program.lower(*arrays, kernel, group, argmax=True)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 64 * 2**20


def test_errors_name_value_and_way_out():
    scores, guide = random_case(*SHAPES[1])
    with pytest.raises(ValueError, match=r"upsampling form 'kopff'.*'kopf'"):
        joint_bilateral(scores, guide, form="kopff")
    with pytest.raises(ValueError, match=r"\[C, h, w\], found shape \(1, 3, 5, 4\)"):
        joint_bilateral(scores[None], guide)
    with pytest.raises(ValueError, match=r"\[H, W, 3\], found shape \(18, 23, 1\)"):
        joint_bilateral(scores, guide[..., :1])
    with pytest.raises(ValueError, match=r"uint8, found int32"):
        joint_bilateral(scores, guide.astype(np.int32))
    for function in (upsample.labels, upsample.scores):
        with pytest.raises(ValueError, match=r"pixels must be uint8, found float32"):
            function(scores, guide)
    with pytest.raises(ValueError, match=r"range_sigma must be positive, found 0"):
        joint_bilateral(scores, guide, range_sigma=0.0)
    with pytest.raises(ValueError, match=r"at least 0.25.*found\s+0.2"):
        joint_bilateral(scores, guide, spatial_sigma=0.2)
