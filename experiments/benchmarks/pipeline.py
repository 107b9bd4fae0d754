"""Pictures to labels with B/16 and Stable Diffusion 2: each stage, and all of them."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import model, pipeline
from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import SD2
from dsolo_jax.pixels import Labelling, batch_to_pixels
from dsolo_jax.utils import memory
from experiments.benchmarks import upsample, world
from experiments.benchmarks.networks import (
    SD2_SOURCE,
    TIMESTEP,
    clip_b16,
    encoder_dtype,
    sd_params,
)
from experiments.benchmarks.running import Case, Work, compile_all
from experiments.benchmarks.timing import Jobs, Program, torch_jobs

MULTIPLE = stable_diffusion.squares(SD2).multiple  # of which sizes must be, pixels

SHORT_SIDE = 336  # of a picture in CLIP, pixels
_METHOD, _READINGS = "velocity", dsolo.Readings()
_AHEAD = 4  # batches of which the next is started before the labels of the last are fetched
_AT_ONCE = 3  # graphs that are compiled together while the largest batch is looked for


_AGREEMENTS = {
    "bfloat16 with float32, appearance": partial(world.agreement, "appearance"),
    "bfloat16 with float32, miniature": partial(world.agreement, "miniature"),
    "batches of 8 with single pictures": partial(world.batch_agreement, 8),
    "tiles of 96 pixels with whole scenes of 112": partial(world.tile_agreement, 96),
    "tiles of 112 pixels on sheets of six scenes with the scenes": world.sheet_agreement,
}


class Sweep(NamedTuple):
    """Numbers of pictures, of classes and of pixels a side, in the order in which they are timed;
    and whether the largest batch is looked for."""

    batches: tuple[int, ...]
    classes: tuple[int, ...]
    sizes: tuple[int, ...]
    largest: bool

    @classmethod
    def usual(cls, backend: str) -> "Sweep":
        """Gives those of a kind of device; what matters most comes first."""
        if backend == "cpu":
            return cls((1,), (21,), (512,), largest=False)
        return cls((16, 8, 32, 1), (21, 150), (512,), largest=True)


def run(sweep: Sweep, late: Callable[[], bool] = lambda: False) -> Iterator[Case]:
    """The stages and the whole beside torch, in bfloat16 on an accelerator: seconds a batch.

    Weights are random, pictures and what the solver gets are the miniature world's, see `world`.
    """
    dtype = jnp.dtype(encoder_dtype()).name
    for size in sweep.sizes:
        for batch in sweep.batches:
            pictures, case = _Pictures(batch, size), f"batch {batch}, {size} px, {dtype}"
            each = {classes: _Classes(pictures, classes) for classes in sweep.classes}
            graph = each[sweep.classes[0]].graph_row
            yield Case("pipeline", f"graph, {case}", graph, wave=size)
            for classes, of in each.items():
                for stage, prepare in of.rows().items():
                    yield Case("pipeline", f"{stage}, C={classes}, {case}", prepare, wave=size)
    for case, measure in _AGREEMENTS.items():
        yield Case("pipeline", f"agreement of {case}", measure=measure, wave="agreement")
    for size in sweep.sizes if sweep.largest else ():
        classes, start = sweep.classes[0], 2 * max(sweep.batches)
        measure = partial(largest, _Trials(size, classes), start, late)
        case = f"largest batch, C={classes}, {size} px, {dtype}"
        yield Case("pipeline", case, measure=measure, wave="largest")


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """B pictures of one size, and the programs that rows of them share."""

    batch: int
    size: int

    @cached_property
    def model(self) -> dsolo.Model:
        dtype = jnp.dtype(encoder_dtype()).name
        config, params = clip_b16(dtype)
        source = dataclasses.replace(SD2_SOURCE, size=self.size)
        settings = model.Config(
            clip=config,
            source=source,
            readings=_READINGS,
            grid=source.grid,
            short_side=SHORT_SIDE,
            long_side=2048,
            tokenizer="",  # the embeddings are there
            text_weights="",
        )
        return dsolo.Model(settings, {"clip": params, "attention": sd_params(SD2, dtype)})

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        return list(world.pictures(self.batch, self.size, self.size))

    @cached_property
    def arrays(self) -> pipeline.Batch:
        config = self.model.config
        return pipeline.batch([pipeline.prepare(config, picture) for picture in self.pixels])

    @cached_property
    def graph(self) -> Program:
        make = partial(pipeline.graph, config=self.model.config)
        return Program(make, self.model.params, squares=self.arrays.squares)

    @cached_property
    def maps(self) -> tuple[pipeline.ClassMaps, jax.Array]:
        """What the solver gets, the graph in the type in which it would come."""
        maps, graph = world.maps(self.batch, self.model.config.grid)
        return maps, graph.astype(self.graph.result.dtype)

    @cached_property
    def steps(self) -> int:
        maps, graph = self.maps
        return world.steps(maps.cosines, graph, _READINGS)


@dataclasses.dataclass(frozen=True, eq=False)
class _Classes:
    """The same pictures with C classes."""

    pictures: _Pictures
    classes: int

    @cached_property
    def text(self) -> jax.Array:
        width = self.pictures.model.config.clip.projection_dim
        text = np.random.default_rng(2).standard_normal((self.classes, width))
        return jnp.asarray(text / np.linalg.norm(text, axis=1, keepdims=True), jnp.float32)

    @cached_property
    def clip(self) -> Program:
        config, params = self.pictures.model.config, self.pictures.model.params
        make = partial(pipeline.class_maps, config=config, start=_READINGS.start)
        return Program(make, params, pictures=self.pictures.arrays, text=self.text)

    @cached_property
    def maps(self) -> pipeline.ClassMaps:
        return world.repeated(self.pictures.maps[0], self.classes)

    @cached_property
    def solver(self) -> Program:
        how: dict[str, Any] = {"method": _METHOD, "readings": _READINGS}
        solve = partial(pipeline.scores, num_classes=self.classes, **how)
        graph, of_class = self.pictures.maps[1], np.arange(self.classes, dtype=np.int32)
        steps = (self.pictures.steps,)
        return Program(solve, self.maps, graph, query_class=of_class, rounds=steps)

    @cached_property
    def scores(self) -> jax.Array:
        return self.solver()

    @cached_property
    def torch(self) -> Jobs:
        config, (_, graph) = self.pictures.model.config, self.pictures.maps
        ours = (np.asarray(x, np.float32) for x in (*self.maps, graph))
        return torch_jobs(
            "stages", config.clip, config.source, TIMESTEP, encoder_dtype(), _READINGS,
            tuple(ours), np.stack(self.pictures.pixels), np.asarray(self.text),
            tuple(map(int, self.pictures.arrays.grids[0])),
        )  # fmt: skip

    def labels(self, scores: jax.Array) -> list[Callable[[], Labelling]]:
        """Starts them all."""
        return batch_to_pixels(self.pictures.pixels, scores, _READINGS)

    def start(self) -> tuple[Any, list[Callable[[], Labelling]]]:
        """Starts all stages. The solver gets the maps of the bundled CLIP, not those of random
        weights that CLIP and the graph give here."""
        made = self.pictures.graph(), self.clip()
        return made, self.labels(self.solver())

    def whole(self) -> Any:
        made, fetches = self.start()
        return made, [fetch() for fetch in fetches]

    def ahead(self) -> Any:
        waiting: Sequence[Callable] = ()
        for _ in range(_AHEAD):
            _, started = self.start()
            for fetch in waiting:
                fetch()
            waiting = started
        return [fetch() for fetch in waiting]

    # ----------------------------------------------------------------------------------- rows

    def rows(self) -> dict[str, Callable[[], Work]]:
        """Names the stages behind the graph and the whole, and gives what makes each."""
        ahead = {"whole, next one ahead": self.ahead_row}
        found = {"whole": self.whole_row, "CLIP": self.clip_row}
        found |= {"solver": self.solver_row, "pixels": self.pixels_row}
        return found if jax.default_backend() == "cpu" else ahead | found

    def graph_row(self) -> Work:
        return self._row("graph", self.pictures.graph, (self.pictures.graph,))

    def clip_row(self) -> Work:
        return self._row("CLIP", self.clip, (self.clip,))

    def solver_row(self) -> Work:
        work = self._row("solver", self.solver, (self.solver,))
        return work._replace(columns={"steps": self.pictures.steps})

    def pixels_row(self) -> Work:
        work = self._row("pixels", lambda: [fetch() for fetch in self.labels(self.scores)], ())
        return work._replace(needs=(self.solver,), **self._upsampling())

    def whole_row(self) -> Work:
        programs = self.pictures.graph, self.clip, self.solver
        return self._row("whole", self.whole, programs)._replace(**self._upsampling())

    def ahead_row(self) -> Work:
        """Seconds of one batch of several."""
        return self.whole_row()._replace(job=self.ahead, scale=1 / _AHEAD, calls=_AHEAD)

    def _row(self, stage: str, job: Callable, programs: tuple[Program, ...]) -> Work:
        theirs = partial(_only, lambda: self.torch, stage)
        return Work(job, programs, theirs=theirs, pictures=self.pictures.batch)

    def _upsampling(self) -> dict[str, Any]:
        batch, size = self.pictures.batch, self.pictures.size
        form, sigma = _READINGS.upsample, _READINGS.spatial_sigma
        side = self.pictures.model.config.grid
        return upsample.work(batch, self.classes, side, (size, size), form, sigma)


def _only(jobs: Callable[[], Jobs], stage: str) -> Jobs:
    found = jobs()
    return {"torch": found[stage]} if stage in found else {}


# -------------------------------------------------------------------------------- largest batch


class _Trials:
    """Runs a batch of each size that it is called with; the graphs of the next few are compiled
    with the first one's, as each takes a minute."""

    def __init__(self, size: int, classes: int):
        self._size, self._classes = size, classes
        self._ready: dict[int, _Pictures | None] = {}

    def __call__(self, batch: int) -> None:
        if batch not in self._ready:
            number = 1 if self._ready else _AT_ONCE
            self._ready = {b: _Pictures(b, self._size) for b in (batch << i for i in range(number))}
            compile_all([pictures.graph for pictures in self._ready.values()])
        pictures, self._ready[batch] = self._ready[batch], None  # it goes with its arrays
        of = _Classes(pictures, self._classes)
        # One after the other: there is one graph at a time, as in a run, where it is the solver's.
        jax.block_until_ready(pictures.graph())
        jax.block_until_ready(of.clip())
        for fetch in of.labels(of.solver()):
            fetch()


def largest(
    trial: Callable[[int], None], start: int, late: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Doubles a batch until it does not fit any more, or there is no time left; halves it first if
    it does not fit from the start.

    Args:
        trial: runs a batch; a full memory is a MemoryError, or JAX's RESOURCE_EXHAUSTED.
        start: the first.

    Returns:
        The last that fitted, 0 if none did, and the first that did not, None if all did.
    """

    def fits(batch: int) -> bool:
        try:
            trial(batch)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if memory.message(error) is None:
                raise
            return False
        return True

    begin, batch, fitted, too_large = time.perf_counter(), start, 0, None
    while batch and not (fitted and too_large) and not late():
        if fits(batch):
            fitted, batch = batch, 2 * batch
        else:
            too_large, batch = batch, batch // 2
    seconds = time.perf_counter() - begin
    return {"search_s": seconds, "largest_batch": fitted, "too_large": too_large}
