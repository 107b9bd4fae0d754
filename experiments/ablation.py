"""Ablations of the method: named rows, each a run of its own, measured with shared encodings."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

import dsolo_jax as dsolo
from dsolo_jax import attention, clip, datasets
from dsolo_jax.pipeline import Setting
from dsolo_jax.readings import Readings, described
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.progress import progress
from experiments import bootstrap, evaluation, optimisation
from experiments.bootstrap import Interval, Tally
from experiments.tables import aligned

Source = tuple[tuple[str, Any], ...]  # changes to the attention source, arguments of `dsolo.load`


class Row(NamedTuple):
    """A row of a table: how it differs from the readings that the table is made for."""

    name: str
    method: str
    changes: Mapping[str, Any] = {}
    source: Source = ()


# What every table holds besides: a method that gains nothing over these gains nothing.
CONTROLS = (
    Row("control: class token alone", "class_token"),
    Row("control: logits + presence", "logits_presence"),
    Row("control: propagate", "propagate"),
)

# The paper's rows: method, and what the rows before V leave out.
_NMS = {"suppress": "range", "suppress_below": 0.5}
LADDER = (
    Row("I logits", "logits", {"upsample": "bilinear"}),
    Row("II KL", "kl", {"suppress": "none", "upsample": "bilinear"}),
    Row("III + NMS", "kl", {**_NMS, "upsample": "bilinear"}),
    Row("IV + JBU", "kl", _NMS),
    Row("V path", "path"),
    Row("VI velocity", "velocity"),
    Row("VII fusion", "fusion"),
)

# The paper's ablation on B/16, from secondary notes: VOC21, COCO-Stuff, Cityscapes, ADE20K.
PAPER_SETS = ("VOC21", "COCO-Stuff", "Cityscapes", "ADE20K")
PAPER = {
    "I logits": (18.6, 7.2, 6.7, 3.2),
    "II KL": (44.2, 12.1, 8.6, 6.4),
    "III + NMS": (45.9, 13.0, 9.6, 7.7),
    "IV + JBU": (46.3, 13.3, 10.1, 8.8),
    "V path": (66.9, 28.6, 41.7, 22.8),
    "VI velocity": (67.8, 28.9, 43.3, 23.0),
    "VII fusion": (64.9, 26.8, 41.4, 20.5),
}

# Table: methods, the reading that changes, its values.
_SWEEPS = {
    "tau": (["velocity"], "tau", (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)),
    "max_steps": (["velocity"], "max_steps", (10, 30, 100, 300)),
    "ipf": (["velocity"], "ipf_iters", (0, 1, 5, 15, 50, 200)),
    "epsilon": (["path"], "epsilon", (0.3, 1.0, 2.0, 4.0, 8.0)),
    "sinkhorn": (["path"], "sinkhorn_iters", (1, 5, 15, 50, 150)),
    "temperature": (["kl", "path", "velocity"], "temperature", (0.125, 0.25, 0.5, 1.0, 2.0)),
    "presence": (["path", "velocity"], "presence", (0.0, 0.1, 0.25, 0.5, 1.0)),
    "start": (["logits", "kl", "path", "velocity"], "start", clip.STARTS),
    "upsample": (["kl", "path", "velocity"], "upsample", ("bilinear", "kopf", "dense")),
}
_TIMESTEPS = (1, 50, 100, 200, 400, 800)

# The wording of the notes on the velocity, "the step changes by at most tau", in every scale that
# the maps may have, beside M2N2's test; with and without suppression, and for either winner.
LITERAL = tuple(
    Row(
        f"{criterion}, {scale}{', NMS' if rule == 'range' else ''}, {winner} wins",
        "velocity",
        {"velocity_criterion": criterion, "normalise": normalise, "suppress": rule}
        | {"winner": winner, "tau": 0.3},
    )
    for criterion, scales in {
        "saturation": {"softmax": "softmax", "minmax": "largest entry 1"},
        "increment": {"softmax": "mean 1", "minmax": "largest entry 1", "logits": "CLIP's logits"},
    }.items()
    for normalise, scale in scales.items()
    for rule in ("none", "range")
    for winner in ("smallest", "largest")
)

# What one solve gives, beside logits that are moved step by step; without a step all targets are
# the same.
OPTIMISATION = (
    *(
        Row(method, method)
        for method in ("logits", "kl", "path", "velocity", "logits_propagate", "label_propagation")
    ),
    *(
        Row(
            f"optimise, {target}, {steps}",
            "optimise",
            {"optimise_target": target, "optimise_steps": steps},
        )
        for target in ("graph", "oracle")
        for steps in optimisation.STEPS
        if steps or target == "graph"
    ),
)

_LISTED = {"ladder": LADDER, "literal": LITERAL, "optimisation": OPTIMISATION}
TABLES = (*_LISTED, *_SWEEPS, "source", "layer", "timestep")


def tables(source: attention.Source) -> list[str]:
    """Lists those of `TABLES` that a model with this source can have."""
    return [x for x in TABLES if x != "timestep" or source.kind == "stable_diffusion"]


def rows(table: str, source: attention.Source, sources: Sequence[str] = ()) -> list[Row]:
    """Lists the rows of one of `tables`, the controls last.

    Args:
        source: the model's, whose layers are taken apart for "layer".
        sources: names for "source".

    Raises:
        ValueError: an unknown table, or one that the source cannot have.
    """
    choose(f"table of {source.name}", table, tables(source))
    if table in _LISTED:
        return [*_LISTED[table], *CONTROLS]
    methods, field, values = _SWEEPS.get(table, (["path", "velocity"], "", ()))
    together = [source.layers] if len(source.layers) > 1 else []
    layers = [*together, *((name,) for name in attention.layer_names(source))]
    choices: list[tuple[str, dict[str, Any], Source]] = {
        "source": [(name, {}, (("attention", name),)) for name in sources],
        "layer": [(" + ".join(x), {}, (("attention_layers", x),)) for x in layers],
        "timestep": [(str(step), {}, (("timestep", step),)) for step in _TIMESTEPS],
    }.get(table) or [(str(value), {field: value}, ()) for value in values]
    swept = [
        Row(f"{method}, {name}" if len(methods) > 1 else name, method, changes, of_source)
        for method in methods
        for name, changes, of_source in choices
    ]
    return [*swept, *CONTROLS]


def measure(
    load: Callable[..., dsolo.Model],
    dataset: datasets.Dataset,
    wanted: Mapping[str, tuple[Setting, Source]],
    output_dir: Path,
    config: dict,
    *,
    limit: int | None = None,
    batch_size: int = 1,
    overwrite: bool = False,
    what: str = "ablation",
) -> dict[str, Tally]:
    """Runs every setting over the dataset, each into the folder of its name below `output_dir`.

    What the folders hold is not run again, as with `evaluation.evaluate`. A picture goes through
    the attention source once, and through CLIP once a start, however many settings there are.

    Args:
        load: the model, with changes to its source.
        wanted: by folder; equal ones are run once.
        config, overwrite: see `evaluation.Run`; the setting is added to the config.

    Returns:
        For each folder its pictures' intersections and unions, [S, C].
    """
    tallies: dict[tuple[Setting, Source], Tally] = {}
    for source in dict.fromkeys(source for _, source in wanted.values()):
        # The first folder of each setting holds its run.
        names = {s: name for name, (s, of) in reversed(wanted.items()) if of == source}
        model = load(**dict(source), graph=any(setting.needs_graph for setting in names))
        if any(map(optimisation.knows_truth, names)):
            optimisation.refuse_windows(model)
        made = config | evaluation.made_with(model) | dict(source)
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            runs = {}
            for setting, name in names.items():
                of_run = made | {
                    "limit": limit,
                    "save_predictions": False,
                    "method": setting.method,
                    "threshold_applied": setting.threshold is not None,
                    "readings": described(setting.readings),
                }
                run = evaluation.Run(output_dir / name, dataset, of_run, overwrite)
                runs[setting] = stack.enter_context(run)
            label = ", ".join([what, *(f"{name} {value}" for name, value in source)])
            for predict, bounds in (
                (evaluation.predictions, False),
                (optimisation.predictions, True),
            ):
                own = {s: run for s, run in runs.items() if optimisation.knows_truth(s) == bounds}
                todo = sorted({i for run in own.values() for i in run.todo()})
                found = predict(model, dataset, todo, list(own), batch_size=batch_size)
                for example, predictions in progress(found, len(todo), label) if todo else ():
                    for run, labels in zip(own.values(), predictions, strict=True):
                        run.add(example, labels)
            for setting, run in runs.items():
                run.finish(time.monotonic() - start)
                tallies[setting, source] = run.tally()
    return {folder: tallies[setting] for folder, setting in wanted.items()}


def folder(*parts: str) -> str:
    """Joins names to a folder's, of a variant (none if it is ""), a table and a row."""
    names = (re.sub(r"[^\w.=+-]+", "_", part).strip("_") for part in parts)
    return "/".join(filter(None, names))


