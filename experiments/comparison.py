"""Our methods and the peers under one protocol: the rows, what each costs by itself, the tables."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

import dsolo_jax as dsolo
from dsolo_jax import attention, datasets, peers
from dsolo_jax.pipeline import Setting
from dsolo_jax.readings import Readings, described
from dsolo_jax.utils.checks import choose
from experiments import evaluation
from experiments.ablation import Source
from experiments.bootstrap import Interval, Tally
from experiments.profiling import peak_bytes
from experiments.reports.published import PUBLISHED
from experiments.tables import aligned

# How a method is run:
#   common     the whole picture, one graph for all that want one, scores bilinearly to the pixels
#   published  as its own paper or repository runs it: graph, windows, thresholds, refinement
PROTOCOLS = ("common", "published")

# What is not a peer's; the last three are controls.
OURS = (
    "velocity", "path", "fusion", "kl", "optimise", "logits",
    "propagate", "logits_presence", "class_token",
)  # fmt: skip

# The names that peers and we have in the table of published numbers.
_PUBLISHED = {
    "velocity": "DSLO M.V.",
    "path": "DSLO O.P.",
    "maskclip": "MaskCLIP",
    "sclip": "SCLIP",
    "clearclip": "ClearCLIP",
    "naclip": "NACLIP + PAMR",
    "proxyclip": "ProxyCLIP",
    "cliper": "CLIPer, whole image",
}

# Pictures that a row's rate is measured on.
_TIMED = 16


class Row(NamedTuple):
    """A method as it is run by one of `PROTOCOLS`.

    model: changes to the arguments of `dsolo.load`.
    dataset: changes to the fields of the dataset's protocol.
    """

    name: str
    protocol: str
    method: str
    readings: Readings
    model: Source = ()
    dataset: tuple[tuple[str, Any], ...] = ()

    @property
    def folder(self) -> str:
        return f"{self.protocol}/{self.name}"


class Cost(NamedTuple):
    """What a row costs in a process of its own: pictures a second without loading and compilation,
    and the peak of memory, of the device where that says so, with both."""

    rate: float
    peak_mib: float


def rows(
    names: Sequence[str],
    protocols: Sequence[str],
    dataset: str,
    readings: Readings,
    source: attention.Source,
    own: Mapping[str, str],
    *,
    short_side: int,
    patch: int,
) -> list[Row]:
    """Lists the rows of a benchmark, those of each protocol together.

    Args:
        names: some of `OURS` and of `peers.PEERS`.
        dataset: by whose name peers say how they are run.
        readings: of ours; each peer has its own.
        source: the common graph's.
        own: of a peer the source that is taken instead of its own, at this source's own size.
        short_side, patch: of pictures in CLIP, pixels, see `peers.published`.

    Raises:
        ValueError: an unknown method or protocol.
    """
    for name in names:
        choose("method", name, (*OURS, *peers.PEERS))
    sized = {"short_side": short_side, "patch": patch}

    def published(name: str) -> Row:
        changes = {} if name in OURS else peers.published(name, dataset, **sized)
        return _published(name, readings, changes, own.get(name))

    makers = {"common": lambda name: _common(name, readings, source), "published": published}
    return [makers[choose("protocol", p, PROTOCOLS)](name) for p in protocols for name in names]


def _common(name: str, readings: Readings, source: attention.Source) -> Row:
    if name in OURS:
        return Row(name, "common", name, dataclasses.replace(readings, upsample="bilinear"))
    peer = peers.PEERS[name]
    plain = dataclasses.replace(peer.readings, upsample="bilinear")
    return Row(name, "common", peer.method, plain, _layers(peer, source.kind))


def _published(
    name: str, readings: Readings, protocol: Mapping[str, Any], source: str | None
) -> Row:
    if name in OURS:
        return Row(name, "published", name, readings)
    peer = peers.PEERS[name]
    model = {"attention": source or peer.attention, "attention_size": peer.size, "grid": peer.grid}
    if source is None:
        layers = _layers(peer, peer.kind)
    else:
        model |= {"attention_size": None, "grid": None}
        layers = _layers(peer, attention.load(source, graph=False)[0].kind)
    return Row(
        name,
        "published",
        peer.method,
        peer.readings,
        (*((key, value) for key, value in model.items() if value is not None), *layers),
        tuple(protocol.items()),
    )


def _layers(peer: peers.Peer, kind: str) -> Source:
    """The peer's own layers, where the source that is there is of the kind that has them."""
    return (("attention_layers", peer.layers),) if peer.layers and kind == peer.kind else ()


