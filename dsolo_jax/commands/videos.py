"""Videos of `dsolo segment`: an overlay video, an index map and the shares of each frame."""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import dsolo_jax as dsolo
from dsolo_jax import draw, images, pipeline, video
from dsolo_jax.commands.inputs import Source
from dsolo_jax.utils.extras import extra
from dsolo_jax.utils.files import atomic, atomic_folder
from dsolo_jax.utils.progress import progress
from dsolo_jax.video import Frame
from dsolo_jax.vocabulary import Vocabulary

# Gets a frame, the result it is shown with, and whether that was made of it.
_Sink = Callable[[Frame, dsolo.Result, bool], None]


@contextlib.contextmanager
def _overlay(path: Path, film: video.Video, words: Vocabulary) -> Iterator[_Sink]:
    paint = video.painter(words.classes)
    with video.writing(path, film.rate) as write:

        def sink(frame: Frame, result: dsolo.Result, new: bool) -> None:
            write(paint(frame.pixels, result.labels), frame.seconds, frame.duration)

        yield sink


@contextlib.contextmanager
def _masks(path: Path, film: video.Video, words: Vocabulary) -> Iterator[_Sink]:
    """A folder of index maps, there when the last of them is."""
    colours = draw.palette(len(words.classes))
    with atomic_folder(path) as folder:

        def sink(frame: Frame, result: dsolo.Result, new: bool) -> None:
            if new:
                images.write_png(folder / f"{frame.number:06}.png", result.labels, colours)

        yield sink


@contextlib.contextmanager
def _shares(path: Path, film: video.Video, words: Vocabulary) -> Iterator[_Sink]:
    """A JSON file that is written as the frames come, one a line."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        classes = json.dumps(words.classes, ensure_ascii=False)
        file.write(f'{{"classes": {classes}, "frames": [')
        before = "\n"

        def sink(frame: Frame, result: dsolo.Result, new: bool) -> None:
            nonlocal before
            if new:
                shares = {name: round(share, 6) for name, share in result.shares().items()}
                one = {"frame": frame.number, "seconds": round(frame.seconds, 6), "shares": shares}
                file.write(before + json.dumps(one, ensure_ascii=False))
                before = ",\n"

        yield sink
        file.write("\n]}\n")


# What `--save` can ask of a video: where, and how.
_FILES = {
    "overlay": ("{name}.mp4", _overlay),
    "mask": ("masks/{name}", _masks),
    "json": ("{name}.json", _shares),
}


def check() -> None:
    """Raises the error that says how PyAV is installed, if it is not."""
    extra("av", "video")


def targets(folder: Path, source: Source, kinds: Sequence[str]) -> dict[str, Path]:
    """Gives the files that a video gets, and the folder of its masks.

    Raises:
        ValueError: a kind that is of pictures alone.
    """
    for kind in kinds:
        if kind not in _FILES:
            raise ValueError(
                f"--save={kind} is of pictures, and {source.path} is a video, which has: "
                f"{', '.join(_FILES)}; segment it by itself"
            )
    return {kind: folder / _FILES[kind][0].format(name=source.name) for kind in kinds}


def segment(
    model: dsolo.Model,
    words: Vocabulary,
    options: argparse.Namespace,
    source: Source,
    files: Mapping[str, Path],
) -> None:
    """Segments a video into `files`, of `targets`; none of them is there before all frames are.

    Raises:
        FileNotFoundError, ValueError: as of `video.reading`. OSError: a file cannot be written.
    """
    how = {"every": options.every, "smooth": options.smooth, "tile": options.tile}
    setting = pipeline.setting_of(model, options.method)
    with contextlib.ExitStack() as stack:
        film = stack.enter_context(video.reading(source.path))
        sinks = [
            stack.enter_context(_FILES[kind][1](path, film, words)) for kind, path in files.items()
        ]
        found = video.segment(model, film.frames, words, setting, **how)
        for one in progress(found, film.about, source.place, unit="frames"):
            for sink in sinks:
                sink(*one)
