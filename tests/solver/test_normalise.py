"""suppress and normalise, from the sentences of their docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax.solver import normalise, suppress
from dsolo_jax.solver.normalise import NORMALISERS, RULES


@pytest.fixture
def f():
    return np.random.default_rng(0).normal(size=(4, 36)).astype(np.float32)


def suppressed_by_definition(f, rule, below):
    """Patch by patch."""
    out = f.copy()
    for c, n in np.ndindex(f.shape):
        low, high = f[c].min(), f[c].max()
        if rule == "range" and (f[c, n] - low) / (high - low) < below:
            out[c, n] = min(f[c, n], 0)
    return out


@pytest.mark.parametrize("shift", [-5, 0, 5])
@pytest.mark.parametrize("below", [0.3, 0.7])
@pytest.mark.parametrize("rule", RULES)
def test_kept_and_weakened_patches_follow_the_definition(f, rule, below, shift):
    f = f + np.float32(shift)
    expected = suppressed_by_definition(f, rule, below)
    np.testing.assert_array_equal(suppress(f, rule=rule, below=below), expected)
    changed = (expected != f).mean()
    if rule == "none" or shift < 0:
        assert changed == 0
    elif shift > 0:
        assert 0.1 < changed < 0.9


def test_default_is_seven_tenths_of_the_range(f):
    np.testing.assert_array_equal(suppress(f), suppress(f, rule="range", below=0.7))


def test_no_patch_is_raised_nor_outdoes_a_stronger_one(f):
    """A map that is negative throughout keeps its order: zero would be its largest value."""
    for maps in (f, f - 10, f + 10):
        out = np.asarray(suppress(maps))
        assert (out <= maps).all()
        strongest = np.argmax(maps, axis=1)
        np.testing.assert_array_equal(out[np.arange(4), strongest], maps.max(axis=1))
        assert (out <= maps.max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [-1.0, 0.0, 2.5])
def test_constant_maps_are_kept(rule, value):
    constant = jnp.full((3, 9), value)
    np.testing.assert_array_equal(suppress(constant, rule=rule), constant)


def test_range_ignores_affine_changes_of_a_class(f):
    f = f - f.min() + 1
    kept = np.asarray(suppress(f) != 0)
    scale, shift = np.array([[2.0], [0.5], [8.0], [1.0]]), np.array([[0.0], [4.0], [8.0], [16.0]])
    np.testing.assert_array_equal(suppress((f * scale + shift).astype(np.float32)) != 0, kept)


@pytest.mark.parametrize("rule", RULES)
def test_vmap_is_one_picture_at_a_time(f, rule):
    batch = jnp.stack([f, -f, f[::-1]])
    one_by_one = jnp.stack([suppress(picture, rule=rule) for picture in batch])
    np.testing.assert_array_equal(
        jax.vmap(lambda picture: suppress(picture, rule=rule))(batch), one_by_one
    )


def test_normalised_maps_follow_their_formulas(f):
    e = np.exp(f.astype(np.float64) / 0.4)
    low, high = f.min(1, keepdims=True), f.max(1, keepdims=True)
    expected = {
        "softmax": 36 * e / e.sum(1, keepdims=True),
        "minmax": (f - low) / (high - low),
        "logits": np.where(f > 0, 100 * f, 0),
    }
    assert set(expected) == set(NORMALISERS)
    for rule, maps in expected.items():
        ours = np.asarray(normalise(f, rule=rule, temperature=0.4))
        np.testing.assert_allclose(ours, maps, rtol=1e-5, atol=1e-7)
        assert (ours >= 0).all()


def test_a_constant_map_is_uniform():
    flat = np.full((2, 9), 0.2, np.float32)
    for rule in NORMALISERS:
        maps = np.asarray(normalise(flat, rule=rule))
        np.testing.assert_array_equal(maps, np.full_like(maps, maps[0, 0]))
        assert maps[0, 0] > 0


def test_errors_name_value_and_way_out(f):
    with pytest.raises(ValueError, match=r"suppression rule 'rnge'.*'range'"):
        suppress(f, rule="rnge")
    with pytest.raises(ValueError, match=r"0\.\.1, found 70"):
        suppress(f, below=70)
    with pytest.raises(ValueError, match=r"f has shape \(4, 6, 6\); wanted \[C, N\]"):
        suppress(f.reshape(4, 6, 6))
    with pytest.raises(ValueError, match="normalisation 'softmin'.*'softmax'"):
        normalise(f, rule="softmin")
