"""Tables of results: ours beside the published ones, how far they are apart, and all others."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsolo_jax.model import PRESETS
from experiments.reports.published import BENCHMARKS, PICTURES, PUBLISHED, SOURCES, Row
from experiments.reports.runs import Run

# What makes two results those of one method, so that they stand in one row. The rest of a config
# belongs to the dataset: its files, its working size, its background.
_METHOD = (
    "preset", "method", "clip", "attention", "layers", "layer_weights", "attention_size",
    "timestep", "grid", "dtype", "readings",
)  # fmt: skip
_SCALES = {"b16": "B/16", "l14": "L/14"}
_PARTIAL = "\\* not the whole official set: not comparable with a published number"


def ours(runs: Sequence[Run]) -> list[Row]:
    """Makes a row for each method among `runs`; those of one preset are told apart by what differs.

    A further result of a method on the same dataset has a row of its own, by its folder's name.
    """
    groups: dict[str, list[dict[str, Run]]] = {}
    for run in runs:
        members = groups.setdefault(json.dumps(_settings(run), sort_keys=True), [{}])
        if run.dataset in members[0]:
            members.append({})
        members[-1 if run.dataset in members[0] else 0][run.dataset] = run
    everyone = [json.loads(settings) for settings in groups]
    return [
        _row(settings, group, everyone, again=number > 0)
        for settings, members in zip(everyone, groups.values(), strict=True)
        for number, group in enumerate(members)
    ]


def _settings(run: Run) -> dict:
    """The part of a config that is the method's, on one level."""
    settings = {name: run.results["config"].get(name) for name in _METHOD}
    readings = settings["readings"]
    if isinstance(readings, dict):
        settings |= {"readings": None, **readings}
    return settings


def _row(settings: dict, group: dict[str, Run], everyone: Sequence[dict], again: bool) -> Row:
    name, method = settings["preset"], settings["method"]
    rivals = [s for s in everyone if (s["preset"], s["method"]) == (name, method)]
    differing = [
        f"{key}={_short(value)}"
        for key, value in settings.items()
        if any(rival.get(key) != value for rival in rivals)
    ]
    differing += [f"again in {run.folder.name}" for run in group.values() if again]
    miou = {dataset: 100 * run.results["miou"] for dataset, run in group.items()}
    partial = frozenset(dataset for dataset, run in group.items() if not _whole(run))
    complete = miou.keys() - partial >= BENCHMARKS.keys()
    own = PRESETS[name].clip if name in PRESETS else None  # another CLIP is of no known scale
    scale = _SCALES.get(name.rsplit("_", 1)[-1], "?") if settings["clip"] in (None, own) else "?"
    return Row(
        method=" ".join(filter(None, (f"ours: {name} {method}", ", ".join(differing)))),
        scale=scale,
        miou=miou,
        average=sum(map(miou.get, BENCHMARKS)) / len(BENCHMARKS) if complete else None,
        source="here",
        partial=partial,
    )


def _whole(run: Run) -> bool:
    """Whether a run is of all pictures that published numbers are of; of its limit elsewhere."""
    config = run.results["config"]
    if run.dataset not in PICTURES:
        return not config.get("limit")
    official = config.get("split", "validation") == "validation"
    return official and run.results["num_images"] >= PICTURES[run.dataset]


def _short(value: object) -> str:
    """Of hub ids and paths the last part."""
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return Path(value).name if isinstance(value, str) else str(value)


def differences(rows: Iterable[Row]) -> list[Row]:
    """Takes from each row of ours each published one of its scale that has a number in common."""
    apart = []
    for row in rows:
        for other in (other for other in PUBLISHED if other.scale == row.scale):
            both = row.average is not None and other.average is not None
            miou = {k: row.miou[k] - other.miou[k] for k in row.miou if k in other.miou}
            difference = other._replace(
                method=f"{row.method} − {other.method}",
                miou=miou,
                average=row.average - other.average if both else None,
                partial=row.partial,
            )
            apart += [difference] if miou else []
    return apart


def together(rows: Sequence[Row]) -> list[Row]:
    """Puts ours after the published rows of their scale."""
    scales = dict.fromkeys(row.scale for row in (*PUBLISHED, *rows))
    return [row for scale in scales for row in (*PUBLISHED, *rows) if row.scale == scale]


def _columns(rows: Iterable[Row]) -> list[str]:
    """The eight benchmarks; in a table of other datasets these."""
    found = {name for row in rows for name in row.miou}
    return list(BENCHMARKS) if found <= BENCHMARKS.keys() else sorted(found)


def markdown(rows: Sequence[Row], *, sign: str = "") -> str:
    """Writes a markdown table that reads well as text, to a tenth as the papers print them."""
    names = _columns(rows)
    head = ["method", "CLIP", *(BENCHMARKS.get(name, name) for name in names), "average", "source"]
    body = [
        [
            row.method,
            row.scale,
            *(
                _number(row.miou.get(name), f"{sign}z.1f") + "\\*" * (name in row.partial)
                for name in names
            ),
            _number(row.average, f"{sign}z.1f"),
            row.source,
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    numbers = range(2, len(head) - 1)

    def line(cells: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if i in numbers else text.ljust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + ":" if i in numbers else "-" * w for i, w in enumerate(widths)]
    note = f"\n{_PARTIAL}\n" if any(row.partial for row in rows) else ""
    return "\n".join(map(line, (head, rule, *body))) + "\n" + note


def legend() -> str:
    """Says what the sources are, and what is to be known of a published row."""
    sources = [f"- source {name}: {text}" for name, text in SOURCES.items()]
    sources.append("- source of another name: table in the README of that repository")
    remarks = {row.method: f"- {row.method}: {row.remark}" for row in PUBLISHED if row.remark}
    return "\n".join((*sources, *remarks.values())) + "\n"


def listing(runs: Sequence[Run], root: Path) -> str:
    """Says of every result in a line where it is, what of, and how many pictures it took."""
    lines = [
        f"- `{run.folder.relative_to(root)}`: {run.dataset}, {run.results['method']}, "
        f"{run.results['num_images']} pictures, mIoU {100 * run.results['miou']:.3f}"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Writes the rows as CSV, to a thousandth; what is not known is empty."""
    names = _columns(rows)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("method", "clip", *names, "average", "partial", "source", "remark"))
    for row in rows:
        numbers = [_number(value, "z.3f", "") for value in (*map(row.miou.get, names), row.average)]
        writer.writerow(
            (row.method, row.scale, *numbers, " ".join(sorted(row.partial)), row.source, row.remark)
        )
    return file.getvalue()


def _number(value: float | None, form: str, unknown: str = "–") -> str:
    return unknown if value is None else f"{value:{form}}"
