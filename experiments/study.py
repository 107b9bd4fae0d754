"""Readings of the method chosen by rule: what is searched, and how a choice is made."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

import dsolo_jax as dsolo
from dsolo_jax import clip, datasets, pipeline, vocabulary
from dsolo_jax.readings import BUNDLES, NORMALISERS, ORIENTATIONS, Readings
from experiments import bootstrap, evaluation
from experiments.ablation import Setting
from experiments.bootstrap import Interval, Tally

# Values that the search tries for each reading. What makes a family consistent with itself, its
# signs and winners, is not searched: the families must not be mixed.
_SHARED = {
    "temperature": (0.25, 0.5, 1.0),
    "presence": (0.0, 0.1, 0.25, 0.5, 1.0),
    "level": (0.0, 0.1, 0.25),
}
OPTIONS = {
    "velocity": _SHARED
    | {
        "velocity_normalise": tuple(NORMALISERS),
        "velocity_suppress": ("none", "range"),
        "velocity_spread": (0.33, 0.5, 0.67, 1.0),
        "velocity_criterion": ("saturation", "relative"),
        "tau": (0.1, 0.3, 0.5, 0.7),
    },
    "path": _SHARED
    | {
        "normalise": tuple(NORMALISERS),
        "suppress": ("none", "range"),
        "path_cost": ("one_minus_rowmax", "one_minus_max", "minus_log_unit"),
        "epsilon": (0.03, 0.1, 0.3),
    },
}
# The paper's family is about vanilla maps, which it needs to be inverted: if they are not, they may
# be turned over. The other one may take any start.
OF_FAMILY = {
    "robust": {"start": clip.STARTS},
    "paper": {"orientation": ORIENTATIONS},
}

Measure = Callable[[Mapping[str, Readings]], Mapping[str, Tally]]


class Step(NamedTuple):
    """One round of the search: what each change alone gains, and what was taken."""

    gains: dict[str, Interval]
    taken: dict[str, Any]


def search(
    start: Readings,
    options: Mapping[str, tuple],
    measure: Measure,
    counts: Int[np.ndarray, "R S"],
    *,
    rounds: int = 2,
) -> tuple[Readings, list[Step]]:
    """Climbs from a bundle of readings, a round at a time.

    In a round every other value of every reading is measured alone. Of each reading the best value
    is a candidate if the 95 % interval of its paired gain lies above zero. All candidates together
    are taken if they gain at least what the best of them gains alone, or else that one.

    Args:
        measure: the tallies of some readings on the scenes that are chosen on.
        counts: of `bootstrap.draws`.
    """
    steps = []
    for _ in range(rounds):
        changes = {
            f"{name}={value}": {name: value}
            for name, values in options.items()
            for value in values
            if value != getattr(start, name)
        }
        gains = _gains(start, changes, measure, counts)
        candidates: dict[str, str] = {}
        for label, gain in sorted(gains.items(), key=lambda item: item[1].estimate):
            if gain.low > 0:
                candidates[label.partition("=")[0]] = label  # the last one is the best
        if not candidates:
            return start, [*steps, Step(gains, {})]
        best = max(candidates.values(), key=lambda label: gains[label].estimate)
        taken = changes[best]
        if len(candidates) > 1:
            together = {k: v for label in candidates.values() for k, v in changes[label].items()}
            [joint] = _gains(start, {"together": together}, measure, counts).values()
            if joint.estimate >= gains[best].estimate:
                taken = together
        steps.append(Step(gains, taken))
        start = dataclasses.replace(start, **taken)
    return start, steps


def _gains(
    start: Readings,
    changes: Mapping[str, Mapping[str, Any]],
    measure: Measure,
    counts: Int[np.ndarray, "R S"],
) -> dict[str, Interval]:
    variants = {label: dataclasses.replace(start, **change) for label, change in changes.items()}
    tallies = measure({"": start, **variants})
    return {label: bootstrap.difference(tallies[label], tallies[""], counts) for label in variants}


# Raw logits have no presence term, and are never turned over.
_RAW = {"presence": 0.0, "orientation": "as_is"}


class Held(NamedTuple):
    """A row of the report on held-out pictures, in percent and points."""

    label: str
    miou: Interval
    over_logits: Interval
    over_propagate: Interval


def held_out(
    chosen: Mapping[tuple[str, str, str], tuple[Readings, list[Step]]],
) -> tuple[dict[str, Setting], dict[str, tuple[str, str]]]:
    """What is measured of each search, and which controls each row is compared to.

    The controls have the readings of the row itself: the raw logits of its start, without the
    presence term, and one plain step of attention.
    """
    settings, compared = {}, {}
    for (family, source, method), (found, _) in chosen.items():
        for name, r in (("bundle", BUNDLES[family]), ("chosen", found)):
            prefix = f"{family}, {source}, {name}"
            label, logits, propagate = (
                f"{prefix}, {method}",
                f"{prefix} of {method}, logits",
                f"{prefix} of {method}, propagate",
            )
            of = (("attention", source),)
            settings |= {
                label: Setting(method, r, of),
                logits: Setting("logits", dataclasses.replace(r, **_RAW), of),
                propagate: Setting("propagate", r, of),
            }
            compared[label] = logits, propagate
    return settings, compared


def report(
    tallies: Mapping[str, Tally],
    compared: Mapping[str, tuple[str, str]],
    counts: Int[np.ndarray, "R S"],
) -> list[Held]:
    """Each compared row with its mIoU and its paired gains over its controls."""
    return [
        Held(
            label,
            bootstrap.interval(tallies[label], counts),
            *(bootstrap.difference(tallies[label], tallies[c], counts) for c in controls),
        )
        for label, controls in compared.items()
    ]


def markdown(
    rows: list[Held], chosen: Mapping[tuple[str, str, str], tuple[Readings, list[Step]]]
) -> str:
    """The report, and what each search changed."""
    lines = ["| readings | mIoU % | over raw logits | over propagate |", "| --- " * 4 + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    lines += ["", "| search | changes, in the order taken |", "| --- | --- |"]
    for key, (_, steps) in chosen.items():
        taken = "; ".join(
            ", ".join(f"{name}={value}" for name, value in step.taken.items()) for step in steps
        )
        lines.append(f"| {', '.join(key)} | {taken or 'none'} |")
    return "\n".join(lines) + "\n"


def digest(setting: Setting) -> str:
    """A folder's name for a setting."""
    return hashlib.sha256(repr(setting).encode()).hexdigest()[:16]


def uprightness(model: dsolo.Model, dataset: datasets.Dataset, count: int) -> dict[str, float]:
    """Rank correlation of each start's maps with the naclip start's, over the first pictures."""
    words = vocabulary.parse(dataset.classes)
    found: dict[str, list[float]] = {start: [] for start in clip.STARTS}
    for [example] in evaluation.batches(model, dataset, list(range(count)), 1):
        pictures = [example.picture]
        graph = pipeline.graph(model, pictures)
        maps = {
            start: np.asarray(pipeline.encode(model, pictures, words, start, graph).cosines)
            for start in clip.STARTS
        }
        for start, values in found.items():
            values.append(rank_correlation(maps[start], maps["naclip"]))
    return {start: float(np.mean(values)) for start, values in found.items()}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, along the last axis, mean over the others."""
    ranks = [np.argsort(np.argsort(x, axis=-1), axis=-1).astype(float) for x in (a, b)]
    ranks = [x - x.mean(axis=-1, keepdims=True) for x in ranks]
    norms = [np.linalg.norm(x, axis=-1) for x in ranks]
    return float(np.mean((ranks[0] * ranks[1]).sum(axis=-1) / (norms[0] * norms[1])))
