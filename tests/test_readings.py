"""The table of open choices, and what the methods make of them."""

import dataclasses

import jax
import numpy as np
import pytest

from dsolo_jax import readings, solver
from dsolo_jax.readings import BUNDLES, METHODS, Readings, discrepancy

C, N = 4, 36


@pytest.fixture(scope="module")
def world():
    """Upright maps of three stripes, a class that is absent, and attention within the stripes."""
    stripe = np.arange(N) // 12
    noise = np.random.default_rng(0).normal(size=(C, N))
    f = 0.2 + 0.05 * (np.arange(C)[:, None] == stripe) + 0.005 * noise
    logits = 4.0 * (stripe[:, None] == stripe) + np.random.default_rng(1).normal(size=(N, N))
    presence = np.array([0.25, 0.25, 0.25, 0.15])
    attention = np.asarray(jax.nn.softmax(logits, axis=-1))
    return f.astype(np.float32), attention, presence.astype(np.float32), stripe


@pytest.mark.parametrize("method", METHODS)
def test_robust_readings_find_the_class_on_upright_maps(world, method):
    f, attention, presence, stripe = world
    scores = discrepancy(f, attention, presence, method=method, readings=BUNDLES["robust"])
    assert np.mean(np.argmax(scores, axis=0) == stripe) > 0.95


@pytest.mark.parametrize("method", ["kl", "path", "velocity", "fusion"])
def test_paper_readings_find_the_class_on_inverted_maps_only(world, method):
    f, attention, presence, stripe = (x[:3] if len(x) == C else x for x in world)

    def hits(maps):
        scores = discrepancy(maps, attention, presence, method=method, readings=BUNDLES["paper"])
        return np.mean(np.argmax(scores, axis=0) == stripe)

    assert hits(0.4 - f) > 0.9 and hits(f) < 0.1


def test_contrast_brings_all_classes_to_one(world):
    """A class of a tenth of the contrast scores as if it had all of it."""
    f, attention, presence, _ = world
    weak = f * np.where(np.arange(C) == 2, 0.1, 1)[:, None]
    plain = dataclasses.replace(BUNDLES["robust"], normalise="contrast", presence=0.0)
    scores = np.asarray(discrepancy(weak, attention, presence, method="kl", readings=plain))
    np.testing.assert_allclose(scores.std(axis=-1), weak.std(), rtol=1e-4)


def test_maps_turned_over_are_read_as_the_other_orientation(world):
    f, attention, presence, _ = world
    turned = dataclasses.replace(BUNDLES["paper"], orientation="negated")
    np.testing.assert_allclose(
        discrepancy(f, attention, presence, method="kl", readings=turned),
        discrepancy(-f, attention, presence, method="kl", readings=BUNDLES["paper"]),
    )


def test_kl_is_the_cosine_centred_in_its_own_units(world):
    f, attention, presence, _ = world
    plain = dataclasses.replace(BUNDLES["robust"], presence=0.0, level=0.0)
    scores = discrepancy(f, attention, presence, method="kl", readings=plain)
    offsets = np.asarray(scores) - f
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], f.shape), atol=1e-5)


def test_presence_adds_its_weight_times_the_class_cosine(world):
    f, attention, presence, _ = world
    scores = [
        discrepancy(
            f,
            attention,
            presence,
            method="kl",
            readings=dataclasses.replace(BUNDLES["robust"], presence=weight),
        )
        for weight in (0.0, 0.5)
    ]
    expected = np.broadcast_to(0.5 * presence[:, None], f.shape)
    np.testing.assert_allclose(scores[1] - scores[0], expected, atol=1e-6)


