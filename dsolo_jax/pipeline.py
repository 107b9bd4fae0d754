"""Pictures and class names to labels: the one route, each arrow a pure function of arrays.

    prepare -> batch -> graph, class_maps -> scores -> labels

`graph`, `class_maps`, `scores` and the whole of them, `forward`, are functions of (params, config,
arrays): jit, vmap, shard or export them in code of your own. `run` drives them over many pictures;
`segment`, the evaluation and the ablation are `run` with other arguments.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from dsolo_jax import attention, background, clip, devices, vocabulary, windows
from dsolo_jax.checkpoints import Params
from dsolo_jax.model import Config, Model, suitable_batch_size
from dsolo_jax.pictures import AnyPicture, Batch, Picture, batch, bucket, normalised, prepare
from dsolo_jax.pixels import Result, batch_to_pixels, to_pixels
from dsolo_jax.readings import Readings, resolve
from dsolo_jax.solver.discrepancy import discrepancy, needs_graph
from dsolo_jax.utils import memory
from dsolo_jax.vocabulary import Vocabulary


class ClassMaps(NamedTuple):
    """What CLIP says of B pictures and Q queries, on the r x r grid, N = r · r."""

    cosines: Float[Array, "B Q N"]  # of each query with each patch
    presence: Float[Array, "B Q"]  # of each query with the whole picture


class Setting(NamedTuple):
    """How labels are made of class maps; a threshold gives the background what is improbable."""

    method: str
    readings: Readings
    threshold: background.Threshold | None = None

    @property
    def needs_graph(self) -> bool:
        """Whether its method or its start looks at the patch graph."""
        return needs_graph(self.method) or clip.needs_graph(self.readings.start)


class _View(NamedTuple):
    """What goes through the networks: a picture, or a window of it."""

    number: int  # of the picture
    pixels: UInt8[np.ndarray, "H W 3"]  # of the picture
    part: Picture
    place: Int[np.ndarray, "6"] | None = None  # of a window, see `windows.cut`
    last: bool = True  # of the picture's


def segment(
    model: Model,
    image: AnyPicture | Sequence[AnyPicture],
    classes: Sequence[str] | Vocabulary,
    method: str | None = None,
    readings: str | Readings | None = None,
    return_scores: bool = False,
) -> Result | list[Result]:
    """Labels every pixel of a picture, or of each of a list of them, with one of the classes.

    Args:
        model: of `load`.
        image: a path, a PIL image or an array; or a list of these, of any sizes.
        classes: one string a class, synonyms separated by ", "; or a `Vocabulary`.
        method: "velocity", "path", "kl", "logits", "fusion", or another of `dsolo.METHODS`; None
            is the preset's own, which is "velocity" but for peers.
        readings: "robust", "paper", "robust,tau=0.3" or a `Readings`, instead of the model's.
        return_scores: also give every pixel's scores, float32 [C, H, W].

    Raises:
        ValueError: unreadable picture, unusable classes, unknown method or readings, scores that
            are not finite.
        FileNotFoundError: no such picture.
        MemoryError: a device's memory is full.
    """
    words = classes if isinstance(classes, Vocabulary) else vocabulary.parse(classes)
    method = model.config.method if method is None else method
    setting = Setting(method, model.config.readings if readings is None else resolve(readings))
    images_: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
    pictures = (prepare(model.config, one) for one in images_)
    size = suitable_batch_size(model)
    if model.config.crop is None:  # what fills up a batch is done in vain
        size = min(size, 1 << max(len(images_) - 1, 0).bit_length())
    found = run(model, pictures, words, [setting], batch_size=size, return_scores=return_scores)
    results = {index: result for index, [result] in found}
    return [results[i] for i in range(len(results))] if images_ is image else results[0]


def embed(model: Model, words: Vocabulary) -> Float[Array, "Q D"]:
    """Embeds the queries of a vocabulary, or finds them in the cache of earlier runs."""
    config, params = model.config, model.params["clip"]
    of_text = params, config.clip, config.tokenizer, config.text_weights
    text = vocabulary.embed(words.queries, *of_text)
    return devices.replicated(jnp.asarray(text), model.mesh)


# ------------------------------------------------------------------------------- pure functions


def forward(
    params: Params,
    config: Config,
    pictures: Batch,
    text: Float[Array, "Q D"],
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
    method: str = "velocity",
    readings: str | Readings = "robust",
) -> Float[Array, "B C r r"]:
    """Scores the classes on the grid: the whole network, from prepared pictures and embeddings.

    Args:
        params, config: of a `Model`.
        pictures: of `batch`.
        text: of `embed`.
        query_class: class of each query, `Vocabulary.query_class`.
        num_classes: C.
        method, readings: see `discrepancy`.
    """
    readings = resolve(readings)
    wanted = Setting(method, readings).needs_graph
    attention_ = graph(params, config, pictures.squares) if wanted else None
    maps = class_maps(params, config, pictures, text, attention_, start=readings.start)
    return scores(
        maps, attention_, query_class, num_classes=num_classes, method=method, readings=readings
    )


def graph(
    params: Params, config: Config, squares: UInt8[Array | np.ndarray, "B S S 3"]
) -> Float[Array, "B N N"]:
    """Gives the attention source's graph of each picture on the solver's grid; rows sum to one.

    Where the source's weights have 16 bits, so have the graph's entries, as bfloat16: the solver
    reads them many times, and the weights' own rounding changes them by more.
    """
    found = attention.graph(params["attention"], config.source, squares)
    own = config.source.grid
    if own != config.grid:
        resample = partial(attention.resample_attention, grid=np.full(2, own), side=config.grid)
        found = jax.vmap(resample)(found)
    half = any(leaf.dtype.itemsize == 2 for leaf in jax.tree.leaves(params["attention"]))
    return found.astype(jnp.bfloat16) if half else found


def class_maps(
    params: Params,
    config: Config,
    pictures: Batch,
    text: Float[Array, "Q D"],
    graph: Float[Array, "B N N"] | None = None,
    *,
    start: str,
) -> ClassMaps:
    """Gives the cosines of words with patches, resampled to the solver's grid, and with pictures.

    Args:
        graph: of `graph`, for a start that mixes the patches by it, see `clip.needs_graph`; such a
            start leaves them on the graph's grid, where nothing is resampled. Others ignore it.
        start: what CLIP's last block does, one of `clip.STARTS`.

    Raises:
        ValueError: an unknown start, or one that needs the graph without it; patches that are no
            bytes.
    """
    by_graph = clip.needs_graph(start)
    if by_graph and graph is None:
        raise ValueError(
            f"start {start!r} mixes the patches by the attention source's graph, found None; give "
            "graph=pipeline.graph(...), or choose another start"
        )
    of_graph = {"graph": graph} if by_graph else {}
    patches = normalised(config, pictures.patches)
    encoded = clip.encode_patches(
        params["clip"], config.clip, patches, pictures.grids, start=start, **of_graph
    )

    def one(patches, pooled, grid):
        maps = _cosine(text, patches)
        maps = maps if by_graph else attention.resample_maps(maps, grid, config.grid)
        return maps, _cosine(text, pooled[None])[:, 0]

    return ClassMaps(*jax.vmap(one)(encoded.patches, encoded.pooled, pictures.grids))


def _cosine(text: Float[Array, "Q D"], x: Float[Array, "n D"]) -> Float[Array, "Q n"]:
    """Text has length 1; padding, which is zero, gets zero."""
    x = x.astype(jnp.float32)
    length = jnp.linalg.norm(x, axis=-1)
    products = jnp.einsum("qd,nd->qn", text, x, precision=jax.lax.Precision.HIGHEST)
    return products / jnp.where(length > 0, length, 1)


def scores(
    maps: ClassMaps,
    graph: Float[Array, "B N N"] | None,
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
    method: str,
    readings: Readings,
) -> Float[Array, "B C r r"]:
    """Scores the classes on the grid; each class's map is the largest of its queries'."""

    def solve(cosines, presence, graph):
        return discrepancy(cosines, graph, presence, method=method, readings=readings)

    return each_picture(solve, maps, graph, query_class, num_classes=num_classes)


def each_picture(
    solve: Callable[[Array, Array, Any], Array],
    maps: ClassMaps,
    given: Array | np.ndarray | None,
    query_class: Int[Array | np.ndarray, "Q"],
    *,
    num_classes: int,
) -> Float[Array, "B C r r"]:
    """Maps a solver over pictures: of the cosines [C, N] and presence [C] of classes, and of what
    each picture is given besides, to scores [C, N]."""

    def one(cosines, presence, given):
        folded = (vocabulary.fold(x, query_class, num_classes) for x in (cosines, presence))
        return solve(*folded, given)

    found = jax.vmap(one, in_axes=(0, 0, None if given is None else 0))(*maps, given)
    side = math.isqrt(found.shape[-1])
    return found.reshape(*found.shape[:2], side, side)


# ------------------------------------------------------------------------------- many pictures


def run(
    model: Model,
    pictures: Iterable[Picture],
    words: Vocabulary,
    settings: Sequence[Setting],
    *,
    batch_size: int = 1,
    return_scores: bool = False,
    watch: Callable[[str, Any], Any] = lambda stage, value: None,
) -> Iterator[tuple[int, list[Result]]]:
    """Labels pictures as they come: the index of each and a result for every setting.

    The graph of a picture is made once, its class maps once for each start, however many settings
    there are. Pictures whose patches fall into one bucket go through the networks together,
    `batch_size` on each device; so they may come out in another order. Labels are fetched after the
    next batch has been dispatched, so that no device waits for the host. Of a model with windows
    (`Config.crop`) it is these that fill the batches; only those of a batch are held, and a sum a
    picture, see `windows`.

    Args:
        pictures: of `prepare`.
        batch_size: pictures or windows a device takes at a time; a batch that lacks some is filled
            up, so that every batch goes through the same programs.
        return_scores: also give every pixel's scores; each picture is then waited for.
        watch: called with the name and the value of each stage when it has been dispatched.

    Raises:
        ValueError: an unknown method; a method or start that needs the graph of a model without
            one; scores that are not finite.
        MemoryError: a device's memory is full.
    """
    with_graph = _need_graph(model, settings)
    of_graph = {"params": {"attention": model.params["attention"]}}
    of_clip: dict[str, Any] = {"params": {"clip": {"vision": model.params["clip"]["vision"]}}}
    of_clip |= {"text": embed(model, words)}
    program = partial(devices.program, mesh=model.mesh)
    size = batch_size * model.num_devices
    waiting: dict[int, list[_View]] = {}
    sums: dict[tuple[int, int], windows.Sum] = {}  # of a picture and a setting
    started: dict[int, list[Callable[[], Result]]] = {}

    def finish() -> Iterator[tuple[int, list[Result]]]:
        for index, fetches in started.items():
            yield index, [fetch() for fetch in fetches]

    def groups() -> Iterator[list[_View]]:
        for view in _views(model.config, pictures):
            length = bucket(len(view.part.patches))
            group = waiting.setdefault(length, [])
            group.append(view)
            if len(group) == size:
                yield waiting.pop(length)
        yield from waiting.values()

    def whole(
        view: _View, setting: int, found: Float[Array, "C r r"]
    ) -> Float[Array, "C R R"] | None:
        """The picture's scores, once its last window is in."""
        if view.place is None:
            return found
        so_far = sums.pop((view.number, setting), None)
        so_far = windows.add(so_far, found, view.place, windows.points(model.config))
        if view.last:
            return windows.mean(so_far)
        sums[view.number, setting] = so_far
        return None

    with memory.explained():
        for group in groups():
            members = [view.part for view in group]
            arrays = batch([*members, *[members[-1]] * (size - len(members))])
            graph_ = None
            if with_graph:
                make = program(graph, config=model.config)
                graph_ = make(of_graph, {"squares": arrays.squares})
                watch("graph", graph_)
            maps = {}
            for start in dict.fromkeys(setting.readings.start for setting in settings):
                make = program(class_maps, config=model.config, start=start)
                by_graph = {"graph": graph_} if clip.needs_graph(start) else {}
                maps[start] = make(of_clip, {"pictures": arrays, **by_graph})
            watch("CLIP", maps)
            fetches: dict[int, list[Callable[[], Result]]]
            fetches = {view.number: [] for view in group if view.last}
            for s, setting in enumerate(settings):
                solved, decide = background.decision(words, setting.method, setting.threshold)
                how: dict[str, Any] = {"method": setting.method, "readings": setting.readings}
                make = program(scores, num_classes=len(solved.classes), **how)
                of_class = {"query_class": np.array(solved.query_class, np.int32)}
                attention_ = graph_ if needs_graph(setting.method) else None
                found = make(of_class, {"maps": maps[setting.readings.start], "graph": attention_})
                watch("solver", found)
                last = setting.readings, decide, return_scores
                if model.config.crop is None:
                    ended = batch_to_pixels([view.pixels for view in group], found, *last)
                else:
                    each = zip(group, devices.each(found), strict=False)
                    scored = [(view.pixels, whole(view, s, part)) for view, part in each]
                    ended = [to_pixels(p, one, *last) for p, one in scored if one is not None]
                for number, fetch in zip(fetches, ended, strict=True):
                    fetches[number].append(fetch)
                    watch("pixels", None)
            yield from finish()
            started = fetches
        yield from finish()


