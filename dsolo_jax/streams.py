"""Many pictures through the stages, in batches that the devices share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from dsolo_jax import background, clip, devices, vocabulary, windows
from dsolo_jax.model import Config, Model
from dsolo_jax.pictures import Picture, batch, bucket
from dsolo_jax.pixels import Labelling, batch_to_pixels, to_pixels
from dsolo_jax.solver.discrepancy import needs_graph
from dsolo_jax.stages import Setting, class_maps, graph, scores
from dsolo_jax.utils import memory
from dsolo_jax.vocabulary import Vocabulary


class View(NamedTuple):
    """What goes through the networks: a picture, or a window of it."""

    number: int  # of the picture
    pixels: UInt8[np.ndarray, "H W 3"]  # of the picture
    part: Picture
    place: windows.Place | None = None  # of a window
    last: bool = True  # of the picture's


def embed(model: Model, words: Vocabulary) -> Float[Array, "Q D"]:
    """Embeds the queries of a vocabulary, or finds them in the cache of earlier runs."""
    config, params = model.config, model.params["clip"]
    of_text = params, config.clip, config.tokenizer, config.text_weights
    text = vocabulary.embed(words.queries, *of_text)
    return devices.replicated(jnp.asarray(text), model.mesh)


def run(
    model: Model,
    pictures: Iterable[Picture],
    words: Vocabulary,
    settings: Sequence[Setting],
    *,
    batch_size: int = 1,
    return_scores: bool = False,
    watch: Callable[[str, Any], Any] = lambda stage, value: None,
) -> Iterator[tuple[int, list[Labelling]]]:
    """Labels pictures as they come: the index of each and a result for every setting.

    The graph of a picture is made once, its class maps once for each start, however many settings
    there are. Pictures whose patches fall into one bucket go through the networks together,
    `batch_size` on each device; so they may come out in another order. Labels are fetched after the
    next batch has been dispatched, so that no device waits for the host. Of a model with windows
    (`Config.crop`), or of a picture with tiles, it is these that fill the batches; only those of a
    batch are held, and a sum a picture, see `windows`.

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
    with_graph = need_graph(model, settings)
    of_graph = {"params": {"attention": model.params["attention"]}}
    of_clip: dict[str, Any] = {"params": {"clip": {"vision": model.params["clip"]["vision"]}}}
    of_clip |= {"text": embed(model, words)}
    program = partial(devices.program, mesh=model.mesh)
    size = batch_size * model.num_devices
    waiting: dict[int, list[View]] = {}
    sums: dict[tuple[int, int], windows.Sum] = {}  # of a picture and a setting
    started: dict[int, list[Callable[[], Labelling]]] = {}

    def finish() -> Iterator[tuple[int, list[Labelling]]]:
        for index, fetches in started.items():
            yield index, [fetch() for fetch in fetches]

    def groups() -> Iterator[list[View]]:
        for view in views(model.config, pictures):
            length = bucket(len(view.part.patches))
            group = waiting.setdefault(length, [])
            group.append(view)
            if len(group) == size:
                yield waiting.pop(length)
        yield from waiting.values()

    def whole(
        view: View, setting: int, found: Float[Array, "C r r"]
    ) -> Float[Array, "C h w"] | None:
        """The picture's scores, once its last window is in."""
        if view.place is None:
            return found
        so_far = windows.add(sums.pop((view.number, setting), None), found, view.place)
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
            fetches: dict[int, list[Callable[[], Labelling]]]
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
                if all(view.place is None for view in group):
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


def views(config: Config, pictures: Iterable[Picture]) -> Iterator[View]:
    """Lists the pictures, or their windows, one when it is asked for."""
    for index, picture in enumerate(pictures):
        if config.crop is None and picture.tile is None:
            yield View(index, picture.pixels, picture)
            continue
        last = None
        for part, place in windows.cut(config, picture):
            if last is not None:
                yield last
            last = View(index, picture.pixels, part, place, last=False)
        assert last is not None
        yield last._replace(last=True)


def need_graph(model: Model, settings: Sequence[Setting]) -> bool:
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
