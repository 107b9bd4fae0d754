"""Charts of a result, drawn with PIL: IoU by class, and the confusion matrix."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (34, 34, 34), (120, 120, 120), (222, 222, 222)
_BAR, _MEAN = (60, 122, 190), (200, 60, 40)
_FONT, _SMALL = 24, 20
_MARGIN = 32

# Bars: pixels of a row and of 100 %, rows in a column.
_ROW, _FULL, _ROWS = 34, 440, 50

# Confusion matrix: pixels of all cells together, smallest and largest cell, up to how many classes
# the cells hold their number.
_MATRIX, _CELLS, _NUMBERED = 2200, (16, 72), 32
# From white to dark blue, of even steps in lightness.
_SHADES = np.array([(255, 255, 255), (198, 219, 239), (107, 165, 214), (33, 105, 176), (8, 40, 90)])


def iou_bars(title: str, names: Sequence[str], iou: Float[np.ndarray, "C"]) -> Image.Image:
    """A bar for each class, the largest first, and the mean as a line through them.

    Args:
        title: above the bars.
        names: of the C classes.
        iou: in 0..1; NaN of classes that nowhere occur: they come last, without a bar.
    """
    order = sorted(range(len(names)), key=lambda c: (np.isnan(iou[c]), -np.nan_to_num(iou[c]), c))
    columns = -(-len(names) // _ROWS)
    depth = -(-len(names) // columns)
    font, small = ImageFont.load_default(_FONT), ImageFont.load_default(_SMALL)
    name_width = max(math.ceil(font.getlength(name)) for name in names)
    value_width = math.ceil(font.getlength(" 100.0 "))
    cell = name_width + _FONT // 2 + _FULL + value_width + _MARGIN
    head = _MARGIN + 3 * _FONT
    size = (
        _MARGIN + max(columns * cell, math.ceil(font.getlength(title)) + _MARGIN),
        head + depth * _ROW + 2 * _FONT + _MARGIN,
    )
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), title, _INK, font)
    for column in range(columns):
        members = order[column * depth : (column + 1) * depth]
        zero = _MARGIN + column * cell + name_width + _FONT // 2
        bottom = head + len(members) * _ROW
        for tick in (0, 25, 50, 75, 100):
            x = zero + tick * _FULL // 100
            draw.line((x, head, x, bottom), _GRID, 2)
            draw.text((x, bottom + _FONT), str(tick), _FAINT, small, anchor="mm")
        heights = [head + number * _ROW + _ROW // 2 for number in range(len(members))]
        ends = [zero + round(np.nan_to_num(iou[c]) * _FULL) for c in members]
        for c, y, end in zip(members, heights, ends, strict=True):
            draw.text((zero - _FONT // 2, y), names[c], _INK, font, anchor="rm")
            if not np.isnan(iou[c]):
                draw.rectangle((zero, y - _ROW // 3, end, y + _ROW // 3), _BAR)
        if not np.isnan(iou).all():
            mean = zero + round(np.nanmean(iou) * _FULL)
            draw.line((mean, head, mean, bottom), _MEAN, 2)
            draw.text((mean, head - 4), "mean", _MEAN, small, anchor="mb")
        for c, y, end in zip(members, heights, ends, strict=True):
            text = "nowhere" if np.isnan(iou[c]) else f"{100 * iou[c]:.1f}"
            ink = _FAINT if np.isnan(iou[c]) else _INK
            draw.text((end + 8, y), text, ink, small, "lm", stroke_width=3, stroke_fill=_PAPER)
    return canvas


def confusion(title: str, names: Sequence[str], matrix: Int[np.ndarray, "C C"]) -> Image.Image:
    """The confusion matrix, each row divided by its sum: where the pixels of a true class went.

    Rows are the truth, columns the prediction; rows without a pixel are grey. Few classes have the
    percentage in their cells.
    """
    count = len(names)
    sums = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(sums, 1)
    smallest, largest = _CELLS
    cell = min(largest, max(smallest, _MATRIX // count))
    font = ImageFont.load_default(min(_FONT, cell - 2))
    head = ImageFont.load_default(_FONT)
    small = ImageFont.load_default(min(_SMALL, cell // 3))

    pixels = _shade(share)
    pixels[sums[:, 0] == 0] = _GRID
    side = count * cell
    field = Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))
    draw = ImageDraw.Draw(field)
    every = 1 if count <= _NUMBERED else 10
    for c in range(every, count, every):
        draw.line((c * cell, 0, c * cell, side), _GRID)
        draw.line((0, c * cell, side, c * cell), _GRID)
    for t, p in zip(*np.nonzero(share >= 0.005), strict=True) if count <= _NUMBERED else ():
        ink = _PAPER if share[t, p] > 0.5 else _INK
        middle = (p * cell + cell // 2, t * cell + cell // 2)
        draw.text(middle, f"{100 * share[t, p]:.0f}", ink, small, anchor="mm")

    label = max(math.ceil(font.getlength(name)) for name in names) + _FONT // 2
    left, top = _MARGIN + 2 * _FONT + label, _MARGIN + 4 * _FONT + label
    bar = 2 * _FONT
    right = left + side + _MARGIN + bar + math.ceil(head.getlength("100 %")) + _MARGIN
    wide = max(right, _MARGIN + math.ceil(head.getlength(title)) + _MARGIN)
    canvas = Image.new("RGB", (wide, top + side + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), title, _INK, head)
    draw.text((left + side // 2, _MARGIN + 3 * _FONT), "prediction", _FAINT, head, anchor="mm")
    _upright(canvas, (_MARGIN + _FONT // 2, top + side // 2), "truth", _FAINT, head, anchor="mm")
    canvas.paste(field, (left, top))
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline=_FAINT)
    for c, name in enumerate(names):
        middle = c * cell + cell // 2
        draw.text((left - _FONT // 2, top + middle), name, _INK, font, anchor="rm")
        _upright(canvas, (left + middle, top - _FONT // 2), name, _INK, font, anchor="lm")

    height = min(side, 12 * _FONT)
    scale = _shade(np.linspace(1, 0, height)[:, None].repeat(bar, axis=1))
    x = left + side + _MARGIN
    canvas.paste(Image.fromarray(scale), (x, top))
    draw.rectangle((x - 1, top - 1, x + bar, top + height), outline=_FAINT)
    for part in (0, 50, 100):
        y = top + round((1 - part / 100) * (height - 1))
        draw.text((x + bar + _FONT // 3, y), f"{part} %", _INK, head, anchor="lm")
    return canvas


def _shade(share: Float[np.ndarray, "*S"]) -> np.ndarray:
    """Colours of shares in 0..1. Their square root is shown, so that small confusions are seen."""
    at = np.sqrt(share) * (len(_SHADES) - 1)
    channels = [np.interp(at, np.arange(len(_SHADES)), channel) for channel in _SHADES.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _upright(canvas: Image.Image, at: tuple[int, int], text: str, ink, font, anchor: str) -> None:
    """Text that reads upwards; `at` is its lower end for anchor "lm", its middle for "mm"."""
    width, height = math.ceil(font.getlength(text)), 2 * round(font.size)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((0, height // 2), text, 255, font, anchor="lm")
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    x, y = at[0] - height // 2, at[1] - (width if anchor == "lm" else width // 2)
    canvas.paste(Image.new("RGB", mask.size, ink), (x, y), mask)
