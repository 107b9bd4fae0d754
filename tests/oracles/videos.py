"""Videos written and read by PyAV as its examples do, and turned by hand."""

import struct
from fractions import Fraction

import av
import numpy as np

TICKS = 60000  # a second


def write(path, frames, rate=10, durations=None, codec="libx264", **options):
    """Writes frames, uint8 [h, w, 3] of even sides; their durations in ticks if they differ."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(
            codec, rate=rate, options={"crf": "12", "preset": "ultrafast"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        time = 0
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, TICKS)
            time += TICKS // rate if durations is None else durations[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(path):
    """The frames, their seconds, and what the file says of itself."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        told = {
            "frames": stream.frames,
            "seconds": float(stream.duration * stream.time_base),
            "codec": stream.codec_context.name,
            "rate": stream.average_rate,
        }
        found = [
            (frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(stream)
        ]
    images, seconds = zip(*found, strict=True)
    return np.stack(images), np.array(seconds), told


def turn(path, a, b, c, d):
    """Sets the matrix of an MP4's one track header, by which players turn its pictures: a pixel at
    (x, y) goes to (a x + c y, b x + d y), as ISO 14496-12 has it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # behind version and flags, times, ids, layer and volume
    assert struct.unpack(">9i", data[at : at + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
