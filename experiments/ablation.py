"""Ablations of the method: named rows, each a run of its own, measured with shared encodings."""

import csv
import dataclasses
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dsolo_jax as dsolo
from dsolo_jax import attention, clip, datasets, pipeline, readings, vocabulary
from dsolo_jax.readings import Readings
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.progress import progress
from experiments import evaluation
from experiments.bootstrap import Interval, Tally


class Setting(NamedTuple):
    """What one run is measured at.

    source: changes to the model's attention source, keyword arguments of `dsolo.load`.
    """

    method: str
    readings: Readings
    source: tuple[tuple[str, Any], ...] = ()


class Row(NamedTuple):
    """A row of a table: how it differs from the variant that the table is made for."""

    name: str
    method: str
    changes: Mapping[str, Any] = {}
    source: tuple[tuple[str, Any], ...] = ()

    def setting(self, variant: Readings) -> Setting:
        return Setting(self.method, dataclasses.replace(variant, **self.changes), self.source)


# The paper's rows: method, and what the rows before V leave out.
LADDER = (
    Row("I logits", "logits", {"upsample": "bilinear", "presence": 0.0}),
    Row("II KL", "kl", {"suppress": "none", "upsample": "bilinear"}),
    Row("III + NMS", "kl", {"suppress": "range", "suppress_below": 0.5, "upsample": "bilinear"}),
    Row("IV + JBU", "kl", {"suppress": "range", "suppress_below": 0.5}),
    Row("V path", "path"),
    Row("VI velocity", "velocity"),
    Row("VII fusion", "fusion"),
    Row("control: propagate", "propagate"),
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
    "ipf": (["velocity"], "ipf_iters", (0, 1, 5, 15, 50, 200)),
    "spread": (["velocity"], "velocity_spread", (0.25, 0.33, 0.5, 0.67, 1.0)),
    "epsilon": (["path"], "epsilon", (0.03, 0.1, 0.3, 1.0, 3.0)),
    "sinkhorn": (["path"], "sinkhorn_iters", (1, 5, 15, 50, 150)),
    "temperature": (["kl", "path", "velocity"], "temperature", (0.1, 0.25, 0.5, 1.0, 2.0)),
    "sharpening": (["path", "velocity"], "attention_temperature", (0.5, 0.65, 1.0, 1.5)),
    "presence": (["path", "velocity"], "presence", (0.0, 0.1, 0.25, 0.5, 1.0)),
    "level": (["path", "velocity"], "level", (0.0, 0.1, 0.25, 0.5, 1.0)),
    "propagate": (["propagate"], "propagate_steps", (0, 1, 2, 4, 8, 16)),
    "start": (["logits", "kl", "path", "velocity"], "start", clip.STARTS),
}

_OF_SOURCE = ("source", "layer", "timestep")
TABLES = ("ladder", *_SWEEPS, *_OF_SOURCE)

_TIMESTEPS = (1, 50, 100, 200, 400, 800)

# What the notes on the paper say of a sweep; they have no figures but the ladder's.
PAPER_SAYS = {
    "tau": "0.3 is best, a larger tau degenerates",
    "epsilon": "0.1",
    "sinkhorn": "50 rounds",
    "ipf": "15 rounds",
    "source": "Stable Diffusion 2 is better than the ViT foundation models",
    "layer": "up.0 and up.1 together are best",
    "timestep": "less noise is better",
}


def rows(table: str, model: dsolo.Model | None = None, sources: Sequence[str] = ()) -> list[Row]:
    """The rows of one of `TABLES`.

    Args:
        model: whose source's layers are taken apart; for "layer".
        sources: names for "source".

    Raises:
        ValueError: an unknown table.
    """
    choose("table", table, TABLES)
    if table == "ladder":
        return list(LADDER)
    if table in _SWEEPS:
        methods, field, values = _SWEEPS[table]
        choices = [(str(value), {field: value}, ()) for value in values]
    else:
        choices = [
            (name, {}, tuple(source.items()))
            for name, source in {
                "source": lambda: {name: {"attention": name} for name in sources},
                "layer": lambda: {
                    " + ".join(layers): {"attention_layers": layers} for layers in _layers(model)
                },
                "timestep": lambda: {str(step): {"timestep": step} for step in _TIMESTEPS},
            }[table]().items()
        ]
        methods = ["path", "velocity"]
    return [
        Row(f"{method}, {name}" if len(methods) > 1 else name, method, changes, source)
        for method in methods
        for name, changes, source in choices
    ]


def _layers(model: dsolo.Model) -> list[tuple[str, ...]]:
    """Those that the model averages, if several, then each of its source's alone."""
    if model.source is None:
        names = [str(i) for i in range(model.config.vision.num_hidden_layers)]
    else:
        names = attention.layer_names(model.source)
    together = [model.attention_layers] if len(model.attention_layers) > 1 else []
    return [*together, *((name,) for name in names)]


