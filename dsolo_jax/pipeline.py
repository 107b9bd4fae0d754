"""Pictures and class names to labels: the one route, each arrow a pure function of arrays.

    prepare -> batch -> graph, class_maps -> scores -> labels

The pure functions are those of `stages`. `run` (of `streams`) drives them over many pictures;
`segment`, the evaluation and the ablation are `run` with other arguments. `encode` goes as far as
no words are needed; `grid_scores` and `result` go on from there, as often as there are questions.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dsolo_jax import clip, devices, vocabulary, windows
from dsolo_jax.model import Config, Model, suitable_batch_size
from dsolo_jax.pictures import AnyPicture, Batch, Picture, batch, bucket, prepare
from dsolo_jax.pixels import to_pixels
from dsolo_jax.readings import Readings, resolve
from dsolo_jax.results import Result
from dsolo_jax.solver.discrepancy import fills, needs_graph
from dsolo_jax.stages import (
    ClassMaps,
    Setting,
    class_maps,
    cosines,
    each_picture,
    forward,
    graph,
    image_embeddings,
    scores,
)
from dsolo_jax.streams import View, embed, need_graph, run, spread, views
from dsolo_jax.utils import memory
from dsolo_jax.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "ClassMaps",
    "Encoded",
    "Picture",
    "Setting",
    "batch",
    "bucket",
    "class_maps",
    "cosines",
    "each_picture",
    "embed",
    "encode",
    "forward",
    "graph",
    "grid_scores",
    "image_embeddings",
    "prepare",
    "result",
    "run",
    "scores",
    "segment",
    "setting_of",
    "spread",
]


class _EncodedView(NamedTuple):
    """A view, a batch of one, when it has been through the networks."""

    view: View
    batch: Batch
    graph: Float[Array, "1 N N"] | None
    embeddings: clip.ImageEncoding


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """All that the model says of a picture without words, of `encode`.

    pixels: the picture. config: of the model. start: what CLIP's last block did.
    """

    pixels: UInt8[np.ndarray, "H W 3"] = dataclasses.field(repr=False)
    config: Config = dataclasses.field(repr=False)
    start: str
    views: tuple[_EncodedView, ...] = dataclasses.field(repr=False)


def segment(
    model: Model,
    image: AnyPicture | Encoded | Sequence[AnyPicture],
    classes: Sequence[str] | Vocabulary,
    method: str | None = None,
    readings: str | Readings | None = None,
    return_scores: bool = False,
    tile: int | None = None,
) -> Result | list[Result]:
    """Labels every pixel of a picture, or of each of a list of them, with one of the classes.

    Args:
        model: of `load`.
        image: a path, a PIL image or an array; a list of these, of any sizes; or what `encode` made
            of a picture, which the networks need not see again.
        classes: one string a class, synonyms separated by ", "; or a `Vocabulary`.
        method: "velocity", "path", "kl", "logits", "fusion", or another of `dsolo.METHODS`; None
            is the preset's own, which is "velocity" but for peers.
        readings: "robust", "paper", "robust,tau=0.3" or a `Readings`, instead of the model's.
        return_scores: also give every pixel's scores, float32 [C, H, W].
        tile: side of overlapping tiles that a larger picture is taken by, in its pixels, so that
            small things are seen; 0 takes it whole; None takes tiles above 50 megapixels. Of what
            is encoded, `encode` is told.

    Raises:
        ValueError: unreadable picture, unusable classes, unknown method or readings, scores that
            are not finite, a picture that was encoded by another model or is to have tiles now.
        FileNotFoundError: no such picture.
        MemoryError: a device's memory is full.
    """
    words = classes if isinstance(classes, Vocabulary) else vocabulary.parse(classes)
    setting = setting_of(model, method, readings)
    if isinstance(image, Encoded):
        if tile is not None:
            raise ValueError(
                f"tile is {tile} and the picture is encoded already; give it to `encode` instead"
            )
        found = grid_scores(model, image, words, setting)
        return result(image, found, words, setting.readings, return_scores)
    given: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
    pixels = {}

    def pictures() -> Iterator[Picture]:
        for index, one in enumerate(given):
            picture = prepare(model.config, one, tile)
            pixels[index] = picture.pixels
            yield picture

    size = suitable_batch_size(model)
    if model.config.crop is None:  # what fills up a batch is done in vain
        size = min(size, 1 << max(len(given) - 1, 0).bit_length())
    each = run(model, pictures(), words, [setting], batch_size=size, return_scores=return_scores)
    results = {i: Result(*one, words.classes, pixels.pop(i)) for i, [one] in each}
    return [results[i] for i in range(len(results))] if given is image else results[0]


def setting_of(
    model: Model, method: str | None = None, readings: str | Readings | None = None
) -> Setting:
    """Gives the method and readings that are asked for, the model's own where none are."""
    method = model.config.method if method is None else method
    return Setting(method, model.config.readings if readings is None else resolve(readings))


