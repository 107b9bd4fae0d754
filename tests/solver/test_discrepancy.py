"""The whole method as one function of arrays, against its account in numpy with plans of POT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

import dsolo_jax as dsolo
from dsolo_jax import solver
from dsolo_jax.readings import BUNDLES, Readings, resolve
from dsolo_jax.solver.discrepancy import METHODS, needs_graph

C, N = 4, 36
CONTROLS = ("class_token",)
DISCREPANCIES = ("kl", "path", "velocity", "fusion", "propagate", "class_token")
WITHOUT_PRESENCE = ("logits", "logits_propagate", "label_propagation")
discrepancy = jax.jit(dsolo.discrepancy, static_argnames=("method", "readings"))


@pytest.fixture(scope="module")
def world():
    """Upright maps of three stripes, a class that is absent, and attention within the stripes."""
    stripe = np.arange(N) // 12
    noise = np.random.default_rng(0).normal(size=(C, N))
    f = 0.2 + 0.05 * (np.arange(C)[:, None] == stripe) + 0.005 * noise
    logits = 4.0 * (stripe[:, None] == stripe) + np.random.default_rng(1).normal(size=(N, N))
    presence = np.array([0.25, 0.25, 0.25, 0.15])
    attention = np.asarray(jax.nn.softmax(logits.astype(np.float32), axis=-1))
    return f.astype(np.float32), attention, presence.astype(np.float32), stripe


# ---- the oracle ----------------------------------------------------------------------------------


def maps(f, r):
    """Suppressed first, then normalised."""
    low, high = f.min(1, keepdims=True), f.max(1, keepdims=True)
    if r.suppress == "range":
        weak = f - low < r.suppress_below * (high - low)
        f = np.where(weak, np.minimum(f, 0), f)
    low, high = f.min(1, keepdims=True), f.max(1, keepdims=True)
    if r.normalise == "minmax":
        return (f - low) / (high - low)
    if r.normalise == "logits":
        return np.maximum(100 * f, 0)
    return f


def kl(f, attention, r):
    temperature = r.temperature * f.std()
    e = np.exp(maps(f, r) / temperature)
    return temperature * sign(r) * -np.log(N * e / e.sum(1, keepdims=True))


def path(f, attention, r):
    cost = {
        "minus_log": -np.log(0.99 * attention + 0.01 / N),
        "one_minus_max": 1 - attention / attention.max(),
    }[r.path_cost]
    scores = []
    for q in softmaxed(f, r):
        plan = ot.bregman.sinkhorn_log(
            q / q.sum(), np.full(N, 1 / N), cost, r.epsilon, numItermax=5000, stopThr=1e-13
        )
        scores.append(sign(r) * N * (plan * cost).sum(0))
    return in_unit(np.array(scores), f)


def velocity(f, attention, r):
    t = attention
    for _ in range(r.ipf_iters):
        t = t / t.sum(0)
        t = t / t.sum(1, keepdims=True)
    p = softmaxed(f, r)
    p = p / p.max(1, keepdims=True)
    arrival = np.where(p > r.tau, 0.0, np.inf)
    for step in range(r.max_steps):
        after = p @ t
        after = after / after.max(1, keepdims=True)
        arrives = (after > r.tau) & np.isinf(arrival)
        arrival[arrives] = step + (r.tau - p[arrives]) / (after - p)[arrives]
        p = after
    missing = np.isinf(arrival)
    arrival[missing] = r.max_steps * (1 + np.log(r.tau / p[missing]))
    return in_unit(sign(r) * np.log(1 + arrival), f)


def fusion(f, attention, r):
    return (path(f, attention, r) + velocity(f, attention, r)) / 2


def propagate(f, attention, r):
    return in_unit(kl(f, attention, r) @ attention.T, f)


def logits_propagate(f, attention, r):
    return f @ attention.T


def label_propagation(f, attention, r):
    w = (attention + attention.T) / 2
    w = w - np.diag(np.diag(w))
    root = np.sqrt(w.sum(1))
    s = w / root / root[:, None]
    return (1 - r.alpha) * np.linalg.solve(np.eye(N) - r.alpha * s, f.T).T


def softmaxed(f, r):
    if r.normalise != "softmax":
        return maps(f, r)
    e = np.exp(maps(f, r) / (r.temperature * f.std()))
    return N * e / e.sum(1, keepdims=True)


def sign(r):
    return {"smallest": -1, "largest": 1}[r.winner]


def in_unit(scores, f):
    scores = scores - scores.mean(0)
    return scores * 0.6 * centred(f).std() / scores.std()


def centred(f):
    """Less each class's mean and each patch's."""
    return f - f.mean(1, keepdims=True) - f.mean(0) + f.mean()


@pytest.mark.parametrize(
    "method, readings",
    [
        (kl, "robust"),
        (kl, "robust,suppress=range"),
        (kl, "robust,winner=largest,presence=0,temperature=2"),
        (path, "robust,sinkhorn_iters=1000"),
        (path, "robust,sinkhorn_iters=1000,suppress=range,suppress_below=0.4"),
        (path, "robust,sinkhorn_iters=2000,path_cost=one_minus_max,epsilon=0.1,winner=largest"),
        (velocity, "robust"),
        (velocity, "robust,suppress=range,tau=0.3,max_steps=4"),
        (velocity, "robust,normalise=minmax,winner=largest"),
        (velocity, "robust,normalise=logits,suppress=range,tau=0.8"),
        (fusion, "robust,sinkhorn_iters=1000"),
        (propagate, "robust,suppress=range"),
        (logits_propagate, "robust"),
        (label_propagation, "robust"),
        (label_propagation, "paper,alpha=0.5"),
    ],
)
def test_every_method_equals_its_numpy_account(world, method, readings):
    """Everything in float64 from the cosines on; suppression on them, before any normalisation."""
    f, attention, presence, _ = world
    r = resolve(readings)
    exact = [x.astype(np.float64) for x in (f, attention)]
    weight = METHODS[method.__name__].presence(r)
    expected = method(*exact, r) + weight * presence[:, None]
    ours = discrepancy(f, attention, presence, method=method.__name__, readings=readings)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-4 * expected.std())


# ---- what is promised of it ----------------------------------------------------------------------


def test_logits_are_the_cosines_and_nothing_else(world):
    f, attention, presence, _ = world
    for readings in ("robust", "paper", "robust,suppress=range,presence=3"):
        for graph in (None, attention):
            ours = discrepancy(f, graph, presence, method="logits", readings=readings)
            np.testing.assert_array_equal(ours, f)


def test_the_class_token_alone_gives_a_picture_one_label(world):
    f, _, presence, _ = world
    ours = discrepancy(f, None, presence, method="class_token")
    np.testing.assert_array_equal(ours, np.broadcast_to(presence[:, None], f.shape))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "class_token"])
def test_no_weight_on_presence_only_drops_its_term(world, method):
    f, attention, presence, _ = world
    # Unwrapped: the same programs before the term, not three that may round in three ways.
    some, none, absent = (
        np.asarray(dsolo.discrepancy.__wrapped__(*arrays, method=method, readings=readings))
        for arrays, readings in (
            ((f, attention, presence), "robust,presence=0.5"),
            ((f, attention, presence), "robust,presence=0"),
            ((f, attention, None), "robust,presence=0.5"),
        )
    )
    term = 0 if method in WITHOUT_PRESENCE else 0.5 * presence[:, None] + np.zeros((C, N))
    np.testing.assert_allclose(some - none, term, atol=1e-6)
    np.testing.assert_array_equal(none, absent)


@pytest.mark.parametrize("method", ["path", "velocity", "fusion", "propagate"])
def test_scores_found_along_a_graph_have_one_scale(world, method):
    """0.6 of the deviation of the cosines, class and patch means taken away, whatever the graph."""
    f, attention, _, _ = world
    for graph in (attention, attention @ attention):
        scores = np.asarray(discrepancy(f, graph, method=method))
        np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-6)
        if method != "fusion":  # the mean of two of that scale
            np.testing.assert_allclose(scores.std(), 0.6 * centred(f).std(), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_attention_is_needed_where_it_is_looked_at(world, method):
    f, attention, presence, _ = world
    if needs_graph(method):
        with pytest.raises(ValueError, match=f"'{method}' needs the attention.*found None.* kl, "):
            dsolo.discrepancy(f, None, presence, method=method)
    else:
        np.testing.assert_array_equal(
            discrepancy(f, None, presence, method=method),
            discrepancy(f, attention, presence, method=method),
        )


@pytest.mark.parametrize("method", METHODS)
def test_it_can_be_mapped_over_pictures(world, method):
    f, attention, presence, _ = world
    batch = np.stack([f, f[::-1]]), np.stack([attention, attention.T]), np.stack([presence] * 2)
    together = jax.jit(jax.vmap(lambda *arrays: dsolo.discrepancy(*arrays, method=method)))(*batch)
    for one, *arrays in zip(together, *batch, strict=True):
        np.testing.assert_allclose(one, discrepancy(*arrays, method=method), atol=1e-5)


def test_it_can_be_exported(world):
    f, attention, presence, _ = world

    @jax.jit
    def scores(f, attention, presence):
        return dsolo.discrepancy(f, attention, presence, method="path", readings="robust,tau=0.3")

    exported = jax.export.export(scores)(f, attention, presence)
    expected = scores(f, attention, presence)
    np.testing.assert_array_equal(exported.call(f, attention, presence), expected)
    pytest.importorskip("flatbuffers")
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(f, attention, presence), expected)


def test_unjitted_it_is_the_same_function(world):
    f, attention, presence, _ = world
    found = dsolo.discrepancy(jnp.asarray(f), attention, presence)
    np.testing.assert_allclose(found, discrepancy(f, attention, presence), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_everything_stays_float32_under_x64(world, method):
    """With the same values; what comes in as float64 leaves as float32 too."""
    f, attention, presence, _ = world
    expected = np.asarray(discrepancy(f, attention, presence, method=method))
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            arrays = (x.astype(dtype) for x in (f, attention, presence))
            found = discrepancy(*arrays, method=method)
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in CONTROLS])
def test_robust_readings_find_the_class_on_upright_maps(world, method):
    f, attention, presence, stripe = world
    scores = discrepancy(f, attention, presence, method=method)
    assert np.mean(np.argmax(scores, axis=0) == stripe) > 0.95


@pytest.mark.parametrize("method", ["kl", "path", "velocity", "fusion"])
def test_paper_readings_find_the_class_on_inverted_maps_only(world, method):
    f, attention, presence, stripe = (x[:3] if len(x) == C else x for x in world)

    def hits(maps):
        scores = discrepancy(maps, attention, presence, method=method, readings="paper")
        return np.mean(np.argmax(scores, axis=0) == stripe)

    assert hits(0.4 - f) > 0.9 and hits(f) < 0.1


def test_kl_is_the_cosine_less_its_class_level(world):
    f, attention, presence, _ = world
    scores = discrepancy(f, attention, presence, method="kl", readings="robust,presence=0")
    offsets = np.asarray(scores) - f
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], f.shape), atol=1e-5)


@pytest.mark.parametrize("method", ["kl", "velocity", "path"])
def test_a_temperature_in_deviations_knows_no_scale(world, method):
    """Cosines of ten times the spread, shifted: scores are ten times as large, and no other."""
    f, attention, presence, _ = world
    scores, scaled = (
        np.asarray(discrepancy(a * f + b, attention, a * presence, method=method))
        for a, b in ((np.float32(1), np.float32(0)), (np.float32(10), np.float32(0.3)))
    )
    scores, scaled = (x - x.mean() for x in (scores, scaled))
    np.testing.assert_allclose(scaled, 10 * scores, atol=1e-3)


def test_permuting_patches_permutes_scores(world):
    f, attention, presence, _ = world
    order = np.random.default_rng(2).permutation(N)
    for method in ("path", "velocity"):
        scores = discrepancy(f, attention, presence, method=method)
        moved = discrepancy(f[:, order], attention[np.ix_(order, order)], presence, method=method)
        np.testing.assert_allclose(moved, scores[:, order], atol=1e-5)


def test_every_choice_of_every_reading_gives_finite_scores(world):
    f, attention, presence, _ = world
    for field in dataclasses.fields(Readings):
        if field.name in ("start", "upsample"):  # of other stages
            continue
        for option in field.metadata["options"] or ():
            chosen = dataclasses.replace(BUNDLES["robust"], **{field.name: option})
            for method in ("path", "velocity"):
                scores = discrepancy(f, attention, presence, method=method, readings=chosen)
                assert np.isfinite(scores).all(), (field.name, option, method)


@pytest.mark.parametrize("method", DISCREPANCIES)
def test_constant_maps_are_no_discrepancy(world, method):
    _, attention, _, _ = world
    flat = np.full((2, N), 0.2, np.float32)
    np.testing.assert_allclose(discrepancy(flat, attention, method=method), 0, atol=1e-5)


def test_unknown_names_are_named(world):
    f, attention, _, _ = world
    with pytest.raises(ValueError, match="unknown method 'pth' .did you mean 'path'"):
        dsolo.discrepancy(f, attention, method="pth")
    with pytest.raises(ValueError, match="unknown readings 'papers' .did you mean 'paper'"):
        dsolo.discrepancy(f, attention, readings="papers")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damaged", ["cosine", "attention"])
def test_what_is_not_finite_gives_scores_that_are_not(world, method, damaged):
    """One number of many, in the cosines or the graph: no method makes finite scores of it."""
    f, attention, presence, _ = (x.copy() for x in world)
    if damaged == "attention" and not needs_graph(method):
        return
    for value in (np.nan, np.inf, -np.inf) if damaged == "cosine" else (np.nan,):
        (f if damaged == "cosine" else attention)[2, 3] = value
        for readings in ("robust", "paper", "robust,normalise=minmax,suppress=range"):
            found = discrepancy(f, attention, presence, method=method, readings=readings)
            assert not np.isfinite(found).all(), (value, readings)


@pytest.mark.parametrize("arrays", ["f", "attention", "batch"])
def test_arrays_of_another_shape_are_named(world, arrays):
    f, attention, _, _ = world
    if arrays == "batch":
        f, attention = f[None], attention[None]
    else:
        f, attention = (f[0], attention) if arrays == "f" else (f, attention[:5])
    with pytest.raises(ValueError, match=r"f has shape .*wanted .C, N. and .N, N.*jax.vmap"):
        dsolo.discrepancy(f, attention)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_class_maps_out_of_range_are_refused_where_they_can_be_seen(world, value):
    """`solver.kl_discrepancy` and the others called with arrays; a jitted one cannot look."""
    f, attention, _, _ = world
    calls = (
        solver.kl_discrepancy,
        lambda f: solver.optimal_path(f, attention).scores,
        lambda f: solver.max_velocity(f, attention).scores,
    )
    bad = np.where(np.arange(N) == 3, np.float32(value), f)
    for call in calls:
        for wrong, words in (
            (bad, "class maps f go from"),
            (f[0], "f has shape"),
            (f[None], "f h"),
        ):
            with pytest.raises(ValueError, match=words):
                call(wrong)
        assert np.isfinite(jax.jit(call)(f)).all()
        if not value < 0:
            assert not np.isfinite(jax.jit(call)(bad)).all()


def test_thresholds_out_of_range_are_named(world):
    f, attention, _, _ = world
    for tau in (-5, 0, float("nan")):
        with pytest.raises(ValueError, match=f"tau is {tau}; it must be above 0"):
            solver.max_velocity(f, attention, tau=tau)
    with pytest.raises(ValueError, match="epsilon is nan"):
        solver.optimal_path(f, attention, epsilon=float("nan"))
    with pytest.raises(ValueError, match="f has shape"):
        solver.doubly_stochastic(attention[:3])
