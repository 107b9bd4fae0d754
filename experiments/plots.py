"""Pictures of tables; matplotlib is an extra."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsolo_jax.utils.files import atomic
from experiments.bootstrap import Interval


def require() -> None:
    """Says how to get matplotlib before anything is computed that it is to draw.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "plots need matplotlib, which is not installed: pip install 'dsolo-jax[plots]', or "
            "leave them out with --noplots"
        ) from None


def draw(
    path: Path,
    title: str,
    found: Mapping[str, Mapping[str, Interval]],
    paper: Mapping[str, Sequence[float]],
) -> None:
    """A PNG of a table: a bar for each row and variant with its 95 % interval.

    Args:
        found: mIoU in percent by row, then by variant.
        paper: the paper's figures by row, drawn as the range and the mean of its benchmarks.
    """
    from matplotlib.figure import Figure

    rows, variants = list(found), list(next(iter(found.values())))
    figure = Figure(figsize=(max(5.0, 0.9 * len(rows)), 4.2), dpi=120)
    axes = figure.subplots()
    width = 0.8 / len(variants)
    for k, variant in enumerate(variants):
        cells = [found[row][variant] for row in rows]
        at = [i + (k - (len(variants) - 1) / 2) * width for i in range(len(rows))]
        heights = [cell.estimate for cell in cells]
        errors = [
            [cell.estimate - cell.low for cell in cells],
            [cell.high - cell.estimate for cell in cells],
        ]
        axes.bar(at, heights, width, yerr=errors, capsize=2, label=variant or "measured")
    known = [(i, paper[row]) for i, row in enumerate(rows) if row in paper]
    if known:
        means = [sum(values) / len(values) for _, values in known]
        spans = [
            [mean - min(v) for mean, (_, v) in zip(means, known, strict=True)],
            [max(v) - mean for mean, (_, v) in zip(means, known, strict=True)],
        ]
        axes.errorbar(
            [i for i, _ in known],
            means,
            yerr=spans,
            fmt="kD",
            capsize=4,
            label="paper, mean and range of four benchmarks",
        )
    axes.set_xticks(range(len(rows)), rows, rotation=30, ha="right")
    axes.set_ylabel("mIoU %")
    axes.set_title(title)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
