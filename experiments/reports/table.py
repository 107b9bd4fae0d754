"""The table of the paper's layout: published rows, our rows, and how far they are apart."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.reports.published import BENCHMARKS, PUBLISHED, SOURCES, Row
from experiments.reports.runs import Run

# What makes two results those of one method, so that they stand in one row. The rest of a config
# belongs to the benchmark: its files, its working size, its background.
_METHOD = (
    "preset", "method", "clip", "attention", "layers", "layer_weights", "attention_size",
    "timestep", "grid", "dtype", "readings",
)  # fmt: skip
_SCALES = {"b16": "B/16", "l14": "L/14"}
_PARTIAL = "\\* only the first pictures of the benchmark"


def ours(runs: Sequence[Run]) -> list[Row]:
    """A row for each method among `runs`; those of one preset are told apart by what differs.

    Raises:
        ValueError: two results of one method on one benchmark, or a result without any labelled
            pixel.
    """
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        if run.results["miou"] is None:
            raise ValueError(
                f"{run.folder} has no mIoU: none of its pixels is labelled; move it elsewhere"
            )
        group = groups.setdefault(json.dumps(_settings(run), sort_keys=True), {})
        other = group.setdefault(run.results["dataset"], run)
        if other is not run:
            raise ValueError(
                f"{other.folder} and {run.folder} are both results of one method on "
                f"{run.results['dataset']} ({_differing(other, run)}), wanted one; report them "
                "from separate folders"
            )
    members = [(_settings(next(iter(group.values()))), group) for group in groups.values()]
    return [_row(settings, group, [s for s, _ in members]) for settings, group in members]


def _settings(run: Run) -> dict:
    """The part of a config that is the method's, on one level."""
    settings = {name: run.results["config"].get(name) for name in _METHOD}
    readings = settings.pop("readings") or {}
    return settings | readings


def _differing(run: Run, other: Run) -> str:
    ours, theirs = run.results["config"], other.results["config"]
    names = [name for name in ours if ours[name] != theirs.get(name)]
    return ", ".join(f"{n} {ours[n]!r} and {theirs.get(n)!r}" for n in names) or "same settings"


def _row(settings: dict, group: dict[str, Run], everyone: Sequence[dict]) -> Row:
    name, method = settings["preset"], settings["method"]
    rivals = [s for s in everyone if (s["preset"], s["method"]) == (name, method)]
    differing = [
        f"{key}={_short(value)}"
        for key, value in settings.items()
        if any(rival.get(key) != value for rival in rivals)
    ]
    miou = {dataset: 100 * run.results["miou"] for dataset, run in group.items()}
    complete = all(benchmark in miou for benchmark in BENCHMARKS)
    return Row(
        method=" ".join(filter(None, (f"ours: {name} {method}", ", ".join(differing)))),
        scale=_SCALES.get(str(name).rsplit("_", 1)[-1], "?"),
        miou=miou,
        average=sum(miou[b] for b in BENCHMARKS) / len(BENCHMARKS) if complete else None,
        source="here",
        partial=frozenset(d for d, run in group.items() if run.results["config"].get("limit")),
    )


def _short(value: object) -> str:
    """Of hub ids and paths the last part."""
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return Path(value).name if isinstance(value, str) else str(value)


def difference(row: Row, published: Row) -> Row:
    """`row` less `published`, points of mIoU, where both are known."""
    both = row.average is not None and published.average is not None
    return Row(
        method=f"{row.method} − {published.method}",
        scale=published.scale,
        miou={
            name: row.miou[name] - published.miou[name]
            for name in row.miou
            if name in published.miou
        },
        average=row.average - published.average if both else None,
        source=published.source,
        remark=published.remark,
        partial=row.partial,
    )


def differences(rows: Iterable[Row]) -> list[Row]:
    """Every one of our rows less every published one of its scale that has a number in common."""
    pairs = ((row, other) for row in rows for other in PUBLISHED if other.scale == row.scale)
    return [apart for apart in (difference(*pair) for pair in pairs) if apart.miou]


def together(rows: Sequence[Row]) -> list[Row]:
    """The published rows with ours after those of their scale."""
    scales = dict.fromkeys((*(row.scale for row in PUBLISHED), *(row.scale for row in rows)))
    return [row for scale in scales for row in (*PUBLISHED, *rows) if row.scale == scale]


def columns(rows: Iterable[Row]) -> list[str]:
    """The eight benchmarks, and what else was measured."""
    others = sorted({name for row in rows for name in row.miou} - set(BENCHMARKS))
    return [*BENCHMARKS, *others]


def markdown(rows: Sequence[Row], *, sign: str = "") -> str:
    """The rows as a markdown table that reads well as text, to a tenth as the papers print them."""
    names = columns(rows)

    def cell(row: Row, name: str) -> str:
        return _number(row.miou.get(name), f"{sign}z.1f") + "\\*" * (name in row.partial)

    head = ["method", "CLIP", *(BENCHMARKS.get(name, name) for name in names), "average", "source"]
    body = [
        [
            row.method,
            row.scale,
            *(cell(row, name) for name in names),
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
    """What the sources are, and what is to be said of a published row."""
    sources = [f"- source {name}: {text}" for name, text in SOURCES.items()]
    sources.append("- source of another name: table in the README of that repository")
    remarks = {row.method: f"- {row.method}: {row.remark}" for row in PUBLISHED if row.remark}
    return "\n".join((*sources, *remarks.values())) + "\n"


def listing(runs: Sequence[Run], root: Path) -> str:
    """Every result in a line: where it is, what of, and what of the benchmark it took."""
    lines = [
        f"- `{run.folder.relative_to(root)}`: {run.results['dataset']}, {run.results['method']}, "
        f"{run.results['num_images']} pictures, mIoU {100 * run.results['miou']:.3f}"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, to a thousandth; what is not known is empty."""
    names = columns(rows)
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
