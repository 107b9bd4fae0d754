"""What the browser gets of an answer: one JSON value, from which it draws everything else."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from dsolo_jax import draw
from dsolo_jax.web.answer import Answer

_QUALITY = 90  # of the JPEG that lies under the classes' colours


def view_of(answer: Answer) -> dict[str, Any]:
    """Gives what `viewer.js` draws, of an answer that is not for the whole picture.

    Returns:
        picture: data URI of a JPEG.
        labels: data URI of a grey PNG of the same size, a class's index in each pixel.
        size: width and height of the picture as it was given.
        classes: name, colour "#rrggbb" and share of each, in label order.
        grid: width, height, low and step, values: the scores low + step · value, base64 of
            little-endian uint16 [C, h, w].
        seconds, known, remark: see `Answer`.
    """
    result, (height, width) = answer.result, answer.size
    shares = result.shares()
    colours = draw.palette(len(result.classes)).tolist()
    return {
        "picture": _uri(result.pixels, "JPEG", quality=_QUALITY),
        "labels": _uri(result.labels.astype(np.uint8), "PNG"),
        "size": [width, height],
        "classes": [
            {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour), "share": shares[name]}
            for name, colour in zip(result.classes, colours, strict=True)
        ],
        "grid": _grid(answer.scores),
        "seconds": answer.seconds,
        "known": answer.known,
        "remark": answer.remark,
    }


def _grid(scores: Float[np.ndarray, "C h w"]) -> dict[str, Any]:
    low, high = float(scores.min()), float(scores.max())
    step = (high - low) / 65535 or 1.0
    values = np.round((scores - low) / step).astype("<u2")
    _, height, width = scores.shape
    coded = base64.b64encode(values.tobytes()).decode("ascii")
    return {"width": width, "height": height, "low": low, "step": step, "values": coded}


def _uri(pixels: Shaped[np.ndarray, "h w *c"], form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    coded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{form.lower()};base64,{coded}"