def encode(
    model: Model,
    image: AnyPicture,
    readings: str | Readings | None = None,
    tile: int | None = None,
) -> Encoded:
    """Sends a picture through CLIP and the attention source, so that words can be asked of it.

    `segment` of what is returned costs only the words' embeddings and the solver, and gives the
    labels that it gives of the picture. It holds the graph: 64 MiB at 4096 patches, for every tile.

    Args:
        model, tile: see `segment`.
        image: a path, a PIL image or an array.
        readings: with the start that questions will use; the model's if None. A question with
            another start runs CLIP once more, but not the source.

    Raises:
        ValueError, FileNotFoundError, MemoryError: as of `segment`; tiles too many to be held.
    """
    start = setting_of(model, None, readings).readings.start
    picture = prepare(model.config, image, tile)
    parts = list(views(model.config, [picture]))
    patches = model.config.grid**2
    needed, free = 4 * len(parts) * patches**2, memory.available()
    if model.params["attention"] is not None and free is not None and needed > free:
        raise MemoryError(
            f"the {len(parts)} tiles of this picture: their graphs take {needed / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free; give larger tiles, or segment the picture "
            "without encoding it"
        )
    with memory.explained():
        encoded = tuple(_encode(model, view, start) for view in parts)
    return Encoded(picture.pixels, _without_words(model.config), start, encoded)


def grid_scores(
    model: Model, encoded: Encoded, words: Vocabulary, setting: Setting
) -> Float[np.ndarray, "C h w"]:
    """Scores the classes on the grid of an encoded picture: before any upsampling.

    Raises:
        ValueError: as of `segment`.
    """
    if encoded.config != _without_words(model.config):
        raise ValueError(
            "the picture was encoded by another model; encode it again with this one: "
            "dsolo.encode(model, image)"
        )
    need_graph(model, [setting])
    start = setting.readings.start
    number, so_far = len(words.classes), None
    room = _room(number) if fills(setting.method) else number
    text, query_class = np.asarray(embed(model, words)), np.array(words.query_class, np.int32)
    # The last query again fills up the queries too, and is that of the classes that fill up.
    missing = _room(len(text) + room - number) - len(text)
    text = np.pad(text, ((0, missing), (0, 0)), mode="edge")
    added = np.minimum(number + np.arange(missing, dtype=np.int32), room - 1)
    query_class = np.concatenate([query_class, added])
    ask = devices.program(cosines, mesh=None, config=model.config, start=start)
    how: dict[str, Any] = {"method": setting.method, "readings": setting.readings}
    solve = devices.program(scores, mesh=None, num_classes=room, **how)
    of_class: dict[str, Any] = {"query_class": query_class}
    if fills(setting.method):
        of_class["counted"] = np.arange(room) < number
    with memory.explained():
        for one in encoded.views:
            if start != encoded.start:
                one = _encode(model, one.view, start, one.graph)
            given = {"embeddings": one.embeddings, "grids": one.batch.grids}
            maps = ask({"text": text}, given)
            attention_ = one.graph if needs_graph(setting.method) else None
            [found] = solve(of_class, {"maps": maps, "graph": attention_})
            if one.view.place is None:
                break
            so_far = windows.add(so_far, found, one.view.place)
    return np.asarray(found if so_far is None else windows.mean(so_far))[:number]


def result(
    encoded: Encoded,
    scores: Float[Array | np.ndarray, "C h w"],
    words: Vocabulary,
    readings: Readings,
    return_scores: bool = False,
) -> Result:
    """Brings scores of `grid_scores` to the pixels, by the readings' upsampling.

    Raises:
        ValueError: scores that are not finite.
    """
    if not return_scores:  # copies of the last class never win, and few programs serve all numbers
        missing = _room(len(scores)) - len(scores)
        scores = np.pad(np.asarray(scores), ((0, missing), (0, 0), (0, 0)), mode="edge")
    with memory.explained():
        fetch = to_pixels(encoded.pixels, jnp.asarray(scores), readings, None, return_scores)
        return Result(*fetch(), words.classes, encoded.pixels)


def _room(number: int) -> int:
    """The next of the numbers 8, 16, 32, 64, 96, …, one of which serves for many questions."""
    return max(8, min(1 << (number - 1).bit_length(), -(-number // 32) * 32))


def _encode(
    model: Model, view: View, start: str, graph_: Float[Array, "1 N N"] | None = None
) -> _EncodedView:
    """Sends a view through the networks; the source is left out where its graph is given."""
    arrays, config, program = batch([view.part]), model.config, partial(devices.program, mesh=None)
    if graph_ is None and model.params["attention"] is not None:
        of_graph = {"params": {"attention": model.params["attention"]}}
        graph_ = program(graph, config=config)(of_graph, {"squares": arrays.squares})
    of_clip = {"params": {"clip": {"vision": model.params["clip"]["vision"]}}}
    by_graph = {"graph": graph_} if clip.needs_graph(start) else {}
    look = program(image_embeddings, config=config, start=start)
    return _EncodedView(view, arrays, graph_, look(of_clip, {"pictures": arrays, **by_graph}))


def _without_words(config: Config) -> Config:
    """What decides how a picture is encoded."""
    return dataclasses.replace(config, readings=Readings(), method="")
