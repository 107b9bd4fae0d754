"""optimal_logits against its account in numpy, and what is promised of the method of that name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import solver
from dsolo_jax.readings import resolve
from dsolo_jax.solver.discrepancy import METHODS, optimised
from dsolo_jax.solver.optimise import divergence, graph_target

C, N, T = 4, 36, 0.02


@pytest.fixture(scope="module")
def world():
    """Cosines of four classes, a graph, and the truth, which nobody has on the last two patches."""
    random = np.random.default_rng(0)
    truth = np.arange(N) // 9
    f = 0.2 + 0.03 * (np.arange(C)[:, None] == truth) + 0.03 * random.normal(size=(C, N))
    logits = 3.0 * (truth[:, None] == truth) + random.normal(size=(N, N))
    attention = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth[-2:] = -1
    return f.astype(np.float32), attention.astype(np.float32), truth.astype(np.int32)


@functools.cache
def program(**options):
    return jax.jit(functools.partial(solver.optimal_logits, temperature=T, **options))


def softmax(x):
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def loss(logits, target, entropy):
    p = softmax(logits)
    known = target.sum(0) > 0
    kl = (target * (np.log(np.where(target > 0, target, 1)) - np.log(p))).sum(0)
    return np.mean((kl - entropy * (p * np.log(p)).sum(0))[known])


def adam(f, attention, truth, *, target, steps, schedule="constant", entropy=0.0, every=10):
    """The whole of it in float64, the gradient written out."""
    z, m, v, losses = f / T, np.zeros_like(f), np.zeros_like(f), []
    for k in range(steps):
        if target == "oracle":
            t = np.eye(C + 1)[truth].T[:C]
        elif k % every == 0:
            q = softmax(z) @ attention.T
            t = q**2 / q.sum(1, keepdims=True)
            t = t / t.sum(0)
        losses.append(loss(z, t, entropy))
        p = softmax(z)
        of_entropy = -p * (np.log(p) - (p * np.log(p)).sum(0))
        g = (t.sum(0) > 0) * (p - t + entropy * of_entropy) / (t.sum(0) > 0).sum()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = 0.2 * {"constant": 1, "cosine": (1 + np.cos(np.pi * k / steps)) / 2}[schedule]
        root = np.sqrt(v / (1 - 0.999 ** (k + 1)))
        z = z - rate * m / (1 - 0.9 ** (k + 1)) / (root + 1e-2 / f.shape[1])
    return z * T, losses


@pytest.mark.parametrize(
    "options",
    [
        {"target": "graph", "steps": 25},
        {"target": "graph", "steps": 12, "schedule": "cosine", "entropy": 0.3, "every": 5},
        {"target": "oracle", "steps": 25, "entropy": 0.1},
    ],
    ids=str,
)
def test_equals_adam_in_numpy(world, options):
    f, attention, truth = world
    expected, losses = adam(f.astype(np.float64), attention.astype(np.float64), truth, **options)
    found = program(**options)(f, attention, truth)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    np.testing.assert_allclose(found.loss, losses, atol=1e-5)


def test_without_a_step_they_are_the_cosines(world):
    f, attention, truth = world
    for target in ("graph", "oracle"):
        found = program(target=target, steps=0)(f, attention, truth)
        np.testing.assert_array_equal(found.scores, f)
        assert found.loss.shape == (0,)
    presence = np.linspace(0.1, 0.3, C, dtype=np.float32)
    for weight, other in (("0", "logits"), ("0.5", "logits_presence")):
        readings = f"robust,optimise_steps=0,presence={weight}"
        np.testing.assert_array_equal(
            dsolo.discrepancy(f, attention, presence, method="optimise", readings=readings),
            dsolo.discrepancy(f, attention, presence, method=other, readings=readings),
        )


def test_the_truth_is_reached_where_there_is_one(world):
    f, _, truth = world
    assert np.mean(f.argmax(0) == truth) < 0.8
    found = program(target="oracle", steps=300)(f, None, truth)
    scores = np.asarray(found.scores)
    np.testing.assert_array_equal(scores.argmax(0)[:-2], truth[:-2])
    np.testing.assert_array_equal(scores[:, -2:], f[:, -2:])
    assert found.loss[-1] < 0.01 * found.loss[0]


def test_the_loss_falls(world):
    f, attention, truth = world
    assert np.all(np.diff(program(target="oracle", steps=25)(f, None, truth).loss) < 0)
    along = np.asarray(program(steps=40, every=10)(f, attention).loss).reshape(4, 10)
    assert np.all(along[:, -1] < along[:, 0])  # to each estimate of the target


@pytest.mark.parametrize("entropy", [0.0, 0.5])
def test_gradients_are_finite_differences(world, entropy):
    f, _, truth = world
    z = f.astype(np.float64) / T
    target = softmax(np.random.default_rng(3).normal(size=z.shape))
    target[:, truth < 0] = 0
    change, h = np.random.default_rng(4).normal(size=z.shape), 1e-5
    ends = [loss(z + sign * h * change, target, entropy) for sign in (1, -1)]
    with jax.enable_x64(True):
        assert float(divergence(z, target, entropy)) == pytest.approx(loss(z, target, entropy))
        gradient = np.asarray(jax.grad(divergence)(jnp.asarray(z), target, entropy))
    assert np.sum(gradient * change) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)
    assert not gradient[:, truth < 0].any()


def test_the_target_of_the_graph_is_sharpened_and_balanced(world):
    f, attention, _ = world
    p = softmax(f.astype(np.float64) / T)
    q = p @ attention.T.astype(np.float64)
    expected = q**2 / q.sum(1, keepdims=True)
    found = np.asarray(graph_target(p.astype(np.float32), attention))
    np.testing.assert_allclose(found, expected / expected.sum(0), rtol=1e-4)
    absent = np.concatenate([p, np.zeros((1, N))]).astype(np.float32)
    assert np.asarray(graph_target(absent, attention))[-1].max() < 1e-20  # and no 0 / 0


def test_entropy_makes_patches_more_decided(world):
    f, attention, _ = world

    def decided(**options):
        scores = np.asarray(program(steps=30, **options)(f, attention).scores, np.float64)
        return softmax(scores / T).max(0).mean()

    assert decided(entropy=0.5) > decided()


@pytest.mark.parametrize("target", ["graph", "oracle"])
def test_alone_and_mapped_it_is_the_same(world, target):
    f, attention, truth = world
    batch = np.stack([f, f[::-1]]), np.stack([attention, attention.T]), np.stack([truth] * 2)
    run = functools.partial(solver.optimal_logits, target=target, temperature=T)
    together = jax.jit(jax.vmap(run))(*batch)
    for one, *arrays in zip(together.scores, *batch, strict=True):
        np.testing.assert_allclose(one, program(target=target)(*arrays).scores, atol=1e-6)


def test_the_program_does_not_grow_with_the_steps(world):
    f, attention, _ = world
    sizes = {
        len(str(jax.make_jaxpr(functools.partial(solver.optimal_logits, steps=k))(f, attention)))
        for k in (100, 900)
    }
    assert len(sizes) == 1


def test_the_readings_are_those_of_the_method(world):
    f, attention, truth = world
    changes = {"steps": 7, "rate": 0.05, "entropy": 0.2, "every": 3, "schedule": "cosine"}
    text = ",".join(["robust", *(f"optimise_{name}={value}" for name, value in changes.items())])
    readings = resolve(text)
    options = changes | {"temperature": readings.temperature * np.std(f)}
    along = solver.optimal_logits(f, attention, **options)
    found = dsolo.discrepancy(f, attention, method="optimise", readings=text)
    np.testing.assert_allclose(found, along.scores, atol=1e-6)
    drawn = solver.optimal_logits(f, truth=truth, target="oracle", **options)
    found = optimised(f, resolve(f"{text},optimise_target=oracle"), truth=truth)
    np.testing.assert_allclose(found, drawn.scores, atol=1e-6)
    assert METHODS["optimise"].needs_graph


def test_errors_name_the_way_out(world):
    f, attention, truth = world
    with pytest.raises(ValueError, match="oracle is the ground truth.*only the ablation.*=graph"):
        readings = "robust,optimise_target=oracle"
        dsolo.discrepancy(f, attention, method="optimise", readings=readings)
    with pytest.raises(ValueError, match="target 'oracle' is made of truth, found None"):
        solver.optimal_logits(f, attention, target="oracle")
    with pytest.raises(ValueError, match="target 'graph' is made of attention, found None"):
        solver.optimal_logits(f, truth=truth)
    with pytest.raises(ValueError, match="unknown target 'orcle' .did you mean 'oracle'"):
        solver.optimal_logits(f, attention, target="orcle")
    with pytest.raises(ValueError, match="unknown schedule 'linear'; choose one of: constant, cos"):
        solver.optimal_logits(f, attention, schedule="linear")
    with pytest.raises(ValueError, match="f has shape"):
        solver.optimal_logits(f, attention[:3])
