"""max_velocity against a plain numpy loop over classes."""

import jax
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
    """One class, one patch at a time, straight from the wording."""
    steps = np.full(f.shape, float(max_steps), np.float32)
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
                if criterion == "relative":
                    change = change / max(p[i], 1e-9)
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
            if criterion == "relative":
                before_change = before_change / np.maximum(p, 1e-9)
            p = after
    return steps


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("tau", [0.02, 0.3, 0.6])
def test_whole_steps_equal_a_numpy_loop_exactly(f, transition, criterion, tau):
    ours = solver.max_velocity(
        f, transition, tau=tau, max_steps=40, criterion=criterion, interpolate=False
    ).steps
    expected = brute_force(f, transition, tau, 40, criterion, False)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_interpolated_steps_equal_a_numpy_loop(f, transition, criterion):
    ours = solver.max_velocity(f, transition, tau=0.1, max_steps=40, criterion=criterion).steps
    np.testing.assert_allclose(
        ours, brute_force(f, transition, 0.1, 40, criterion, True), rtol=1e-4, atol=1e-4
    )


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


def test_scores_follow_the_winner(f, transition):
    early = solver.max_velocity(f, transition)
    late = solver.max_velocity(f, transition, winner="late")
    np.testing.assert_array_equal(early.steps, late.steps)
    np.testing.assert_allclose(early.scores, 1 / (1 + early.steps), rtol=1e-6)
    np.testing.assert_allclose(late.scores, late.steps / (1 + late.steps), rtol=1e-6)


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


def test_vmap_equals_loop(f, transition):
    fs = np.stack([f, f[::-1]])
    transitions = np.stack([transition, transition.T])
    together = jax.vmap(solver.max_velocity)(fs, transitions)
    for b in range(2):
        alone = solver.max_velocity(fs[b], transitions[b])
        np.testing.assert_allclose(together.steps[b], alone.steps, atol=1e-4)


def test_propagate_is_a_power_of_the_attention(f, transition):
    np.testing.assert_allclose(
        solver.propagate(f, transition, num_steps=3),
        f @ np.linalg.matrix_power(transition, 3).T,
        atol=1e-5,
    )


def test_bad_names_are_named(f, transition):
    with pytest.raises(ValueError, match="unknown velocity criterion 'saturate'"):
        solver.max_velocity(f, transition, criterion="saturate")
    with pytest.raises(ValueError, match="unknown velocity winner"):
        solver.max_velocity(f, transition, winner="first")