def variant(text: str) -> Readings:
    """A bundle with changes, from "bundle,name=value,…".

    Raises:
        ValueError: an unknown bundle, field or choice, or a value of another type.
    """
    bundle, *changes = (part.strip() for part in text.split(","))
    kinds = {field.name: field.type for field in dataclasses.fields(Readings)}
    values = {}
    for change in changes:
        name, _, value = change.partition("=")
        kind = kinds[choose("reading", name, kinds)]
        try:
            values[name] = kind(value)
        except ValueError:
            raise ValueError(f"reading {name} is {value!r}, wanted one {kind.__name__}") from None
    return dataclasses.replace(readings.resolve(bundle), **values)


def measure(
    load: Callable[..., dsolo.Model],
    dataset: datasets.Dataset,
    settings: Mapping[str, Setting],
    output_dir: Path,
    config: dict,
    *,
    limit: int | None = None,
    batch_size: int = 1,
    what: str = "ablation",
) -> dict[str, Tally]:
    """Runs every setting over the dataset, each into the folder of its name below `output_dir`.

    The folders are like those of `evaluation.evaluate`, and like there what they hold is not run
    again. A picture goes through the attention source once, and through CLIP once for each start,
    whatever the number of settings that share a source.

    Args:
        load: the model, with changes to its source.
        settings: by folder; equal ones are run once.
        config: what decides the results beside the setting, for the records.
        limit: only the first pictures.

    Returns:
        For each setting its pictures' intersections and unions, [S, C].
    """
    start = time.monotonic()
    runs: dict[Setting, evaluation.Run] = {}
    for folder, setting in settings.items():
        if setting not in runs:
            runs[setting] = evaluation.Run(
                output_dir / folder, dataset, _config(config, setting, limit)
            )
    for source in dict.fromkeys(setting.source for setting in runs):
        chosen = {setting: run for setting, run in runs.items() if setting.source == source}
        todo = evaluation.unfinished(list(chosen.values()), batch_size)
        if not todo:
            continue
        model = load(**dict(source))
        batches = evaluation.batches(model, dataset, todo, batch_size)
        label = ", ".join([what, *(f"{name} {value}" for name, value in source)])
        for batch in progress(batches, -(-len(todo) // batch_size), label, unit="batches"):
            _measure(model, dataset, batch, chosen)
    seconds = time.monotonic() - start
    for run in runs.values():
        run.finish(seconds)
    return {
        folder: evaluation.tally(runs[setting], dataset) for folder, setting in settings.items()
    }


def _config(config: dict, setting: Setting, limit: int | None) -> dict:
    return {
        **config,
        **dict(setting.source),
        "limit": limit,
        "save_predictions": False,
        "method": setting.method,
        "readings": dataclasses.asdict(setting.readings),
    }


def _measure(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    batch: list[evaluation.Prepared],
    runs: Mapping[Setting, evaluation.Run],
) -> None:
    """Every setting on the pictures of one batch."""
    words = vocabulary.parse(dataset.classes)
    for members in pipeline.buckets([len(example.picture.patches) for example in batch]):
        examples = [batch[i] for i in members]
        pictures = [example.picture for example in examples]
        graph = pipeline.graph(model, pictures)
        starts = dict.fromkeys(setting.readings.start for setting in runs)
        encoded = {start: pipeline.encode(model, pictures, words, start, graph) for start in starts}
        for (method, chosen, _), run in runs.items():
            solved, decide = pipeline.decision(words, method, dataset.protocol.threshold(method))
            scores = pipeline.solve(encoded[chosen.start], solved, method, chosen)
            for example, scores_ in zip(examples, scores, strict=False):
                result = pipeline.to_pixels(example.picture, scores_, chosen, decide=decide)
                counted = evaluation.confusions(result.labels, example, dataset)
                run.add(evaluation.Prediction(example.id, result.labels, counted))


def folder(*parts: str) -> str:
    """A folder's name from those of a variant (none if it is ""), a table and a row."""
    names = (re.sub(r"[^\w.=+-]+", "_", part).strip("_") for part in parts)
    return "/".join(filter(None, names))


def markdown(table: str, found: Mapping[str, Mapping[str, Interval]]) -> str:
    """A table of mIoU in percent with 95 % intervals, what is known of the paper's beside it."""
    variants = list(next(iter(found.values())))
    sets = PAPER_SETS if table == "ladder" else ()
    header = [table, *(name or "mIoU %" for name in variants), *(f"paper, {s}" for s in sets)]
    lines = [header, ["---"] * len(header)]
    for row, cells in found.items():
        paper = [f"{value:.1f}" for value in PAPER.get(row, [])] if sets else []
        paper += [""] * (len(sets) - len(paper))
        lines.append([row, *(str(cells[name]) for name in variants), *paper])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    said = f"\nThe paper is noted to say: {PAPER_SAYS[table]}.\n" if table in PAPER_SAYS else ""
    return text + said


def comma_separated(found: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> str:
    """All tables as CSV, a line for each row and variant."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    paper_columns = [f"paper {name}" for name in PAPER_SETS]
    writer.writerow(["table", "row", "variant", "miou", "low", "high", *paper_columns])
    for table, rows in found.items():
        for row, cells in rows.items():
            paper = PAPER.get(row, ()) if table == "ladder" else ()
            for variant, (low, miou, high) in cells.items():
                numbers = [f"{x:.3f}" for x in (miou, low, high)]
                writer.writerow([table, row, variant, *numbers, *paper])
    return buffer.getvalue()
