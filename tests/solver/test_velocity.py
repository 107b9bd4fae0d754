"""max_velocity against a plain numpy loop over classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax import solver
from dsolo_jax.solver.velocity import CRITERIA

N, C = 64, 5


@pytest.fixture(scope="module")
def f():
    maps = np.random.default_rng(0).uniform(size=(C, N)).astype(np.float32)
    maps /= maps.max(1, keepdims=True)
    return np.where(maps > 0.8, maps, 0).astype(np.float32)


@pytest.fixture(scope="module")
def transition():
    x = np.linspace(0, 1, N)
    logits = -40 * np.square(x[:, None] - x[None]) + np.random.default_rng(1).normal(size=(N, N))
    return np.asarray(solver.doubly_stochastic(jax.nn.softmax(logits, axis=-1)))


def brute_force(f, transition, tau, max_steps, criterion, interpolate):
    """One class, one patch at a time, straight from the wording: steps, and the last state."""
    steps, states = np.full(f.shape, float(max_steps), f.dtype), np.empty_like(f)
    for c, p in enumerate(f):
        if criterion == "saturation":
            p = p / p.max()
            steps[c, p > tau] = 0
        before_change = None
        for step in range(1, max_steps + 1):
            after = p @ transition
            if criterion == "saturation":
                after = after / after.max()
            for i in range(len(p)):
                if steps[c, i] < max_steps:
                    continue
                change = abs(after[i] - p[i])
                arrived = after[i] > tau if criterion == "saturation" else change <= tau
                if not arrived:
                    continue
                share = 1.0
                if interpolate and criterion == "saturation":
                    share = (tau - p[i]) / (after[i] - p[i])
                elif interpolate and before_change is not None:
                    share = (before_change[i] - tau) / (before_change[i] - change)
                steps[c, i] = step - 1 + share
            before_change = np.abs(after - p)
            p = after
        states[c] = p
    return steps, states


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("tau", [0.02, 0.3, 0.6])
def test_whole_steps_equal_a_numpy_loop_exactly(f, transition, criterion, tau):
    ours = solver.max_velocity(
        f, transition, tau=tau, max_steps=40, criterion=criterion, interpolate=False
    ).steps
    expected, _ = brute_force(f, transition, tau, 40, criterion, False)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_interpolated_steps_equal_a_numpy_loop(f, transition, criterion):
    ours = solver.max_velocity(f, transition, tau=0.1, max_steps=40, criterion=criterion).steps
    expected, _ = brute_force(f, transition, 0.1, 40, criterion, True)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_what_has_not_arrived_is_expected_by_its_state(f, transition):
    """max_steps (1 + log(tau / p)) after the last step; what arrived, at its step."""
    ours = solver.max_velocity(f, transition, tau=0.6, max_steps=3)
    steps, states = brute_force(f.astype(np.float64), transition, 0.6, 3, "saturation", True)
    arrived = states > 0.6
    assert 0.1 < arrived.mean() < 0.9 and int(ours.rounds) == 3
    np.testing.assert_array_equal(ours.arrived, arrived | (steps < 3))
    beyond = 3 * (1 + np.log(0.6 / states))
    np.testing.assert_allclose(ours.expected, np.where(ours.arrived, steps, beyond), rtol=1e-4)
    assert ours.expected[~ours.arrived].min() >= 3


def test_increments_that_never_settle_are_expected_at_the_cap(f, transition):
    ours = solver.max_velocity(f, transition, tau=1e-4, max_steps=5, criterion="increment")
    assert not ours.arrived.all()
    np.testing.assert_array_equal(ours.expected, ours.steps)
    np.testing.assert_array_equal(ours.steps[~ours.arrived], 5)


def test_rounds_end_with_the_last_arrival(f, transition):
    ours = solver.max_velocity(f, transition, interpolate=False)
    assert ours.arrived.all() and int(ours.rounds) == ours.steps.max()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_forward_derivatives_are_those_of_a_plain_loop(f, transition, criterion):
    """Through the interpolation: no step count changes within the small step taken here."""
    random, h = np.random.default_rng(3), 1e-7
    df, dt = random.normal(size=f.shape), random.normal(size=transition.shape) / N
    f, df = f + np.float32(0.01), np.where(f == f.max(1, keepdims=True), 0, df)
    up, down = (
        brute_force(
            f.astype(np.float64) + sign * h * df,
            transition.astype(np.float64) + sign * h * dt,
            0.1,
            40,
            criterion,
            True,
        )[0]
        for sign in (1, -1)
    )

    def steps(f, transition):
        found = solver.max_velocity(f, transition, tau=0.1, max_steps=40, criterion=criterion)
        return found.steps

    _, found = jax.jvp(steps, (f, transition), (df.astype(np.float32), dt.astype(np.float32)))
    expected = (up - down) / (2 * h)
    assert (expected != 0).mean() > 0.1
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)


def test_two_patches_in_closed_form():
    """T = [[1 − a, a], [a, 1 − a]] from (1, 0): the entries are (1 ± (1 − 2a)^l) / 2."""
    a, tau = 0.05, 0.5
    transition = np.array([[1 - a, a], [a, 1 - a]], np.float32)
    step = np.arange(100)
    ratio = (1 - (1 - 2 * a) ** step) / (1 + (1 - 2 * a) ** step)
    steps = solver.max_velocity(
        np.array([[1, 0]], np.float32), transition, tau=tau, interpolate=False
    ).steps
    np.testing.assert_array_equal(steps, [[0, np.argmax(ratio > tau)]])


def test_the_sooner_a_patch_arrives_the_higher_its_score(f, transition):
    found = solver.max_velocity(f, transition)
    np.testing.assert_allclose(found.scores, 1 / (1 + found.steps), rtol=1e-6)


def test_permuting_patches_permutes_steps(f, transition):
    order = np.random.default_rng(2).permutation(N)
    steps = solver.max_velocity(f, transition).steps
    permuted = solver.max_velocity(f[:, order], transition[np.ix_(order, order)]).steps
    np.testing.assert_allclose(permuted, steps[:, order], atol=1e-4)


def test_uniform_map_has_no_discrepancy(transition):
    result = solver.max_velocity(np.ones((1, N), np.float32), transition)
    np.testing.assert_array_equal(result.steps, np.zeros((1, N)))


def test_patches_out_of_reach_get_the_cap_without_taking_all_steps():
    blocks = np.kron(np.eye(2), np.full((4, 4), 0.25)).astype(np.float32)
    f = np.zeros((1, 8), np.float32)
    f[0, 0] = 1
    steps = solver.max_velocity(f, blocks, max_steps=10**9).steps  # would not return otherwise
    np.testing.assert_array_equal(steps[0, 4:], np.full(4, 1e9))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_everything_stays_float32_under_x64(f, transition, criterion):
    expected = solver.max_velocity(f, transition, criterion=criterion, max_steps=30)
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            maps, t = f.astype(dtype), transition.astype(dtype)
            found = solver.max_velocity(maps, t, criterion=criterion, max_steps=30)
            types = [jnp.float32] * 3 + [jnp.bool_, jnp.int32]
            assert [x.dtype for x in found] == types
            np.testing.assert_allclose(found.expected, expected.expected, rtol=1e-4, atol=1e-4)
            assert solver.propagate(maps, t).dtype == jnp.float32


def test_vmap_equals_loop(f, transition):
    fs = np.stack([f, f[::-1]])
    transitions = np.stack([transition, transition.T])
    together = jax.vmap(solver.max_velocity)(fs, transitions)
    for b in range(2):
        alone = solver.max_velocity(fs[b], transitions[b])
        np.testing.assert_allclose(together.steps[b], alone.steps, atol=1e-4)


def test_propagate_gathers_from_where_a_patch_looks(f, transition):
    np.testing.assert_allclose(solver.propagate(f, transition), f @ transition.T, atol=1e-5)


def test_bad_names_are_named(f, transition):
    with pytest.raises(ValueError, match="unknown velocity criterion 'saturate'"):
        solver.max_velocity(f, transition, criterion="saturate")
