"""The table of open choices, and the one line it is written as."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsolo_jax as dsolo
from dsolo_jax.readings import BUNDLES, Readings, described, resolve


def test_bundles_are_known_by_name_and_the_default_is_robust():
    assert resolve("robust") == Readings() == BUNDLES["robust"] == dsolo.Readings()
    paper = resolve("paper")
    assert (paper.start, paper.winner, paper.presence, paper.tau) == ("vanilla", "largest", 0, 0.3)
    assert resolve(paper) is paper


def test_changes_follow_the_bundle():
    changed = resolve("robust,tau=0.3,presence=0")
    assert changed == dataclasses.replace(Readings(), tau=0.3, presence=0.0)
    assert resolve(" paper , max_steps = 7,winner=smallest ") == dataclasses.replace(
        BUNDLES["paper"], max_steps=7, winner="smallest"
    )
    assert isinstance(resolve("robust,max_steps=7").max_steps, int)
    assert isinstance(resolve("robust,tau=1").tau, float)


@pytest.mark.parametrize(
    "text, message",
    [
        ("papers", "unknown readings 'papers' .did you mean 'paper'.*choose one of: robust, paper"),
        ("", "unknown readings ''"),
        ("tau=0.3", "unknown readings 'tau=0.3'.*choose one of: robust, paper"),
        ("robust,taw=0.3", "unknown reading 'taw' .did you mean 'tau'"),
        ("robust,", "unknown reading ''"),
        ("robust,tau", "reading tau is '', wanted tau=float, as in tau=0.5"),
        ("robust,tau=soon", "reading tau is 'soon', wanted tau=float, as in tau=0.5"),
        ("robust,max_steps=1.5", "reading max_steps is '1.5', wanted max_steps=int"),
        ("robust,winner=soon", "unknown reading winner 'soon'; choose one of: smallest, largest"),
        ("robust,suppress=rnge", "unknown reading suppress 'rnge' .did you mean 'range'"),
    ],
)
def test_errors_name_field_value_and_way_out(text, message):
    with pytest.raises(ValueError, match=message):
        resolve(text)


def test_readings_are_hashable_and_frozen():
    assert hash(Readings()) == hash(BUNDLES["robust"]) and len({*BUNDLES.values()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Readings().tau = 0.1
    with pytest.raises(ValueError, match="unknown reading start 'vanila' .did you mean 'vanilla'"):
        Readings(start="vanila")


@st.composite
def any_readings(draw):
    values = {}
    for field in dataclasses.fields(Readings):
        if field.metadata["options"]:
            values[field.name] = draw(st.sampled_from(field.metadata["options"]))
        elif isinstance(field.default, int):
            values[field.name] = draw(st.integers(1, 10_000))
        else:
            values[field.name] = draw(st.floats(*field.metadata["range"]))
    return Readings(**values)


@settings(max_examples=50, deadline=None)
@given(any_readings())
def test_a_description_gives_the_same_readings_back(readings):
    assert resolve(described(readings)) == readings


def test_descriptions_are_short():
    for name, bundle in BUNDLES.items():
        assert described(bundle) == name
    assert described(resolve("robust,tau=0.3")) == "robust,tau=0.3"
    assert described(resolve("paper,presence=0.25")) == "paper,presence=0.25"
    assert described(resolve("robust,tau=0.5,presence=0.5")) == "robust"


@pytest.mark.parametrize(
    "text, message",
    [
        ("robust,tau=-5", "reading tau is -5.0, wanted float from 1e-06 to 1e.09, such as 0.5"),
        ("robust,tau=nan", "reading tau is nan"),
        ("robust,epsilon=inf", "reading epsilon is inf"),
        ("robust,max_steps=0", "reading max_steps is 0, wanted int from 1 to"),
        ("robust,suppress_below=1.5", "reading suppress_below is 1.5, wanted float from 0 to 1"),
        ("robust,presence=-1", "reading presence is -1.0"),
    ],
)
def test_numbers_out_of_range_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        resolve(text)
