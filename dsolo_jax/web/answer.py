"""Questions to answers, without a browser: what is allowed, and what is kept for the next one."""

import dataclasses
import hashlib
import io
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dsolo_jax import background, devices, images, pipeline, vocabulary
from dsolo_jax.assets import BUNDLED
from dsolo_jax.attention.sources import SOURCES
from dsolo_jax.datasets.miniature import CLASSES
from dsolo_jax.model import PRESETS, Model, load
from dsolo_jax.readings import Readings, resolve
from dsolo_jax.results import Result
from dsolo_jax.solver.discrepancy import METHODS
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.faults import message
from dsolo_jax.vocabulary import Vocabulary

# Instead of a name: what the preset has.
OWN = "the preset's own"

# Sources of the patch graph that need no download; a host names others.
FREE_SOURCES = ("appearance", "clip", "miniature")

# A label is a byte for the browser.
MOST_CLASSES = 255

# Of the longer side of a picture as it is shown, pixels.
LONGEST = 1280

# What a stranger may ask of the solver: sizes above take minutes or gigabytes.
_MOST, _MOST_OF = 1000, {"spatial_sigma": 4.0}

# Programs that are held; each has memory of its own, and mappings, of which Linux gives few.
_MOST_PROGRAMS, _MOST_MAPPINGS = 256, 20_000


class Limits(NamedTuple):
    """Of a question: bytes of the file, pixels of the picture, number of classes, of names and
    synonyms together, and letters of one of these."""

    upload: int = 30 * 10**6
    pixels: int = 36 * 10**6
    classes: int = 200
    words: int = 1000
    letters: int = 200


class Question(NamedTuple):
    """What is asked: of which file, about which classes ("sofa, couch" is one), and how."""

    picture: str
    classes: tuple[str, ...]
    preset: str = OWN
    source: str = OWN
    method: str = OWN
    readings: str = OWN
    background: bool = False


class Answer(NamedTuple):
    """A result with its scores on the grid; height and width of the picture as it was given;
    seconds it took; whether the picture was known; what whoever looks at it should know."""

    result: Result
    scores: Float[np.ndarray, "C h w"]
    size: tuple[int, int]
    seconds: float
    known: bool
    remark: str = ""


class Kept:
    """The results that were used last: at most `number` of them, and of `size` bytes together."""

    def __init__(self, number: int, size: float, measure: Callable[[Any], int]) -> None:
        self._number, self._size, self._measure = number, size, measure
        self._found: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> tuple[Any, bool]:
        """Gives what is kept under a key, or makes it; and whether it was kept."""
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key][0], True
        made = make()
        self._found[key] = made, self._measure(made)
        while len(self._found) > self._number or (self._found and self.size > self._size):
            self._found.popitem(last=False)
        return made, False

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(size for _, size in self._found.values())

    def __len__(self) -> int:
        return len(self._found)