# ------------------------------------------------------------------------------- what it costs


def cost(
    load: Callable[[], dsolo.Model], open_: Callable[[], datasets.Dataset], setting: Setting
) -> Cost:
    """Measures a row's rate and peak, in a process of its own, which loads the model and opens the
    dataset itself."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(measured, load, open_, setting).result()


def measured(
    load: Callable[[], dsolo.Model], open_: Callable[[], datasets.Dataset], setting: Setting
) -> Cost:
    """Measures the same in this process, whose peak may be of something else."""
    model, dataset = load(), open_()
    indices = range(min(_TIMED, len(dataset)))
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        for _ in evaluation.predictions(model, dataset, indices, [setting]):
            pass
        seconds = time.perf_counter() - start
    of_device = jax.local_devices()[0].memory_stats() or {}
    peak = of_device.get("peak_bytes_in_use") or peak_bytes()
    return Cost(len(indices) / seconds, peak / 2**20)


# ------------------------------------------------------------------------------- what is said


def markdown(
    dataset: str, rows: Sequence[Row], found: Mapping[Row, Interval], costs: Mapping[Row, Cost]
) -> str:
    """Writes a benchmark's table: mIoU with its 95 % interval, what it costs, what is published."""
    head = f"{dataset}, protocol", "method", "mIoU %", "pictures/s", "peak MiB", "published %"
    body = (
        (
            row.protocol,
            row.name,
            found[row],
            f"{costs[row].rate:.2f}",
            f"{costs[row].peak_mib:.0f}",
            _other(row, dataset),
        )
        for row in rows
    )
    return aligned(head, body, texts=("method",))


def lines(
    dataset: str, rows: Sequence[Row], found: Mapping[Row, Interval], costs: Mapping[Row, Cost]
) -> Iterator[Sequence[Any]]:
    """Yields the lines of a CSV, one for each row."""
    yield (
        "dataset", "protocol", "method", "miou", "low", "high", "pictures_per_second", "peak_mib",
        "published", "readings", "model", "fields",
    )  # fmt: skip
    for row in rows:
        low, miou, high = (f"{x:.3f}" for x in found[row])
        rate, peak = costs[row]
        settings = described(row.readings), *(str(dict(x)) for x in (row.model, row.dataset))
        yield (
            dataset, row.protocol, row.name, miou, low, high, f"{rate:.3f}", f"{peak:.0f}",
            _other(row, dataset), *settings,
        )  # fmt: skip


def _other(row: Row, dataset: str) -> str:
    """The published number of a row that is run as published, with its source."""
    names = {_PUBLISHED.get(row.name)} if row.protocol == "published" else set()
    found = (x for x in PUBLISHED if x.method in names and x.scale == "B/16")
    cells = [f"{x.miou[dataset]:.1f} ({x.source})" for x in found if dataset in x.miou]
    return ", ".join(cells) or "–"


def furthest(ours: Tally, peer: Tally) -> list[int]:
    """Finds the pictures where ours is right in the most pixels more than the peer, and in the most
    pixels fewer, as shares of what both say and what is true."""

    def right(tally: Tally) -> Float[np.ndarray, "S"]:
        return tally.intersection.sum(axis=1) / np.maximum(tally.union.sum(axis=1), 1)

    apart = right(ours) - right(peer)
    return [int(apart.argmax()), int(apart.argmin())]
