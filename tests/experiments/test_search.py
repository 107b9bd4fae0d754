"""The rule by which readings are chosen, on tallies made up for it; and which way up maps are."""

import json

import numpy as np
import pytest
from running import call

import dsolo_jax as dsolo
from dsolo_jax import pipeline
from dsolo_jax.datasets import miniature
from dsolo_jax.readings import Readings
from experiments import bootstrap, search
from experiments.bootstrap import Tally

SCENES = 60
COUNTS = bootstrap.draws(SCENES, 2000)
OPTIONS = {"tau": (0.1, 0.3, 0.7), "presence": (0.5, 1.0), "temperature": (0.5, 0.2)}
START = Readings(tau=0.3, presence=0.5, temperature=0.5)


def world(quality, noise=0.0):
    """A measurement in which each scene's two classes have the IoU `quality(readings)`."""
    asked = []

    def measure(variants):
        asked.append(list(variants))
        found = {}
        for label, r in variants.items():
            seed = [round(100 * x) for x in (r.tau, r.presence, r.temperature)]
            shares = quality(r) + noise * np.random.default_rng(seed).normal(size=(SCENES, 2))
            union = np.full((SCENES, 2), 1000)
            found[label] = Tally((union * shares).astype(int), union)
        return found

    return measure, asked


# ------------------------------------------------------------------------------- the rule


def test_gains_of_several_readings_are_taken_together():
    measure, asked = world(
        lambda r: 0.4 + 0.1 * (r.tau == 0.7) + 0.02 * (r.tau == 0.1) + 0.05 * (r.presence == 1.0)
    )
    found = search.choose(START, OPTIONS, measure, COUNTS)
    assert found.readings == Readings(tau=0.7, presence=1.0, temperature=0.5)
    # Each change alone, and the best of each reading that gains together.
    assert asked == [
        ["", "tau=0.1", "tau=0.7", "presence=1.0", "temperature=0.2"],
        ["", "together"],
    ]
    assert found.gains["tau=0.7"].estimate == pytest.approx(10, abs=0.2)
    assert found.gains["tau=0.1"].low > 0  # it gains too, less than another value


def test_what_hurts_together_leaves_the_best_alone():
    def quality(r):
        changed = (r.tau == 0.7, r.presence == 1.0)
        return {(True, False): 0.5, (False, True): 0.45, (True, True): 0.3}.get(changed, 0.4)

    found = search.choose(START, OPTIONS, world(quality)[0], COUNTS)
    assert found.readings == Readings(tau=0.7, presence=0.5, temperature=0.5)


def test_a_gain_within_noise_is_not_taken():
    measure, asked = world(lambda r: 0.4 + 0.001 * (r.tau == 0.1), noise=0.2)
    found = search.choose(START, {"tau": (0.1, 0.3)}, measure, COUNTS)
    assert found.readings == START and len(asked) == 1
    low, _, high = found.gains["tau=0.1"]
    assert low < 0 < high


def test_the_more_is_tried_the_surer_a_gain_must_be():
    """A gain that one comparison would take, and one of forty does not."""

    def quality(r):
        return 0.4 + 0.035 * (r.tau == 0.7)

    measure, _ = world(quality, noise=0.07)
    alone = search.choose(START, {"tau": (0.7,)}, measure, COUNTS)
    assert alone.gains["tau=0.7"].low > 0 and alone.readings.tau == 0.7
    many = {"tau": (0.7,), "temperature": tuple(1 + np.arange(40) / 10)}
    among = search.choose(START, many, measure, COUNTS)
    assert among.gains["tau=0.7"].estimate == alone.gains["tau=0.7"].estimate
    assert among.gains["tau=0.7"].low < 0 and among.readings.tau == 0.3