class Service:
    """Answers questions one at a time, and keeps models and encoded pictures for the next ones.

    presets: offered, those of the names that can be loaded; the first is taken where none is named.
    sources: offered, of the patch graph.

    Raises:
        ValueError: an unknown preset or source; no preset can be loaded.
    """

    def __init__(
        self,
        presets: Sequence[str] = ("miniature",),
        sources: Sequence[str] = (),
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> None:
        for name in sources:
            if "/" not in name:
                choose("attention source", name, SOURCES)
        self.limits = limits
        self.sources = tuple(dict.fromkeys((*FREE_SOURCES, *sources)))
        self._lock, self._closed = threading.Lock(), False
        self._models = Kept(len(presets) + 2, np.inf, lambda model: 0)
        self._encoded = Kept(8, 256 << 20, num_bytes)
        loaded = []
        for name in dict.fromkeys(presets):
            choose("preset", name, PRESETS)
            try:
                self._model(name, OWN)
                loaded.append(name)
            except (OSError, ValueError, MemoryError) as error:
                print(f"warning: the preset {name} is left out: {error}", file=sys.stderr)
        if not loaded:
            raise ValueError(
                f"none of the presets {', '.join(presets) or '(none named)'} can be loaded; name "
                "--preset=miniature, which needs no download"
            )
        self.presets = tuple(loaded)

    def ask(self, question: Question, whole: bool = False) -> Answer:
        """Answers a question.

        Args:
            whole: give the picture's every pixel a label, for files. For people to look at, a large
                picture is shrunk when all is known but the pixels: these would take most of the
                time.

        Raises:
            ValueError: what is asked is not allowed or cannot be done.
            OSError: the file is gone. MemoryError: the memory is full.
        """
        preset = self.presets[0] if question.preset == OWN else question.preset
        choose("preset", preset, self.presets)
        if question.source != OWN:
            choose("attention source", question.source, self.sources)
        asked = read_words(question.classes, self.limits)
        words = background.with_background(asked) if question.background else asked
        with self._lock:  # one at a time: the memory is that of one
            if self._closed:
                raise ValueError("the page is closing")
            start = time.perf_counter()
            model = self._model(preset, question.source)
            setting = read_setting(model, question.method, question.readings)
            data = read_file(question.picture, self.limits)

            def encode() -> pipeline.Encoded:
                return pipeline.encode(model, read_picture(data, self.limits), setting.readings)

            content = hashlib.sha256(data).digest()
            key = content, preset, question.source, setting.readings.start
            encoded, known = self._encoded.get(key, encode)
            scores = pipeline.grid_scores(model, encoded, words, setting)
            size = encoded.pixels.shape[:2]
            if not whole:
                encoded = dataclasses.replace(encoded, pixels=shrunk(encoded.pixels))
            result = pipeline.result(encoded, scores, words, setting.readings)
            seconds = time.perf_counter() - start
            forget_programs()
        said = remark(asked, size) if model.config.tokenizer in BUNDLED["clip"] else ""
        return Answer(result, scores, size, seconds, known, said)

    def _model(self, preset: str, source: str) -> Model:
        attention = None if source == OWN else source
        model, _ = self._models.get((preset, source), lambda: load(preset, attention=attention))
        return model

    def close(self) -> None:
        """Waits for the answer that is being made, and answers nothing more: a process that ends
        while XLA is at work is aborted."""
        self._closed = True
        with self._lock:
            pass


def explain(error: Exception) -> str:
    """Says in plain words what went wrong; the traceback of a fault of ours goes to the log."""
    if (said := message(error)) is not None:
        return said
    traceback.print_exception(error)
    return "the server met a fault of its own; whoever runs it finds the details in its output"


def remark(words: Vocabulary, size: tuple[int, int]) -> str:
    """Says what the bundled CLIP cannot know of a question."""
    said = []
    if min(size) > 2 * PRESETS["miniature"].short_side:  # type: ignore[operator]
        said.append("The preset miniature knows small drawn scenes alone, not photographs.")
    unknown = [word for word in words.queries if not set(word.lower().split()) & set(CLASSES)]
    if unknown:
        more = f" and {len(unknown) - 5} others" if len(unknown) > 5 else ""
        named = ", ".join(unknown[:5]) + more
        said.append(f"The preset miniature has never seen: {named}. It knows {', '.join(CLASSES)}.")
    return " ".join(said)


def split(typed: Sequence[str]) -> tuple[str, ...]:
    """Makes a class of each name that was typed: ";" separates classes too, empty ones and
    repeated ones are left out."""
    names = (part for name in typed for part in name.split(";"))
    names = (", ".join(filter(None, map(str.strip, name.split(",")))) for name in names)
    return tuple(dict.fromkeys(filter(None, names)))


def read_words(classes: Sequence[str], limits: Limits) -> Vocabulary:
    """Makes a vocabulary of what was typed, see `split`.

    Raises:
        ValueError: no class, too many, one too long, or what `vocabulary.parse` refuses.
    """
    names = split(classes)
    if not names:
        raise ValueError("no classes are given; write at least one, such as grass, and press Enter")
    if len(names) > limits.classes:
        raise ValueError(f"{len(names)} classes are given; at most {limits.classes} are allowed")
    words = vocabulary.parse(names)
    if len(words.queries) > limits.words:
        raise ValueError(
            f"the classes have {len(words.queries)} names and synonyms; at most {limits.words} are "
            "allowed"
        )
    longest = max(words.queries, key=len)
    if len(longest) > limits.letters:
        raise ValueError(
            f"the class {longest[:40]!r}… has {len(longest)} letters; at most {limits.letters} are "
            "allowed"
        )
    return words


def read_setting(model: Model, method: str, readings: str) -> pipeline.Setting:
    """Gives the method and readings that are asked for.

    Raises:
        ValueError: unknown ones, or a number that would take minutes or gigabytes.
    """
    if method != OWN:
        choose("method", method, METHODS)
    found = model.config.readings if readings.strip() in (OWN, "") else resolve(readings)
    for field in dataclasses.fields(Readings):
        value, most = getattr(found, field.name), _MOST_OF.get(field.name, _MOST)
        if not isinstance(value, str) and value > most:
            raise ValueError(f"reading {field.name} is {value}; this page takes at most {most:g}")
    return pipeline.setting_of(model, None if method == OWN else method, found)


def read_file(path: str, limits: Limits) -> bytes:
    """Reads an uploaded file.

    Raises:
        ValueError: it is too large. OSError: it is gone.
    """
    place = Path(path)
    if not place.is_file():
        raise OSError("the picture is not kept any longer; give it again")
    if (size := place.stat().st_size) > limits.upload:
        raise ValueError(
            f"the file has {size / 1e6:.1f} MB; this page takes at most {limits.upload / 1e6:g} MB"
        )
    return place.read_bytes()


def read_picture(data: bytes, limits: Limits) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a picture, after a look at its header.

    Raises:
        ValueError: it is no picture, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = 0
    except (OSError, ValueError, SyntaxError):
        return images.decode_image(data, "this file")  # which says what it is instead
    if not 0 < width * height <= limits.pixels:
        size = f"has {width} x {height} pixels" if width else "has far too many pixels"
        raise ValueError(
            f"the picture {size}; this page takes at most {limits.pixels / 1e6:g} million: make it "
            "smaller first"
        )
    return images.decode_image(data, "this picture")


def shrunk(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Brings a picture to at most `LONGEST` pixels of its longer side."""
    height, width = pixels.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    return images.resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))


def pack(result: Result, folder: str | Path) -> Path:
    """Writes overlay, masks and JSON of a result into a ZIP in a new folder, and says where."""
    target = Path(tempfile.mkdtemp(prefix="masks_", dir=folder)) / "dsolo_masks.zip"
    with tempfile.TemporaryDirectory(dir=folder) as rooms, zipfile.ZipFile(target, "w") as packed:
        for path in result.save(rooms, "picture"):
            packed.write(path, path.relative_to(rooms))
    return target


def num_bytes(encoded: pipeline.Encoded) -> int:
    """Counts what an encoded picture holds in memory; arrays that are in it twice count once."""
    arrays = [encoded.pixels, *jax.tree.leaves(encoded.views)]
    sizes = {id(array): getattr(array, "nbytes", 0) for array in arrays}
    return sum(sizes.values())


def forget_programs() -> None:
    """Lets compiled programs go where there are very many: strangers' questions bring ever more."""
    maps = Path("/proc/self/maps")
    many = maps.is_file() and len(maps.read_bytes().splitlines()) > _MOST_MAPPINGS
    if many or devices.program.cache_info().currsize > _MOST_PROGRAMS:
        devices.program.cache_clear()
        jax.clear_caches()
