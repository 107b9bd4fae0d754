"""Videos: frames in, upright and at their times; their labels; pictures out as frames.

Needs PyAV, the extra `video`. Frames are streamed, so that a film takes no more memory than a clip.
"""

import contextlib
import errno
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dsolo_jax import draw, pipeline
from dsolo_jax.model import Model
from dsolo_jax.results import Result
from dsolo_jax.utils.extras import extra
from dsolo_jax.utils.files import atomic
from dsolo_jax.vocabulary import Vocabulary

VIDEOS = {
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ogv", ".flv", ".wmv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
}

_CLOCK = Fraction(1, 60000)  # of what is written: exact for 24, 25, 30, 50, 60 and 30000/1001
_USUAL_RATE = Fraction(25)  # where a file has none

# The first that this PyAV has, and what it is told: about as good as the eye can see.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libopenh264": {"b": "8M"},
    "mpeg4": {"q": "3", "flags": "+qscale", "global_quality": "354"},
}
_BT_709 = 1  # of H.273: primaries, transfer and matrix


class Frame(NamedTuple):
    """A picture of a video; `seconds` from the first, and how long it is shown."""

    number: int
    seconds: float
    duration: float
    pixels: UInt8[np.ndarray, "H W 3"]


class Video(NamedTuple):
    """Mean frames a second; how many there are by what the file says, None if it says nothing; the
    frames, once."""

    rate: Fraction
    about: int | None
    frames: Iterator[Frame]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Video]:
    """Opens a video; its frames are turned upright as its metadata says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no video; from the frames, where it is damaged or breaks off.
        ImportError: PyAV is missing.
    """
    av = extra("av", "video")
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        container = av.open(path)
    except av.FFmpegError as error:
        raise ValueError(_none(path, error)) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError(f"{path} has no pictures, only {_kinds(container)}")
        stream.thread_type = "AUTO"
        rate = stream.average_rate or _USUAL_RATE
        about = stream.frames or None
        if about is None and container.duration is not None:
            about = max(1, round(container.duration * rate / av.time_base))
        yield Video(rate, about, _frames(path, av, container, stream, rate))


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _frames(path: Path, av: Any, container: Any, stream: Any, rate: Fraction) -> Iterator[Frame]:
    """The frames; an error where decoding stops, or before the file's end as its header has it."""
    index, start, seconds, size = 0, None, 0.0, None
    told = container.duration and container.duration / av.time_base
    first, end, gap = None, 0.0, 0.0  # seconds, of all that the file holds
    try:
        for packet in container.demux():
            if packet.pts is not None:
                at = float(packet.pts * packet.time_base)
                first = at if first is None else min(first, at)
                gap = max(gap, at - end if index else 0.0)
                end = max(end, at + float((packet.duration or 0) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            for frame in packet.decode():
                if frame.time is None:
                    seconds += float(1 / rate) if index else 0.0
                else:
                    start = frame.time if start is None else start
                    seconds = max(frame.time - start, seconds)
                duration = frame.duration and float(frame.duration * frame.time_base)
                size = size or (frame.width, frame.height)
                rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                upright = np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
                yield Frame(index, seconds, duration or float(1 / rate), upright)
                index += 1
    except av.FFmpegError as error:
        if not index:
            raise ValueError(_none(path, error)) from error
        raise ValueError(
            f"{path} is damaged after {index} frames, {seconds:.1f} s{_of(told)}: "
            f"{error.strerror}; {_MEND}"
        ) from error
    if not index:
        raise ValueError(f"{path} holds no frame that can be read; is it damaged?")
    lacking = (told or 0.0) - (end - (first or 0.0))
    if told and lacking > max(1.0, 0.05 * told, 2 * gap):
        raise ValueError(
            f"{path} breaks off after {index} frames, {seconds:.1f} s{_of(told)}; {_MEND}"
        )


_MEND = (
    "nothing was kept of it; `ffmpeg -i IN -c copy OUT.mkv` makes a whole video of what can be read"
)


def _none(path: Path, error: Any) -> str:
    return (
        f"{path} is no video that can be read ({error.strerror}): it is of an unknown kind, "
        "damaged, or its end is missing"
    )


def _of(told: float | None) -> str:
    return f" of {told:.1f} s" if told else ""


def segment(
    model: Model,
    frames: Iterable[Frame],
    words: Vocabulary,
    setting: pipeline.Setting,
    *,
    every: int = 1,
    smooth: float = 0.0,
    tile: int | None = None,
) -> Iterator[tuple[Frame, Result, bool]]:
    """Labels frames as they come: each with a result, and whether that was made of it.

    Args:
        every: of so many frames one is segmented; the others get the result before them.
        smooth: S in 0..1. The scores m_t on the grid, before any upsampling, are

                a_0 = m_0        a_t = S a_(t-1) + (1 - S) m_t

            over the frames that are segmented. 0 takes each for itself. Ours, the usual
            exponential average: labels flicker less, and follow what moves later. Borders still
            follow each frame's own colours, as the upsampling does.
        tile: see `dsolo.segment`.
    """
    so_far = result = None
    for frame in frames:
        new = frame.number % every == 0
        if new:
            encoded = pipeline.encode(model, frame.pixels, setting.readings, tile)
            scores = pipeline.grid_scores(model, encoded, words, setting)
            if so_far is not None and smooth:
                scores = smooth * so_far + (1 - smooth) * scores
            so_far = scores
            result = pipeline.result(encoded, scores, words, setting.readings)
        assert result is not None  # the first frame is number 0
        yield frame, result, new


# ------------------------------------------------------------------------------- overlays


def painter(
    names: Sequence[str], opacity: float = 0.55
) -> Callable[[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "H W"]], UInt8[np.ndarray, "h w 3"]]:
    """Gives a function that draws frames under their classes' colours, above a legend.

    All frames of a size become pictures of one even size, with the same legend: every class in its
    own colour, present or not. Of more than 24 classes it has those with most pixels in the frame.
    Frames whose longer side is below 480 pixels are enlarged.
    """
    colours, legible = draw.palette(len(names)), draw.legible(names)
    most = draw.LEGEND_ENTRIES
    drawn: dict[str, Any] = {"labels": None}  # of the last labels, what does not need the picture

    @functools.lru_cache(maxsize=8)
    def legend(chosen: tuple[int, ...], size: int, width: int) -> Image.Image:
        entries = [(legible[c], "", colours[c]) for c in chosen]
        return draw.legend(entries, size, max(width, draw.SHORTEST_DISPLAY))

    def redraw(labels: np.ndarray) -> None:
        factor = draw.enlargement(max(labels.shape))
        large = labels.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width = large.shape
        size = max(15, max(height, width) // 70)
        # No legend is larger than that of the longest names.
        longest_first = sorted(range(len(names)), key=lambda c: -len(legible[c]))
        room = legend(tuple(longest_first[:most]), size, width)
        counts = np.bincount(labels.ravel(), minlength=len(names))
        largest_first = np.argsort(-counts, kind="stable").tolist()
        named = legend(tuple(sorted(largest_first[:most])), size, width)
        total = height + room.height + 2 * size, max(width, room.width)
        canvas = np.full((*(side + side % 2 for side in total), 3), 255, np.uint8)
        canvas[height + size :][: named.height, : named.width] = np.asarray(named)
        left = (total[1] - width) // 2
        place = slice(0, height), slice(left, left + width)
        layer, borders = Image.fromarray(colours[large]), draw.borders(large)
        drawn.update(labels=labels, canvas=canvas, place=place, layer=layer, borders=borders)

    def paint(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if drawn["labels"] is not labels:
            redraw(labels)
        picture = Image.fromarray(pixels).resize(drawn["layer"].size, Image.Resampling.NEAREST)
        mixed = np.array(Image.blend(picture, drawn["layer"], opacity))
        mixed[drawn["borders"]] = 255
        canvas = drawn["canvas"].copy()
        canvas[drawn["place"]] = mixed
        return canvas

    return paint


# ------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def writing(
    path: Path, rate: Fraction
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"], float, float], None]]:
    """Gives a function that takes pictures of one even size, their seconds and durations.

    They become an MP4 without sound, H.264 where this PyAV can write it, else the next best. It is
    there when the block has ended well, as of `atomic`.

    Raises:
        OSError: naming `path`, if it cannot be written. ImportError: PyAV is missing.
    """
    av = extra("av", "video")
    name = next(name for name in _ENCODERS if name in av.codecs_available)
    with (
        atomic(path) as temporary,
        av.open(temporary, "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream(name, rate=rate, options=_ENCODERS[name])
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = _CLOCK
        context.max_b_frames = 0  # or the last frames' durations come out in another order
        context.colorspace = context.color_primaries = context.color_trc = _BT_709
        context.color_range = 1  # of 16 to 235
        durations: dict[int, int] = {}  # of frames that the encoder holds back
        latest = -1

        def encode(frame: Any) -> None:
            try:
                for packet in stream.encode(frame):
                    packet.duration = durations.pop(packet.pts, packet.duration)
                    container.mux(packet)
            except av.FFmpegError as error:
                raise OSError(error.errno or errno.EIO, f"{error.strerror}") from error

        def write(picture: np.ndarray, seconds: float, duration: float) -> None:
            nonlocal latest
            if not context.is_open:
                context.height, context.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            latest = max(latest + 1, round(seconds / _CLOCK))
            frame.pts, frame.time_base = latest, _CLOCK
            frame.duration = durations[latest] = max(1, round(duration / _CLOCK))
            encode(frame)

        yield write
        encode(None)
