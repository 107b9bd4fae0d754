"""Logits moved step by step beside closed forms: the rows that know the truth, times, a summary."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import dsolo_jax as dsolo
from dsolo_jax import background, clip, datasets, devices, pipeline, vocabulary
from dsolo_jax.pipeline import ClassMaps, Setting
from dsolo_jax.readings import Readings
from dsolo_jax.solver.discrepancy import needs_graph, optimised
from dsolo_jax.utils import memory
from dsolo_jax.utils.files import write_csv
from experiments import charts
from experiments.bootstrap import Interval
from experiments.tables import aligned

STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)

# Closed forms that the cost is set against.
_AGAINST = ("velocity", "path")

# Seconds that a turn of a job takes at least.
_TURN = 0.005

# Points of the best mIoU, within which an optimisation has arrived.
_NEAR = 1.0


# ------------------------------------------------------------------------------- with the truth


def knows_truth(setting: Setting) -> bool:
    """Whether a row is the bound that is drawn to the ground truth: no route of the package has
    it."""
    return setting.method == "optimise" and setting.readings.optimise_target == "oracle"


def patch_truth(
    labels: Int[np.ndarray, "H W"], classes: int, ignore: int, side: int
) -> Int[np.ndarray, "N"]:
    """Gives each patch of a side x side grid the class that most of its labelled pixels have.

    A pixel belongs to the patch that its centre lies in. A patch without labelled pixels gets -1;
    of classes with as many pixels it gets the first.
    """
    down, across = ((2 * np.arange(size) + 1) * side // (2 * size) for size in labels.shape)
    patch = down[:, None] * side + across
    known = (labels != ignore) & (labels >= 0) & (labels < classes)
    pairs = patch[known] * classes + labels[known]
    counts = np.bincount(pairs, minlength=side**2 * classes).reshape(side**2, classes)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1).astype(np.int32)


def bound(
    maps: ClassMaps,
    truth: Int[Array | np.ndarray, "B N"],
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
    readings: Readings,
) -> Float[Array, "B C r r"]:
    """Scores the classes as `pipeline.scores` does, drawn to the truth of each patch."""

    def solve(cosines, presence, truth):
        moved = optimised(cosines, readings, truth=truth)
        return moved + readings.presence * presence.astype(jnp.float32)[:, None]

    return pipeline.each_picture(solve, maps, truth, query_class, num_classes=num_classes)


class _Encoder:
    """A model on batches of examples: what the solver is given."""

    def __init__(self, model: dsolo.Model, dataset: datasets.Dataset):
        self._model, self._dataset = model, dataset
        self.words = vocabulary.parse(dataset.classes)
        self._text = pipeline.embed(model, self.words)

    def __call__(self, examples: Sequence[dict], settings: Sequence[Setting], size: int) -> dict:
        """Gives "graph" if a setting needs it, "maps" by start and "truth", of `size` pictures:
        where there are fewer examples the last is repeated."""
        config, params = self._model.config, self._model.params
        members = [*examples, *[examples[-1]] * (size - len(examples))]
        arrays = pipeline.batch([pipeline.prepare(config, one["image"]) for one in members])
        starts = dict.fromkeys(setting.readings.start for setting in settings)
        graph = None
        if any(not knows_truth(s) and needs_graph(s.method) for s in settings) or any(
            map(clip.needs_graph, starts)
        ):
            make = devices.program(pipeline.graph, mesh=None, config=config)
            of_graph = {"params": {"attention": params["attention"]}}
            graph = make(of_graph, {"squares": arrays.squares})
        maps = {}
        for start in starts:
            make = devices.program(pipeline.class_maps, mesh=None, config=config, start=start)
            by_graph = {"graph": graph} if clip.needs_graph(start) else {}
            of_clip = {"params": {"clip": {"vision": params["clip"]["vision"]}}}
            maps[start] = make(of_clip | {"text": self._text}, {"pictures": arrays, **by_graph})
        count, ignore = len(self.words.classes), self._dataset.ignore
        truth = [patch_truth(one["labels"], count, ignore, config.grid) for one in members]
        return {"graph": graph, "maps": maps, "truth": np.stack(truth)}

    def solve(self, given: dict, setting: Setting) -> tuple[Callable[[], Array], Any]:
        """Gives the job that makes scores of what it encoded, and what makes labels of them."""
        solved, decide = background.decision(self.words, setting.method, setting.threshold)
        whole = {"query_class": np.array(solved.query_class, np.int32)}
        shared = {"maps": given["maps"][setting.readings.start]}
        make = partial(devices.program, mesh=None, num_classes=len(solved.classes))
        if knows_truth(setting):
            make = make(bound, readings=setting.readings)
            shared |= {"truth": given["truth"]}
        else:
            make = make(pipeline.scores, method=setting.method, readings=setting.readings)
            shared |= {"graph": given["graph"] if needs_graph(setting.method) else None}
        return lambda: make(whole, shared), decide


def predictions(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    indices: Sequence[int],
    settings: Sequence[Setting],
    *,
    batch_size: int = 1,
) -> Iterator[tuple[dict[str, Any], list[Int[np.ndarray, "H W"]]]]:
    """Yields examples and labels as `evaluation.predictions` does, of settings that know the truth.

    Of whole pictures, in their order, on one device.
    """
    encode = _Encoder(model, dataset)
    examples = iter(datasets.examples(dataset, indices, transform=lambda example: example))
    with memory.explained():
        while chunk := list(itertools.islice(examples, batch_size)):
            given = encode(chunk, settings, batch_size)
            fetches: list[list[Callable]] = [[] for _ in chunk]
            for setting in settings:
                job, decide = encode.solve(given, setting)
                for of_example, example, one in zip(fetches, chunk, job(), strict=False):
                    of_example.append(
                        pipeline.to_pixels(example["image"], one, setting.readings, decide)
                    )
            for example, of_example in zip(chunk, fetches, strict=True):
                yield example, [fetch().labels for fetch in of_example]


def refuse_windows(model: dsolo.Model) -> None:
    """Raises a ValueError for a model that takes its pictures in windows."""
    if model.config.crop is not None:
        raise ValueError(
            f"the table 'optimisation' is of whole pictures, found windows of {model.config.crop} "
            "pixels; leave --crop out"
        )


# ------------------------------------------------------------------------------- what it costs


def seconds(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    settings: Sequence[Setting],
    *,
    pictures: int = 3,
    turns: int = 5,
) -> list[float]:
    """Times the solver alone, cosines and graph to scores, on one picture at a time.

    Medians over some pictures and turns, after an untimed call. The settings take turns, so that
    their ratios hold on a machine whose speed drifts; in each a short one is called several times.
    """
    encode = _Encoder(model, dataset)
    times: list[list[float]] = [[] for _ in settings]
    for index in range(min(pictures, len(dataset.ids))):
        given = encode([dataset[index]], settings, 1)
        jobs = [encode.solve(given, setting)[0] for setting in settings]
        for job in jobs:
            jax.block_until_ready(job())
        calls = [math.ceil(_TURN / _timed(job, 1)) for job in jobs]
        for _ in range(turns):
            for job, count, taken in zip(jobs, calls, times, strict=True):
                taken.append(_timed(job, count))
    return [statistics.median(taken) for taken in times]


def _timed(job: Callable[[], Array], count: int) -> float:
    """Times a call, as the mean of so many."""
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(job())
    return (time.perf_counter() - start) / count


class Point(NamedTuple):
    """A row of the table: mIoU in percent and the solver's seconds a picture."""

    name: str
    setting: Setting
    miou: float
    seconds: float


def curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Sorts the rows of each target by their steps; without a step they are the same row."""
    moved = [point for point in points if point.setting.method == "optimise"]
    found = {}
    for target in ("graph", "oracle"):
        of_target = [
            point
            for point in moved
            if target == point.setting.readings.optimise_target or not _steps(point)
        ]
        found[target] = sorted(of_target, key=_steps)
    return found


def _steps(point: Point) -> int:
    return point.setting.readings.optimise_steps


def arrival(curve: Sequence[Point]) -> Point:
    """Gives the first row whose mIoU is within a point of the curve's best."""
    best = max(point.miou for point in curve)
    return next(point for point in curve if point.miou >= best - _NEAR)


def report(
    model: dsolo.Model,
    dataset: datasets.Dataset,
    settings: Mapping[str, Mapping[str, Setting]],
    found: Mapping[str, Mapping[str, Interval]],
    output_dir: Path,
) -> str:
    """Times the rows of the table; draws and says what moving the logits costs.

    Leaves optimisation.png and optimisation.csv.

    Args:
        settings: by variant, then by row.
        found: mIoU in percent by row, then by variant.
    """
    parts, panels = [], {}
    cells: list[Sequence[Any]] = [("variant", "row", "miou", "seconds")]
    for variant, of_row in settings.items():
        taken = seconds(model, dataset, list(of_row.values()))
        points = [
            Point(row, setting, found[row][variant].estimate, one)
            for (row, setting), one in zip(of_row.items(), taken, strict=True)
        ]
        panels[variant] = points
        cells += [(variant, p.name, f"{p.miou:.3f}", f"{p.seconds:.6f}") for p in points]
        of = f"{variant}: " if variant else ""
        parts += [_times(variant, points), *(of + _sentence(points, t) for t in curves(points))]
    write_csv(output_dir / "optimisation.csv", cells)
    charts.write(output_dir / "optimisation.png", chart(panels))
    return "\n".join(parts)