def _views(config: Config, pictures: Iterable[Picture]) -> Iterator[_View]:
    """Lists the pictures, or their windows, one when it is asked for."""
    for index, picture in enumerate(pictures):
        if config.crop is None:
            yield _View(index, picture.pixels, picture)
            continue
        last = None
        for part, place in windows.cut(config, picture):
            if last is not None:
                yield last
            last = _View(index, picture.pixels, part, place, last=False)
        assert last is not None
        yield last._replace(last=True)


def _need_graph(model: Model, settings: Sequence[Setting]) -> bool:
    """Whether one of the settings looks at the patch graph; refused where the model has none."""
    named = [f"method {s.method!r}" for s in settings if needs_graph(s.method)]
    starts = (setting.readings.start for setting in settings)
    named += [f"start {start!r}" for start in starts if clip.needs_graph(start)]
    if named and model.params["attention"] is None:
        raise ValueError(
            f"{', '.join(dict.fromkeys(named))}: this needs a patch graph, and the model was "
            "loaded without one; load it with graph=True"
        )
    return bool(named)


def spread(model: Model) -> Model:
    """Puts the model on all devices of this process, which then share every batch of `run`.

    What a device does to its pictures is what one device alone would do with a batch of that size,
    so the results are the same however many there are.
    """
    if model.mesh is not None:
        return model
    mesh = Mesh(np.array(jax.local_devices()), ("picture",))
    return Model(model.config, devices.replicated(model.params, mesh), mesh)
