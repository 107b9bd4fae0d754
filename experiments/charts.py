"""Charts by matplotlib: a result's classes, its confusion matrix, the rows of a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from dsolo_jax.utils.files import atomic
from experiments.bootstrap import Interval

if TYPE_CHECKING:  # it takes a third of a second to import
    from matplotlib.figure import Figure

Note = tuple[float, float, str]  # x, y, and what stands beside the point

_BARS = 50  # in a column
_NUMBERED = 32  # classes up to which the cells of a confusion matrix hold their number


def iou_bars(title: str, names: Sequence[str], iou: Float[np.ndarray, "C"]) -> "Figure":
    """Draws a bar for each class, the largest first, and a line at their mean.

    Args:
        iou: in 0..1; NaN of classes that nowhere occur: they come last, without a bar.
    """
    order = np.argsort(-iou, kind="stable")  # NaN comes last
    columns = np.array_split(order, -(-len(names) // _BARS))
    figure = _figure(4.5 * len(columns), 2 + 0.25 * len(columns[0]))
    figure.suptitle(title)
    row = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, members in zip(row, columns, strict=True):
        values = 100 * iou[members]
        texts = ["nowhere" if np.isnan(value) else f"{value:.1f}" for value in values]
        bars = axes.barh([names[c] for c in members], np.nan_to_num(values))
        axes.bar_label(bars, texts, padding=3, fontsize="small")
        if not np.isnan(iou).all():
            axes.axvline(100 * np.nanmean(iou), color="tab:red", lw=1)
        axes.set(xlim=(0, 125), xticks=range(0, 101, 25), ylim=(len(columns[0]) - 0.5, -0.5))
    return figure


def confusion(title: str, names: Sequence[str], matrix: Int[np.ndarray, "C C"]) -> "Figure":
    """Draws the confusion matrix, each row divided by its sum: where a true class's pixels went.

    Rows are the truth; those without a pixel are grey. Shades go by the square root of the share,
    so that small confusions are seen; few classes have the percentage in their cells.
    """
    from matplotlib.colors import PowerNorm

    sums = matrix.sum(axis=1, keepdims=True)
    percent = np.where(sums, 100 * matrix / np.maximum(sums, 1), np.nan)
    count, cell = len(names), float(np.clip(22 / len(names), 0.16, 0.6))
    figure = _figure(5 + cell * count, 4 + cell * count)
    axes = figure.subplots()
    axes.set_facecolor("lightgrey")
    shades = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    figure.colorbar(shades, shrink=0.5, label="%")
    font = min(10, 60 * cell)
    axes.set_xticks(range(count), names, rotation=90, fontsize=font)
    axes.set_yticks(range(count), names, fontsize=font)
    axes.set(title=title, xlabel="prediction", ylabel="truth")
    for t, p in zip(*np.nonzero(percent >= 0.5), strict=True) if count <= _NUMBERED else ():
        ink = "white" if percent[t, p] > 50 else "black"
        axes.text(p, t, f"{percent[t, p]:.0f}", color=ink, ha="center", va="center", fontsize=8)
    return figure


def draw_table(path: Path, title: str, rows: Mapping[str, Mapping[str, Interval]]) -> None:
    """Writes a PNG of a table: a bar for each row and variant, with its 95 % interval.

    Args:
        rows: mIoU in percent by row, then by variant.
    """
    variants = list(next(iter(rows.values())))
    figure = _figure(max(5.0, 0.9 * len(rows)), 4.2)
    axes = figure.subplots()
    for k, variant in enumerate(variants):
        low, height, high = np.array([rows[row][variant] for row in rows]).T
        at = np.arange(len(rows)) + (k - (len(variants) - 1) / 2) * 0.8 / len(variants)
        errors = height - low, high - height
        axes.bar(at, height, 0.8 / len(variants), yerr=errors, capsize=2, label=variant or "ours")
    axes.set_xticks(range(len(rows)), rows, rotation=30, ha="right")
    axes.set(title=title, ylabel="mIoU %")
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    write(path, figure)


def lines_and_marks(
    title: str,
    panels: Mapping[str, tuple[Mapping[str, Sequence[Note]], Sequence[Note]]],
    xlabel: str,
    ylabel: str,
) -> "Figure":
    """Draws lines through annotated points, and single points beside them, over a logarithmic axis.

    Args:
        panels: by name, the lines by theirs, and the single points.
    """
    figure = _figure(8.5 * len(panels), 6)
    figure.suptitle(title)
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (name, (lines, marks)) in zip(row, panels.items(), strict=True):
        for label, points in lines.items():
            x, y, notes = zip(*points, strict=True)
            [line] = axes.plot(x, y, marker="o", ms=4, label=label)
            for at in zip(x, y, notes, strict=True):
                _note(axes, *at, above=True, color=line.get_color())
        for x, y, note in marks:
            axes.plot(x, y, marker="D", ms=5, color="black")
            _note(axes, x, y, note, above=False, color="black")
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.set(title=name, xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="best")
    return figure


def _note(axes, x: float, y: float, text: str, *, above: bool, color: str) -> None:
    place = {"xytext": (0, 6), "ha": "center"} if above else {"xytext": (7, -3), "ha": "left"}
    axes.annotate(
        text, (x, y), textcoords="offset points", fontsize="x-small", color=color, **place
    )


def write(path: Path, figure: "Figure") -> None:
    """Writes a figure as PNG, whole or not at all."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")
