"""Readings of the method chosen by rule: what is searched, how it is chosen and reported."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import mannwhitneyu

import dsolo_jax as dsolo
from dsolo_jax import clip, datasets, pipeline, vocabulary
from dsolo_jax.pipeline import Setting
from dsolo_jax.readings import Readings, described
from dsolo_jax.utils import checks, fingerprint
from experiments import bootstrap
from experiments.bootstrap import Interval, Tally
from experiments.tables import aligned

# Values that the search tries for each reading. Which discrepancy wins is not searched: it makes a
# family consistent with itself, and the families must not be mixed. Nor is the start where the
# largest wins, which is about vanilla maps.
_SHARED = {
    "temperature": (0.25, 0.5, 1.0),
    "presence": (0.0, 0.25, 0.5, 1.0),
    "normalise": ("softmax", "minmax"),
    "suppress": ("none", "range"),
    "spatial_sigma": (1.0, 2.0, 3.0),
}
OPTIONS = {
    "velocity": _SHARED
    | {
        "velocity_criterion": ("saturation", "increment"),
        "tau": (0.1, 0.3, 0.5, 0.7),
        "max_steps": (30, 100),
    },
    "path": _SHARED
    | {"path_cost": ("minus_log", "one_minus_max"), "epsilon": (0.1, 1.0, 2.0, 4.0)},
}
# CLIP's own: what is mixed by a graph depends on another network.
_STARTS = tuple(start for start in clip.STARTS if not clip.needs_graph(start))
_OF_WINNER = {"smallest": {"start": _STARTS}, "largest": {}}
_CONTROLS = ("class_token", "logits_presence", "propagate")

Measure = Callable[[Mapping[str, Readings]], Mapping[str, Tally]]


class Choice(NamedTuple):
    """What a search ended with, and what each change alone gained on its way."""

    readings: Readings
    gains: dict[str, Interval]


def choose(
    start: Readings,
    options: Mapping[str, Sequence],
    measure: Measure,
    counts: Int[np.ndarray, "R S"],
) -> Choice:
    """Changes each reading alone, and takes what surely gains.

    Of each reading the best value is a candidate if its paired gain lies above zero by an interval
    that is widened for the number of all changes tried. All candidates together are taken if they
    gain at least what the best of them gains alone, or else that one.

    Args:
        measure: the tallies of some readings on the scenes that are chosen on.
        counts: of `bootstrap.draws`.
    """
    changes = {
        f"{name}={value}": {name: value}
        for name, values in options.items()
        for value in values
        if value != getattr(start, name)
    }
    gains = _gains(start, changes, measure, counts)
    ranked = sorted(gains, key=lambda label: gains[label].estimate)
    # Of each reading the best that gains, as the last one counts.
    candidates = {label.partition("=")[0]: label for label in ranked if gains[label].low > 0}
    if not candidates:
        return Choice(start, gains)
    best = max(candidates.values(), key=ranked.index)
    taken = changes[best]
    if len(candidates) > 1:
        together = {k: v for label in candidates.values() for k, v in changes[label].items()}
        [joint] = _gains(start, {"together": together}, measure, counts).values()
        if joint.estimate >= gains[best].estimate:
            taken = together
    return Choice(dataclasses.replace(start, **taken), gains)


def _gains(
    start: Readings,
    changes: Mapping[str, Mapping[str, Any]],
    measure: Measure,
    counts: Int[np.ndarray, "R S"],
) -> dict[str, Interval]:
    variants = {label: dataclasses.replace(start, **change) for label, change in changes.items()}
    tallies = measure({"": start, **variants})
    compare = partial(bootstrap.difference, counts=counts, comparisons=len(changes))
    return {label: compare(tallies[label], tallies[""]) for label in variants}


def study(
    load: Callable[..., dsolo.Model],
    tune: datasets.Dataset,
    held_out: datasets.Dataset,
    measure_tune: Callable,
    measure_held_out: Callable,
    output_dir: Path,
    *,
    variants: Mapping[str, Readings],
    sources: Sequence[str],
    methods: Sequence[str],
    tune_limit: int,
    limit: int | None,
) -> tuple[str, dict[str, Any]]:
    """Searches from each variant, by source and method, on `tune`, and reports on `held_out`.

    Args:
        load: of a model, with changes.
        variants: by name, readings that a search begins with.
        measure_tune, measure_held_out: `ablation.measure` of either dataset.

    Returns:
        A study as text for people and as content for a JSON file.
    """
    for method in methods:
        checks.choose("method to search", method, OPTIONS)
    scenes = len(tune.ids[:tune_limit])
    upright = uprightness(load(graph=False), tune, min(50, scenes))
    counts = bootstrap.draws(scenes, 10_000)  # enough for far tails
    known: dict[str, Tally] = {}

    def setting(method: str, readings: Readings, source: str, dataset: datasets.Dataset):
        threshold = dataset.protocol.threshold(method)
        return Setting(method, readings, threshold), (("attention", source),)

    def measure(method: str, source: str, variants: Mapping[str, Readings]):
        wanted = {label: setting(method, r, source, tune) for label, r in variants.items()}
        lacking = {_digest(one): one for one in wanted.values() if _digest(one) not in known}
        known.update(measure_tune(lacking, output_dir / "tune", what=f"{source} {method}"))
        return {label: known[_digest(one)] for label, one in wanted.items()}

    chosen = {
        (variant, source, method): choose(
            start,
            OPTIONS[method] | _OF_WINNER[start.winner],
            partial(measure, method, source),
            counts,
        )
        for variant, start in variants.items()
        for source in sources
        for method in methods
    }
    compared = {  # each result and its controls
        f"{', '.join(key)}, {name}": [
            setting(method, readings, key[1], held_out) for method in (key[2], *_CONTROLS)
        ]
        for key, choice in chosen.items()
        for name, readings in (("begun with", variants[key[0]]), ("chosen", choice.readings))
    }
    wanted = {_digest(one): one for settings in compared.values() for one in settings}
    tallies = measure_held_out(wanted, output_dir / "held_out", what="held out")
    counts = bootstrap.draws(len(held_out.ids[:limit]))
    rows = {}
    for label, settings in compared.items():
        result, *controls = (tallies[_digest(one)] for one in settings)
        gains = (bootstrap.difference(result, control, counts) for control in controls)
        rows[label] = [bootstrap.interval(result, counts), *gains]
    searches = {
        ", ".join(key): {"chosen": described(choice.readings), "gains": choice.gains}
        for key, choice in chosen.items()
    }
    content = {"uprightness": upright, "searches": searches, "held_out": rows}
    return _markdown(upright, rows, searches), content


def _markdown(upright, rows, searches) -> str:
    ways = ((s, f"{auc:.3f}", "upright" if auc > 0.5 else "inverted") for s, auc in upright.items())
    over = (f"over {name}" for name in _CONTROLS)
    picked = ((name, found["chosen"]) for name, found in searches.items())
    parts = [
        aligned(("start", "AUC of its maps", ""), ways),
        aligned(("readings", "mIoU %", *over), ([label, *r] for label, r in rows.items())),
        aligned(("search", "chosen"), picked, texts=("chosen",)),
    ]
    for name, found in searches.items():
        gains = sorted(found["gains"].items(), key=lambda item: -item[1].estimate)
        parts.append(aligned((name, "gain on tune"), gains))
    return "\n".join(parts)


def _digest(setting: Any) -> str:
    return fingerprint.of_strings(repr(setting))[:16]


# ------------------------------------------------------------------------------- which way up


def uprightness(model: dsolo.Model, dataset: datasets.Dataset, count: int) -> dict[str, float]:
    """Measures which way up each start's maps are: above 0.5 upright, below it inverted.

    Not of a start that a graph mixes: its maps are another network's too.

    The area under the ROC curve of a class's cosines, over the patches of a picture, for finding
    the patches whose centre has that class; mean over the classes that are there, then pictures.
    """
    words = vocabulary.parse(dataset.classes)
    config, text = model.config, pipeline.embed(model, words)
    found: dict[str, list[float]] = {start: [] for start in _STARTS}
    for index in range(count):
        example = dataset[index]
        arrays = pipeline.batch([pipeline.prepare(config, example["image"])])
        truth = _at_centres(example["labels"], config.grid)
        for start, values in found.items():
            maps = pipeline.class_maps(model.params, config, arrays, text, start=start)
            cosines = vocabulary.fold(
                maps.cosines[0], np.array(words.query_class, np.int32), len(words.classes)
            )
            here = [c for c in np.unique(truth) if c < len(words.classes)]
            areas = [auc(np.asarray(cosines[c]), truth == c) for c in here]
            values.extend([np.mean(areas)] if areas else [])
    return {start: float(np.mean(values)) for start, values in found.items()}


def _at_centres(labels: Int[np.ndarray, "H W"], side: int) -> Int[np.ndarray, "N"]:
    rows, columns = ((2 * np.arange(side) + 1) * size // (2 * side) for size in labels.shape)
    return labels[np.ix_(rows, columns)].ravel()


def auc(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float:
    """Computes the share of pairs, one positive and one not, that the scores put in order.

    Half a pair where they tie; 0.5 where there is no pair.
    """
    if positive.all() or not positive.any():
        return 0.5
    pairs = positive.sum() * (~positive).sum()
    return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / pairs)