def test_level_gives_back_what_normalising_takes(world):
    """All of it makes the KL map the cosine again, part of it mixes the two."""
    f, attention, presence, _ = world
    bare = dataclasses.replace(BUNDLES["robust"], presence=0.0)
    none, some, whole = (
        discrepancy(
            f, attention, presence, method="kl", readings=dataclasses.replace(bare, level=level)
        )
        for level in (0.0, 0.25, 1.0)
    )
    np.testing.assert_allclose(whole, f, atol=1e-5)
    np.testing.assert_allclose(some, 0.75 * none + 0.25 * whole, atol=1e-5)
    # A class whose map is lower throughout falls behind by that share of it.
    bare = dataclasses.replace(bare, level=0.25)
    lower = f - 0.1 * (np.arange(C) == 1)[:, None]
    scores = discrepancy(
        lower,
        attention,
        presence,
        method="kl",
        readings=dataclasses.replace(bare, temperature=0.1, temperature_unit="cosine"),
    )
    higher = discrepancy(
        f,
        attention,
        presence,
        method="kl",
        readings=dataclasses.replace(bare, temperature=0.1, temperature_unit="cosine"),
    )
    np.testing.assert_allclose(
        higher - scores, 0.025 * (np.arange(C) == 1)[:, None] + np.zeros(N), atol=1e-5
    )


@pytest.mark.parametrize("method", ["kl", "velocity", "path"])
def test_a_temperature_in_spreads_knows_no_scale(world, method):
    """Cosines of ten times the spread, shifted: scores are ten times as large, and no other."""
    f, attention, presence, _ = world
    scores, scaled = (
        np.asarray(
            discrepancy(a * f + b, attention, a * presence, method=method, readings=Readings())
        )
        for a, b in ((1, 0), (10, 0.3))
    )
    scores, scaled = (x - x.mean() for x in (scores, scaled))
    np.testing.assert_allclose(scaled, 10 * scores, atol=1e-3)


def test_velocity_beside_presence_has_one_unit_whatever_the_graph(world):
    """Its deviation, what classes share in a patch aside, is a share of the KL map's."""
    f, attention, _, _ = world
    flatter = solver.propagate(attention, attention, num_steps=2)
    for graph in (attention, flatter):
        kl, velocity = (
            np.asarray(discrepancy(f, graph, np.zeros(C), method=method, readings=Readings()))
            for method in ("kl", "velocity")
        )
        kl, velocity = (x - x.mean(axis=0) for x in (kl, velocity))
        np.testing.assert_allclose(velocity.std(), 0.5 * kl.std(), rtol=1e-4)


def test_velocity_without_presence_is_the_solvers_bounded_score(world):
    f, attention, presence, _ = world
    plain = dataclasses.replace(
        BUNDLES["robust"],
        presence=0.0,
        level=0.0,
        velocity_normalise="minmax",
        velocity_suppress="range",
    )
    spread = f.max(1, keepdims=True) - f.min(1, keepdims=True)
    start = (f - f.min(1, keepdims=True)) / spread
    start = np.where(start >= 0.7, start, 0)
    transition = solver.doubly_stochastic(attention)
    expected = solver.max_velocity(start, transition, tau=plain.tau).scores
    scores = discrepancy(f, attention, presence, method="velocity", readings=plain)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_every_choice_of_every_reading_gives_finite_scores(world):
    f, attention, presence, _ = world
    for field in dataclasses.fields(Readings):
        for option in field.metadata["options"] or ():
            chosen = dataclasses.replace(BUNDLES["robust"], **{field.name: option})
            for method in ("kl", "path", "velocity"):
                scores = discrepancy(f, attention, presence, method=method, readings=chosen)
                assert np.isfinite(scores).all(), (field.name, option, method)


def test_readings_are_hashable_and_refuse_unknown_choices():
    assert hash(Readings()) == hash(BUNDLES["robust"])
    with pytest.raises(ValueError, match="unknown reading velocity_winner 'soon'; choose one of"):
        Readings(velocity_winner="soon")
    with pytest.raises(ValueError, match="unknown readings 'papers' .did you mean 'paper'"):
        readings.resolve("papers")


def test_constant_maps_are_no_discrepancy(world):
    _, attention, _, _ = world
    flat = np.full((2, N), 0.2, np.float32)
    for method in ("kl", "velocity"):
        scores = np.asarray(
            discrepancy(flat, attention, np.zeros(2), method=method, readings=BUNDLES["robust"])
        )
        np.testing.assert_allclose(scores, 0, atol=1e-5)
