"""Turns results of experiments.eval into tables, charts and panels.

python -m experiments.report --results=outputs --output_dir=report --worst=4

Leaves table.md and, as CSV, table (benchmarks beside published numbers), differences (from these)
and others (all other datasets); for each result, in a folder of its name, iou.png (a bar a class),
confusion.png (rows normalised) and, for the pictures chosen, panels/<id>.png: picture, truth,
prediction, legend. Panels need results of --save_predictions.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from dsolo_jax import draw, images, metrics
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.files import write_csv, write_text
from dsolo_jax.utils.progress import progress
from experiments import charts, common
from experiments.reports import runs, table
from experiments.reports.published import BENCHMARKS
from experiments.reports.runs import Run

_RESULTS = flags.DEFINE_string("results", None, "Folder with results in it, at any depth.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: report in the folder of results.")
_IDS = flags.DEFINE_list("ids", [], "Pictures to draw, of whichever result has them.")
_WORST = flags.DEFINE_integer(
    "worst", 0, "Pictures to draw of each result: those of the lowest mIoU.", lower_bound=0
)


def main() -> None:
    root = Path(_RESULTS.value).expanduser()
    output = Path(_OUTPUT_DIR.value).expanduser() if _OUTPUT_DIR.value else root / "report"
    found, notes = runs.read(root)
    for id_ in _IDS.value:
        choose("picture of --ids", id_, {id_ for run in found for id_ in run.pictures})

    write_tables(found, root, output)
    for run in progress(found, len(found), "report", unit="results"):
        folder = output / (run.folder.relative_to(root) if run.folder != root else root.name)
        draw_charts(run, folder)
        try:
            draw_panels(run, pictures(run, _IDS.value, _WORST.value), folder / "panels")
        except (OSError, ValueError) as error:  # the other results have theirs
            notes.append(f"no panels of {run.folder}: {error}")
    for note in notes:
        print(note, file=sys.stderr)
    print(f"written to {output}")


def write_tables(found: Sequence[Run], root: Path, output: Path) -> None:
    """Writes and prints the tables; published numbers stand beside benchmarks alone."""
    rows = table.ours([run for run in found if run.dataset in BENCHMARKS])
    others = table.ours([run for run in found if run.dataset not in BENCHMARKS])
    apart, everyone = table.differences(rows), table.together(rows) if rows else []
    parts = {
        "Benchmarks, mIoU in percent": rows and f"{table.markdown(everyone)}\n{table.legend()}",
        "Our rows less the published ones of their CLIP": apart and table.markdown(apart, sign="+"),
        "Other datasets, mIoU in percent": others and table.markdown(others),
        "Our results": table.listing(found, root),
    }
    text = "\n".join(f"## {title}\n\n{part}" for title, part in parts.items() if part)
    write_text(output / "table.md", text)
    for name, part in (("table", everyone), ("differences", apart), ("others", others)):
        (output / f"{name}.csv").unlink(missing_ok=True)  # an earlier report's
        if part:
            write_csv(output / f"{name}.csv", table.as_cells(part))
    for part in filter(None, (rows, others)):
        print(table.markdown(part))


def pictures(run: Run, ids: Sequence[str], worst: int) -> list[str]:
    """Those of `ids` that the run has, and the `worst` by mIoU of those with labelled pixels."""
    miou = {id_: float(row[1]) for id_, row in run.pictures.items()}
    scored = sorted((id_ for id_ in miou if not np.isnan(miou[id_])), key=miou.__getitem__)
    return list(dict.fromkeys([*(id_ for id_ in miou if id_ in ids), *scored[:worst]]))


def draw_charts(run: Run, folder: Path) -> None:
    """Writes iou.png and confusion.png."""
    matrix = runs.confusion(run, run.pictures.values())
    miou, iou = metrics.mean_iou(matrix)
    what = f"{run.dataset}, {run.results['method']}"
    bars = charts.iou_bars(f"{what}: IoU in percent, mean {100 * miou:.1f}", run.classes, iou)
    charts.write(folder / "iou.png", bars)
    title = f"{what}: where the pixels of each true class went"
    charts.write(folder / "confusion.png", charts.confusion(title, run.classes, matrix))


def draw_panels(run: Run, ids: Iterable[str], folder: Path) -> None:
    """Writes a panel of each picture.

    Raises:
        FileNotFoundError, ValueError: no predictions were saved; the dataset is not where the run
            had it, or has changed.
    """
    predictions = {id_: run.folder / "predictions" / f"{id_}.png" for id_ in ids}
    for path in predictions.values():
        if not path.is_file():
            raise FileNotFoundError(
                f"no prediction at {path}; evaluate again with --save_predictions --overwrite"
            )
    dataset = common.load_dataset(run.results["config"]) if predictions else None
    for id_, path in predictions.items():
        index = dataset.ids.index(choose(f"picture of {dataset.name}", id_, dataset.ids))
        labels, example = images.read_labels(path), dataset[index]
        if labels.shape != example["labels"].shape:
            raise ValueError(
                f"{path} is {labels.shape}, wanted the size of its truth, "
                f"{example['labels'].shape}: the dataset has changed since; evaluate again"
            )
        miou, iou = metrics.mean_iou(runs.confusion(run, [run.pictures[id_]]))
        panel = draw.panel(
            [(example["image"], example["labels"], labels)],
            run.classes,
            titles=(id_, "truth", f"prediction, mIoU {100 * miou:.1f}"),
            remarks=["" if np.isnan(value) else f"IoU {100 * value:.1f}" for value in iou],
            side=640,
        )
        images.write_png(folder / f"{id_}.png", panel)


if __name__ == "__main__":
    common.run(main, required=["results"])
