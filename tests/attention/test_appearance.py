"""The graph of colour and texture: what it is by its formula, and what must not change it."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax import images
from dsolo_jax.attention.appearance import PATCH, self_affinity
from dsolo_jax.datasets import miniature

R = 6
SIDE = R * PATCH
N = R * R


@pytest.fixture(scope="module")
def pixels():
    """Two pictures: halves of different colour and grain, under noise."""
    random = np.random.default_rng(0)
    x = np.arange(SIDE)
    left = (x < SIDE // 2)[None, :, None]
    stripes = 0.15 * np.sin(x * 1.3)[None, :, None]
    picture = np.where(left, [0.6, 0.3, 0.2], np.array([0.2, 0.4, 0.5]) + stripes)
    return np.float32(picture + random.normal(0, 0.03, (2, SIDE, SIDE, 3)))


def affinity(pixels, **options):
    return np.asarray(self_affinity(jnp.asarray(pixels), **options))


def test_rows_sum_to_one_and_favour_what_looks_alike(pixels):
    a = affinity(pixels)
    assert a.shape == (2, N, N) and (a >= 0).all()
    np.testing.assert_allclose(a.sum(-1), 1, atol=1e-5)
    left = np.tile(np.arange(R) < R // 2, R)
    own = np.where(left[:, None] == left, a, 0).sum(-1)
    assert own.min() > 0.9  # the base rate is 0.5


@pytest.mark.parametrize("cue", ["colour", "distance"])
def test_a_picture_of_two_colours_is_the_closed_form(cue):
    """Half of all pairs differ in colour, so their squared distance is 2 in units of the mean; a
    grid's mean squared distance is (r² − 1) / 3."""
    picture = np.zeros((1, SIDE, SIDE, 3), np.float32)
    picture[:, :, SIDE // 2 :] = [0.9, 0.2, 0.4]
    row, column = np.divmod(np.arange(N), R)
    squared = {
        "colour": 2.0 * ((column[:, None] < R // 2) != (column < R // 2)),
        "distance": ((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2)
        / ((R**2 - 1) / 3),
    }[cue]
    expected = np.exp(-3 * squared)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        affinity(picture, layers=[cue], weights=[3.0])[0], expected, atol=1e-6
    )


def test_texture_tells_stripes_of_one_mean_apart():
    """Upright and lying stripes: colour cannot tell them, texture must."""
    wave = 0.5 + 0.2 * np.sin(np.arange(SIDE) * 2 * np.pi / PATCH)
    picture = np.empty((SIDE, SIDE, 3))
    picture[: SIDE // 2] = wave[None, :, None]
    picture[SIDE // 2 :] = wave[SIDE // 2 :, None, None]
    top = np.arange(N) // R < R // 2
    own = {
        cue: np.where(top[:, None] == top, affinity(picture[None], layers=[cue])[0], 0).sum(-1)
        for cue in ("colour", "texture")
    }
    assert own["texture"].min() > 0.8
    np.testing.assert_allclose(own["colour"], 0.5, atol=0.02)


def test_exposure_and_contrast_of_the_picture_cancel(pixels):
    np.testing.assert_allclose(affinity(0.4 * pixels + 0.3), affinity(pixels), atol=2e-5)


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_a_mirrored_picture_has_the_mirrored_graph(pixels, axes):
    places = np.flip(np.arange(N).reshape(R, R), [axis - 1 for axis in axes]).ravel()
    np.testing.assert_allclose(
        affinity(np.flip(pixels, axes)), affinity(pixels)[:, places][:, :, places], atol=1e-5
    )


def test_patches_that_trade_places_trade_rows_of_colour(pixels):
    order = np.random.default_rng(1).permutation(N)
    patches = pixels.reshape(2, R, PATCH, R, PATCH, 3).swapaxes(2, 3).reshape(2, N, PATCH, PATCH, 3)
    shuffled = patches[:, order].reshape(2, R, R, PATCH, PATCH, 3).swapaxes(2, 3)
    expected = affinity(pixels, layers=["colour"])[:, order][:, :, order]
    found = affinity(shuffled.reshape(pixels.shape), layers=["colour"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_patches_of_the_miniature_world_look_at_their_own_class():
    scenes = [miniature.draw(0, index, split="tune") for index in range(3)]
    squares = np.stack([images.squeeze(scene.image, 224) for scene in scenes])
    a = affinity(squares / np.float32(255))
    for scene, graph in zip(scenes, a, strict=True):
        classes = scene.labels.reshape(28, 4, 28, 4).transpose(0, 2, 1, 3).reshape(28 * 28, 16)
        shares = (classes[:, :, None] == np.arange(len(miniature.CLASSES))).mean(1)
        own = np.sum(graph * (shares @ shares.T), axis=-1)
        assert own.mean() > max(0.8, 2 * np.mean(shares @ shares.T))


def test_a_flat_picture_is_near_what_is_near():
    flat = np.full((1, SIDE, SIDE, 3), 0.3, np.float32)
    np.testing.assert_allclose(affinity(flat), affinity(flat, layers=["distance"]), atol=1e-6)
    np.testing.assert_allclose(affinity(flat, layers=["colour", "texture"]), 1 / N, atol=1e-6)


def test_a_picture_has_its_graph_alone_and_in_a_batch(pixels):
    np.testing.assert_allclose(affinity(pixels)[1:], affinity(pixels[1:]), atol=1e-6)


def test_unusable_arguments_are_named(pixels):
    with pytest.raises(ValueError, match="unknown cue of appearance 'color' .did you mean 'colour"):
        self_affinity(pixels, layers=["color"])
    with pytest.raises(ValueError, match=r"weights \[1.0\] for layers"):
        self_affinity(pixels, weights=[1.0])
    with pytest.raises(ValueError, match="multiple of 8"):
        self_affinity(pixels[:, :-1, :-1])