def _against(points: Sequence[Point]) -> dict[str, Point]:
    return {name: point for name in _AGAINST for point in points if point.name == name}


def _times(variant: str, points: Sequence[Point]) -> str:
    closed = _against(points)
    head = [f"solver alone, {variant}" if variant else "solver alone", "mIoU %", "ms a picture"]
    lines = [
        [p.name, f"{p.miou:.2f}", f"{1e3 * p.seconds:.3f}"]
        + [f"{p.seconds / other.seconds:.2f}" for other in closed.values()]
        for p in points
    ]
    return aligned([*head, *(f"times {name}" for name in closed)], lines)


def _sentence(points: Sequence[Point], target: str) -> str:
    curve = curves(points)[target]
    best, first = max(curve, key=lambda point: point.miou), arrival(curve)
    ratios = (
        f"{first.seconds / other.seconds:.2f} times {name} ({1e3 * other.seconds:.3f} ms, mIoU "
        f"{other.miou:.2f})"
        for name, other in _against(points).items()
    )
    return (
        f"optimise, target {target}: best mIoU {best.miou:.2f} at step {_steps(best)}, within "
        f"{_NEAR:g} point of it first at step {_steps(first)} ({first.miou:.2f}), in "
        f"{1e3 * first.seconds:.3f} ms a picture: {', '.join(ratios)}\n"
    )


def chart(panels: Mapping[str, Sequence[Point]]) -> Any:
    """Draws mIoU over the solver's seconds: a line for each target, a mark for each closed form.

    The control "logits + presence" is where both lines begin.
    """
    drawn = {}
    for variant, points in panels.items():
        lines = {
            f"optimise, target {target}": [(p.seconds, p.miou, str(_steps(p))) for p in curve]
            for target, curve in curves(points).items()
        }
        marks = [
            (p.seconds, p.miou, p.name.removeprefix("control: "))
            for p in points
            if p.setting.method not in ("optimise", "logits_presence", "class_token")
        ]
        drawn[variant] = lines, marks
    return charts.lines_and_marks(
        "The solver alone; numbers on the lines are steps", drawn, "seconds a picture", "mIoU %"
    )
