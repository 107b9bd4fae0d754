"""The paper's ladder of rows I to VII, measured for readings of the method."""

import dataclasses

import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import clip, datasets, metrics, pipeline, readings, vocabulary
from dsolo_jax.checks import choose
from dsolo_jax.progress import progress
from experiments import evaluation

# Row: method, and what the rows before V leave out.
LADDER = {
    "I logits": ("logits", {"upsample": "bilinear"}),
    "II KL": ("kl", {"suppress": "none", "upsample": "bilinear"}),
    "III + NMS": ("kl", {"suppress": "range", "suppress_below": 0.5, "upsample": "bilinear"}),
    "IV + JBU": ("kl", {"suppress": "range", "suppress_below": 0.5}),
    "V path": ("path", {}),
    "VI velocity": ("velocity", {}),
    "VII fusion": ("fusion", {}),
    "control: propagate": ("propagate", {}),
}

# The paper's ablation on B/16, from secondary notes: VOC21, COCO-Stuff, Cityscapes, ADE20K.
PAPER_SETS = ("voc21", "coco_stuff", "cityscapes", "ade20k")
PAPER = {
    "I logits": (18.6, 7.2, 6.7, 3.2),
    "II KL": (44.2, 12.1, 8.6, 6.4),
    "III + NMS": (45.9, 13.0, 9.6, 7.7),
    "IV + JBU": (46.3, 13.3, 10.1, 8.8),
    "V path": (66.9, 28.6, 41.7, 22.8),
    "VI velocity": (67.8, 28.9, 43.3, 23.0),
    "VII fusion": (64.9, 26.8, 41.4, 20.5),
}


def variant(text: str) -> readings.Readings:
    """A bundle with changes, from "bundle,name=value,…".

    Raises:
        ValueError: an unknown bundle, field or choice, or a value of another type.
    """
    bundle, *changes = (part.strip() for part in text.split(","))
    kinds = {field.name: field.type for field in dataclasses.fields(readings.Readings)}
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
    model: dsolo.Model,
    dataset: datasets.Dataset,
    count: int,
    variants: dict[str, readings.Readings],
    *,
    batch_size: int,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """mIoU in percent of every row for every variant, and every start's rank correlation.

    A picture's graph is made once, and it is encoded once for each start, whatever the number of
    variants.
    """
    words = vocabulary.parse(dataset.classes)
    classes = len(dataset.classes)
    sums = {
        (row, name): np.zeros((classes, classes), np.int64) for row in LADDER for name in variants
    }
    correlations: dict[str, list[float]] = {start: [] for start in clip.STARTS}
    run = evaluation.batches(model, dataset, list(range(count)), batch_size)
    for batch in progress(run, -(-count // batch_size), "readings", unit="batches"):
        for members in pipeline.buckets([len(example.picture.patches) for example in batch]):
            examples = [batch[i] for i in members]
            pictures = [example.picture for example in examples]
            graph = pipeline.graph(model, pictures)
            encoded = {
                start: pipeline.encode(model, pictures, words, start, graph)
                for start in clip.STARTS
            }
            for start in clip.STARTS:
                maps, upright = (encoded[s].cosines[: len(examples)] for s in (start, "naclip"))
                correlations[start].append(rank_correlation(maps, upright))
            for (row, name), total in sums.items():
                method, changes = LADDER[row]
                chosen = dataclasses.replace(variants[name], **changes)
                threshold = dataset.protocol.threshold(method)
                solved, decide = pipeline.decision(words, method, threshold)
                scores = pipeline.solve(encoded[chosen.start], solved, method, chosen)
                for example, scores_ in zip(examples, scores, strict=False):
                    labels = pipeline.to_pixels(
                        example.picture, scores_, chosen, decide=decide
                    ).labels
                    total += evaluation.confusion(labels, example, dataset)
    ladder = {
        row: {name: 100 * metrics.mean_iou(sums[row, name])[0] for name in variants}
        for row in LADDER
    }
    return ladder, {start: float(np.mean(values)) for start, values in correlations.items()}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, along the last axis, mean over the others."""
    ranks = [np.argsort(np.argsort(np.asarray(x), axis=-1), axis=-1).astype(float) for x in (a, b)]
    ranks = [x - x.mean(axis=-1, keepdims=True) for x in ranks]
    norms = [np.linalg.norm(x, axis=-1) for x in ranks]
    return float(np.mean((ranks[0] * ranks[1]).sum(axis=-1) / (norms[0] * norms[1])))


def table(ladder: dict[str, dict[str, float]]) -> str:
    """The ladder as text: a column for each variant, then the paper's sets."""
    names = list(next(iter(ladder.values())))
    header = [*names, *(f"paper {name}" for name in PAPER_SETS)]
    lines = [f"{'mIoU %':20}" + "".join(f"  {name:>16}" for name in header)]
    for row, values in ladder.items():
        cells = [f"{values[name]:.2f}" for name in names]
        cells += [f"{value:.1f}" for value in PAPER.get(row, ())]
        widths = [max(16, len(name)) for name in header]
        lines.append(
            f"{row:20}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=False))
        )
    return "\n".join(lines)