def test_intervals_are_widened_for_all_changes_tried():
    measure, _ = world(lambda r: 0.4, noise=0.1)
    found = search.choose(START, OPTIONS, measure, COUNTS)
    assert len(found.gains) == 4
    tallies = measure({"": START, "tau=0.7": Readings(tau=0.7)})
    gains = []
    for count in COUNTS:  # the plain way: resample, sum, take the mean IoU
        of_set = [
            100 * np.mean((count @ tally.intersection) / (count @ tally.union))
            for tally in (tallies["tau=0.7"], tallies[""])
        ]
        gains.append(of_set[0] - of_set[1])
    low, high = np.quantile(gains, [0.025 / 4, 1 - 0.025 / 4])
    np.testing.assert_allclose(
        (found.gains["tau=0.7"].low, found.gains["tau=0.7"].high), (low, high), atol=1e-9
    )


# ------------------------------------------------------------------------------- the command


def test_a_search_of_few_readings_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_STARTS", ("maskclip", "vanilla"))
    options = {"path": {"epsilon": (1.0, 2.0), "presence": (0.0, 0.5)}}
    monkeypatch.setattr(search, "OPTIONS", options)
    monkeypatch.setattr(search, "_OF_WINNER", {"smallest": {}})
    flags = ("--search=3", "--limit=2", "--variants=robust", "--sources=appearance")
    done = call("ablate", *flags, "--batch_size=1", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "search.json").read_text())
    assert set(found["uprightness"]) == {"maskclip", "vanilla"}
    [(key, one)] = found["searches"].items()
    assert key == "robust, appearance, path"
    assert set(one["gains"]) == {"epsilon=1.0", "presence=0.0"}
    for low, gain, high in one["gains"].values():
        assert low <= gain <= high
    labels = [f"{key}, {name}" for name in ("begun with", "chosen")]
    assert list(found["held_out"]) == labels
    assert all(len(row) == 1 + len(search._CONTROLS) for row in found["held_out"].values())

    runs = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    of_split = {"tune": [], "validation": []}
    for results in runs:
        of_split[results["config"]["split"]].append(results)
    assert {results["num_images"] for results in of_split["tune"]} == {3}
    assert {results["num_images"] for results in of_split["validation"]} == {2}
    [begun] = [
        results
        for results in of_split["validation"]
        if (results["method"], results["config"]["readings"]) == ("path", "robust")
    ]
    assert found["held_out"][labels[0]][0][1] == pytest.approx(100 * begun["miou"])
    [control] = [r for r in of_split["validation"] if r["method"] == "class_token"][:1]
    over = found["held_out"][labels[0]][1][1]
    assert over == pytest.approx(100 * (begun["miou"] - control["miou"]))
    text = (tmp_path / "search.md").read_text()
    assert text in done.stdout and f"| {labels[1]} " in text
    assert "upright" in text and "gain on tune" in text


# ------------------------------------------------------------------------------- which way up


def test_auc_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(0)
    for ties in (1, 5, 1000):
        scores = random.integers(0, ties, 40) / ties
        positive = random.random(40) < 0.3
        pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
        expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
        assert search.auc(scores, positive) == pytest.approx(expected)
        assert search.auc(-scores, positive) == pytest.approx(1 - expected)
    for positive in (np.ones(40, bool), np.zeros(40, bool)):
        assert search.auc(scores, positive) == 0.5


def test_a_start_turned_over_is_inverted(monkeypatch):
    model, dataset = dsolo.load("miniature", graph=False), miniature.load("tune")
    found = search.uprightness(model, dataset, 2)
    assert set(found) == set(dsolo.clip.STARTS) - {"proxyclip"}
    assert found["maskclip"] > 0.7  # the start that the miniature's CLIP is served best by

    original = pipeline.class_maps

    def turned(*arguments, **options):
        maps = original(*arguments, **options)
        return maps._replace(cosines=-maps.cosines)

    monkeypatch.setattr(pipeline, "class_maps", turned)
    over = search.uprightness(model, dataset, 2)
    for start, area in found.items():
        assert over[start] == pytest.approx(1 - area, abs=1e-6)
    text = search._markdown({"maskclip": over["maskclip"]}, {}, {})
    assert "inverted" in text and "upright" not in text
