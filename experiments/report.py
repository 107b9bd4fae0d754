"""Turns results of experiments.eval into the paper's table, charts and panels.

python -m experiments.report --results=outputs --output_dir=report --worst=4

Leaves table.md (our rows beside the published ones, and every difference), table.csv and
differences.csv, and for each result, in a folder of its name, iou.png (a bar a class),
confusion.png (rows normalised) and, for the pictures chosen, panels/<id>.png: picture, truth,
prediction, legend. Panels need results of --save_predictions.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from dsolo_jax import draw, images, metrics
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.files import atomic
from dsolo_jax.utils.progress import progress
from experiments import common
from experiments.reports import charts, runs, table
from experiments.reports.runs import Picture, Run

_RESULTS = flags.DEFINE_string("results", None, "Folder with results in it, at any depth.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: report in the folder of results.")
_IDS = flags.DEFINE_list("ids", [], "Pictures to draw, of whichever result has them.")
_WORST = flags.DEFINE_integer(
    "worst", 0, "Pictures to draw of each result: those of the lowest mIoU.", lower_bound=0
)


def main() -> None:
    root = Path(_RESULTS.value).expanduser()
    output = Path(_OUTPUT_DIR.value).expanduser() if _OUTPUT_DIR.value else root / "report"
    found, unfinished = runs.read(root)
    for folder in unfinished:
        print(f"left out {folder}: it was cut off, start it again to finish it", file=sys.stderr)
    chosen = [(run, pictures(run, _IDS.value, _WORST.value)) for run in found]
    for id_ in _IDS.value:
        choose("picture of --ids", id_, {p.id for run in found for p in run.pictures})

    rows = table.ours(found)
    apart = table.differences(rows)
    everyone = table.together(rows)
    write(output / "table.csv", table.as_csv(everyone))
    write(output / "differences.csv", table.as_csv(apart))
    parts = {
        "mIoU in percent": f"{table.markdown(everyone)}\n{table.legend()}",
        "Our rows less the published ones of their CLIP": table.markdown(apart, sign="+"),
        "Our results": table.listing(found, root),
    }
    text = "\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
    write(output / "table.md", text)
    for run, drawn in progress(chosen, len(chosen), "report", unit="results"):
        folder = output / (run.folder.relative_to(root) if run.folder != root else root.name)
        draw_charts(run, folder)
        if drawn:
            draw_panels(run, drawn, folder / "panels")
    print(table.markdown(rows))
    print(f"written to {output}")


def write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def pictures(run: Run, ids: list[str], worst: int) -> list[Picture]:
    """Those of `ids` that the run has, and the `worst` by mIoU of those with labelled pixels."""
    named = [picture for picture in run.pictures if picture.id in ids]
    scored = [picture for picture in run.pictures if picture.miou == picture.miou]
    return list({p.id: p for p in named + sorted(scored, key=lambda p: p.miou)[:worst]}.values())


def draw_charts(run: Run, folder: Path) -> None:
    matrix = runs.confusion(run, run.pictures)
    miou, iou = metrics.mean_iou(matrix)
    what = f"{run.results['dataset']}, {run.results['method']}"
    title = f"{what}: IoU of each class in percent, mean {100 * miou:.1f}"
    images.write_png(folder / "iou.png", charts.iou_bars(title, run.classes, iou))
    title = f"{what}: where the pixels of each true class went, in percent (grey: it has none)"
    images.write_png(folder / "confusion.png", charts.confusion(title, run.classes, matrix))


def draw_panels(run: Run, chosen: list[Picture], folder: Path) -> None:
    """
    Raises:
        FileNotFoundError, ValueError: the dataset is not where the run had it, or lacks a picture;
            no predictions were saved.
    """
    dataset = common.load_dataset(run.results["config"])
    for picture in chosen:
        index = dataset.ids.index(choose(f"picture of {dataset.name}", picture.id, dataset.ids))
        path = run.folder / "predictions" / f"{picture.id}.png"
        if not path.is_file():
            raise FileNotFoundError(
                f"no prediction at {path}; evaluate again with --save_predictions --overwrite"
            )
        labels, example = images.read_labels(path), dataset[index]
        if labels.shape != example["labels"].shape:
            raise ValueError(
                f"{path} is {labels.shape}, wanted the size of its truth, "
                f"{example['labels'].shape}: the dataset has changed since; evaluate again"
            )
        _, iou = metrics.mean_iou(runs.confusion(run, (picture,)))
        panels = draw.panels(
            example["image"],
            {"truth": example["labels"], f"prediction, mIoU {100 * picture.miou:.1f}": labels},
            run.classes,
            ["" if np.isnan(value) else f"IoU {100 * value:.1f}" for value in iou],
            title=picture.id,
            ignore=dataset.ignore,
        )
        images.write_png(folder / f"{picture.id}.png", panels)


if __name__ == "__main__":
    common.run(main, required=["results"])
