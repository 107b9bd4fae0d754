"""Tables of results: ours beside the published ones, how far they are apart, and all others."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from dsolo_jax.model import PRESETS
from experiments.reports.published import BENCHMARKS, PICTURES, PUBLISHED, SOURCES, Row
from experiments.reports.runs import Run
from experiments.tables import aligned

# What makes two results those of one method, so that they stand in one row; the rest of a config
# belongs to the dataset.
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
    rows: dict[tuple[str, int], dict[str, Run]] = {}
    for run in runs:
        method = json.dumps({name: run.results["config"].get(name) for name in _METHOD})
        number = next(n for n in count() if run.dataset not in rows.get((method, n), {}))
        rows.setdefault((method, number), {})[run.dataset] = run
    everyone = [json.loads(method) for method, _ in rows]
    return [
        _row(settings, of_row, everyone, again=number > 0)
        for settings, ((_, number), of_row) in zip(everyone, rows.items(), strict=True)
    ]


def _row(settings: dict, runs: dict[str, Run], everyone: Sequence[dict], again: bool) -> Row:
    preset, method = settings["preset"], settings["method"]
    rivals = [s for s in everyone if (s["preset"], s["method"]) == (preset, method)]
    differing = [
        f"{name}={_short(value)}"
        for name, value in settings.items()
        if any(rival[name] != value for rival in rivals)
    ]
    differing += [f"again in {run.folder.name}" for run in runs.values() if again]
    miou = {dataset: 100 * run.results["miou"] for dataset, run in runs.items()}
    partial = frozenset(dataset for dataset, run in runs.items() if not _whole(run))
    complete = miou.keys() - partial >= BENCHMARKS.keys()
    own = PRESETS[preset].clip if preset in PRESETS else None  # another CLIP is of no known scale
    known = settings["clip"] in (None, own)
    return Row(
        method=" ".join(filter(None, (f"ours: {preset} {method}", ", ".join(differing)))),
        scale=_SCALES.get(preset.rsplit("_", 1)[-1], "?") if known else "?",
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
    both = (*PUBLISHED, *rows)
    scales = list(dict.fromkeys(row.scale for row in both))
    return sorted(both, key=lambda row: scales.index(row.scale))


def _columns(rows: Iterable[Row]) -> list[str]:
    """The eight benchmarks; in a table of other datasets these."""
    found = {name for row in rows for name in row.miou}
    return list(BENCHMARKS) if found <= BENCHMARKS.keys() else sorted(found)


def markdown(rows: Sequence[Row], *, sign: str = "") -> str:
    """Writes a markdown table that reads well as text, to a tenth as the papers print them."""
    names = _columns(rows)
    head = ["method", "CLIP", *(BENCHMARKS.get(name, name) for name in names), "average", "source"]
    form = f"{sign}z.1f"
    lines = (
        (
            row.method,
            row.scale,
            *(_number(row.miou.get(n), form) + "\\*" * (n in row.partial) for n in names),
            _number(row.average, form),
            row.source,
        )
        for row in rows
    )
    note = f"\n{_PARTIAL}\n" if any(row.partial for row in rows) else ""
    return aligned(head, lines, texts=("CLIP", "source")) + note


def legend() -> str:
    """Says what the sources are, and what is to be known of a published row."""
    lines = [f"- source {name}: {text}" for name, text in SOURCES.items()]
    lines.append("- source of another name: table in the README of that repository")
    lines += dict.fromkeys(f"- {row.method}: {row.remark}" for row in PUBLISHED if row.remark)
    return "\n".join(lines) + "\n"


def listing(runs: Sequence[Run], root: Path) -> str:
    """Says of every result in a line where it is, what of, and how many pictures it took."""
    lines = [
        f"- `{run.folder.relative_to(root)}`: {run.dataset}, {run.results['method']}, "
        f"{run.results['num_images']} pictures, mIoU {100 * run.results['miou']:.3f}"
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def as_cells(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """Yields the lines of a CSV, to a thousandth; what is not known is empty."""
    names = _columns(rows)
    yield "method", "clip", *names, "average", "partial", "source", "remark"
    for row in rows:
        numbers = (_number(x, "z.3f", "") for x in (*map(row.miou.get, names), row.average))
        partial = " ".join(sorted(row.partial))
        yield row.method, row.scale, *numbers, partial, row.source, row.remark


def _number(value: float | None, form: str, unknown: str = "–") -> str:
    return unknown if value is None else f"{value:{form}}"
