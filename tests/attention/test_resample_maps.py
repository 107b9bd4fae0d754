"""Resampling to the square grid, against torch."""

import jax
import numpy as np
import pytest
import torch

from dsolo_jax.attention import resample_attention, resample_maps


def torch_resize(maps, side):
    return torch.nn.functional.interpolate(
        torch.tensor(maps)[None], (side, side), mode="bilinear", align_corners=False
    )[0].numpy()


@pytest.mark.parametrize("h, w, side", [(5, 7, 8), (9, 4, 6), (1, 6, 4), (6, 6, 6)])
def test_maps_equal_torch_bilinear_whatever_the_padding(h, w, side):
    maps = np.random.default_rng(0).normal(size=(3, h, w)).astype(np.float32)
    expected = torch_resize(maps, side).reshape(3, -1)
    for padding in (0, 5):
        padded = np.pad(maps.reshape(3, -1), ((0, 0), (0, padding)), constant_values=1e6)
        ours = resample_maps(padded, np.array([h, w]), side)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_attention_is_resampled_on_both_sides_and_renormalised():
    h, w, side = 4, 6, 5
    a = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(0), (h * w, h * w)), axis=-1))
    looked_at = torch_resize(a.reshape(h * w, h, w), side).reshape(h, w, -1)
    both = torch_resize(np.moveaxis(looked_at, -1, 0), side).reshape(side**2, side**2).T
    expected = both / both.sum(1, keepdims=True)
    np.testing.assert_allclose(resample_attention(a, np.array([h, w]), side), expected, atol=1e-6)
