import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax.solver.normalise import suppress

RULES = ["none", "range", "maximum", "winner", "spatial"]


@pytest.fixture
def f():
    return np.random.default_rng(0).normal(size=(4, 36)).astype(np.float32)


def kept_by_definition(f, rule, below):
    """Patch by patch, from the sentences of the docstring."""
    C, N = f.shape
    r = int(N**0.5)
    kept = np.zeros((C, N), bool)
    for c in range(C):
        low, high = f[c].min(), f[c].max()
        for n in range(N):
            y, x = divmod(n, r)
            near = [
                f[c, v * r + u]
                for v in range(max(y - 1, 0), min(y + 2, r))
                for u in range(max(x - 1, 0), min(x + 2, r))
            ]
            kept[c, n] = {
                "none": True,
                "range": (f[c, n] - low) / (high - low) >= below,
                "maximum": f[c, n] / high >= below,
                "winner": f[c, n] == f[:, n].max(),
                "spatial": f[c, n] == max(near),
            }[rule]
    return kept


@pytest.mark.parametrize("below", [0.3, 0.7])
@pytest.mark.parametrize("rule", RULES)
def test_kept_and_zeroed_patches_follow_the_definition(f, rule, below):
    expected = np.where(kept_by_definition(f, rule, below), f, 0)
    np.testing.assert_array_equal(suppress(f, rule=rule, below=below), expected)


def test_default_is_seven_tenths_of_the_range(f):
    np.testing.assert_array_equal(suppress(f), suppress(f, rule="range", below=0.7))


@pytest.mark.parametrize("rule", ["none", "range", "maximum", "spatial"])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_maps_are_kept(rule, value):
    constant = jnp.full((3, 9), value)
    np.testing.assert_array_equal(suppress(constant, rule=rule), constant)


def test_winner_on_a_tie_is_the_first_class():
    kept = suppress(jnp.ones((3, 4)), rule="winner")
    np.testing.assert_array_equal(kept, [[1.0] * 4, [0.0] * 4, [0.0] * 4])


def test_range_ignores_affine_changes_of_a_class(f):
    scale, shift = np.array([[2.0], [0.5], [8.0], [1.0]]), np.array([[0.0], [4.0], [-8.0], [16.0]])
    kept = np.asarray(suppress(f) != 0)
    np.testing.assert_array_equal(suppress((f * scale + shift).astype(np.float32)) != 0, kept)


@pytest.mark.parametrize("rule", RULES)
def test_vmap_is_one_picture_at_a_time(f, rule):
    batch = jnp.stack([f, -f, f[::-1]])
    one_by_one = jnp.stack([suppress(picture, rule=rule) for picture in batch])
    np.testing.assert_array_equal(
        jax.vmap(lambda picture: suppress(picture, rule=rule))(batch), one_by_one
    )


def test_errors_name_value_and_way_out(f):
    with pytest.raises(ValueError, match=r"suppression rule 'rnge'.*'range'"):
        suppress(f, rule="rnge")
    with pytest.raises(ValueError, match=r"0\.\.1, found 70"):
        suppress(f, below=70)
    with pytest.raises(ValueError, match=r"\[C, N\], found shape \(4, 6, 6\)"):
        suppress(f.reshape(4, 6, 6))
    with pytest.raises(ValueError, match=r"square grid, found N = 35.*\"range\""):
        suppress(f[:, :35], rule="spatial")