def setting(row: Row, variant: Readings, protocol: datasets.Protocol) -> tuple[Setting, Source]:
    """Makes what is run of a row and the readings that its table is made for."""
    readings = dataclasses.replace(variant, **row.changes)
    return Setting(row.method, readings, protocol.threshold(row.method)), row.source


def markdown(table: str, found: Mapping[str, Mapping[str, Interval]]) -> str:
    """Writes a table of mIoU in percent with 95 % intervals, below the ladder the paper's own."""
    variants = list(next(iter(found.values())))
    lines = ([row, *(cells[name] for name in variants)] for row, cells in found.items())
    text = aligned([table, *(name or "mIoU %" for name in variants)], lines)
    if table == "ladder":
        text += "\nThe paper's ladder, from secondary notes, on photographs with OpenAI's CLIP:\n\n"
        text += aligned([table, *PAPER_SETS], ([row, *values] for row, values in PAPER.items()))
    return text


def gains(variant: str, tallies: Mapping[str, Tally], counts: Int[np.ndarray, "R S"]) -> str:
    """Writes what each row of a table, by name, gains over each control, paired, in points."""
    controls = [row.name for row in CONTROLS]
    lines = (
        [name, *(bootstrap.difference(tally, tallies[c], counts) for c in controls)]
        for name, tally in tallies.items()
        if name not in controls
    )
    over = (name.replace("control: ", "over ") for name in controls)
    return aligned([f"gains, {variant}" if variant else "gains", *over], lines)


def lines(found: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> Iterator[Sequence[Any]]:
    """Yields the lines of a CSV of all tables, one for each row and variant."""
    yield "table", "row", "variant", "miou", "low", "high"
    for table, rows in found.items():
        for row, cells in rows.items():
            for variant, (low, miou, high) in cells.items():
                yield table, row, variant, *(f"{x:.3f}" for x in (miou, low, high))
