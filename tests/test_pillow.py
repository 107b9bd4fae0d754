"""PIL's resampling as a function of arrays: equal to PIL, bit for bit."""

import jax
import numpy as np
import pytest
from PIL import Image

from dsolo_jax import pillow

FILTERS = sorted(pillow.FILTERS)


def pictures(size, random):
    """Noise, and noise of black and white alone, whose means lie on the border of two values."""
    noise = random.integers(0, 256, (*size, 3), np.uint8)
    return noise, noise // 128 * 255


def by_pil(picture, size, filter):
    return np.asarray(Image.fromarray(picture).resize(size[::-1], pillow.FILTERS[filter].code))


@pytest.mark.parametrize("filter", FILTERS)
def test_it_is_pils_up_and_down_at_any_sizes(filter):
    random = np.random.default_rng(0)
    sides = np.exp(random.uniform(0, np.log(200), (60, 4))).astype(int)
    for a, b, c, d in [*sides.tolist(), (1, 1, 1, 1), (7, 9, 7, 9), (7, 9, 7, 4), (1, 300, 300, 1)]:
        for picture in pictures((a, b), random):
            found = pillow.resize(picture, (c, d), filter)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, by_pil(picture, (c, d), filter), f"{a, b, c, d}")


@pytest.mark.parametrize("filter, size", [("box", (64, 64)), ("bilinear", (84, 112))])
def test_jitted_it_is_the_same(filter, size):
    resize = jax.jit(lambda picture: pillow.resize(picture, size, filter))
    for picture in pictures((375, 500), np.random.default_rng(1)):
        found = resize(picture)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, by_pil(picture, size, filter))


def test_an_unknown_filter_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown filter 'cubic'.*box, bilinear"):
        pillow.resize(np.zeros((2, 2, 3), np.uint8), (3, 3), "cubic")


def test_a_pil_that_does_otherwise_is_named(monkeypatch):
    one_off = pillow.FILTERS["box"]._replace(code=Image.Resampling.NEAREST)
    monkeypatch.setitem(pillow.FILTERS, "box", one_off)
    with pytest.raises(
        ValueError, match=r"Pillow .* resizes \(37, 41\) to \(5, 7\) by 'box' in ano"
    ):
        pillow.resize(np.zeros((37, 41, 3), np.uint8), (5, 7), "box")
