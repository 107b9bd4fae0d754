"""A few pictures beside their truth and what a model said of them, with one legend."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

import dsolo_jax as dsolo
from dsolo_jax import datasets, vocabulary
from dsolo_jax.draw import palette

_SIDE = 168  # of a picture's square, pixels
_GAP = 8
_FONT = 15
_COLUMNS = ("picture", "truth", "prediction")
_EXAMPLES_A_ROW = 2


def panel(model: dsolo.Model, dataset: datasets.Dataset, count: int, method: str) -> Image.Image:
    """The first pictures of a dataset, segmented."""
    words, threshold = vocabulary.parse(dataset.classes), dataset.protocol.threshold(method)
    triples = []
    for example in map(dataset.__getitem__, range(count)):
        pictures = [dsolo.prepare(model, example["image"])]
        [result] = dsolo.segment_batch(model, pictures, words, method, threshold=threshold)
        triples.append((example["image"], example["labels"], result.labels))
    return draw_panel(triples, dataset.names)


def draw_panel(
    examples: Sequence[
        tuple[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "H W"], Int[np.ndarray, "H W"]]
    ],
    names: Sequence[str],
) -> Image.Image:
    """Triples of picture, true labels and predicted labels, two triples a row, above a legend.

    Labels outside the names are left white. Everything is squeezed into squares.
    """
    font = ImageFont.load_default(_FONT)
    colours = np.vstack([palette(len(names)), [[255, 255, 255]]])
    present = np.zeros(len(names) + 1, bool)
    for _, *maps in examples:
        for labels in maps:
            present[np.minimum(labels, len(names))] = True
    entries = np.flatnonzero(present[:-1])

    cell, line = _SIDE + _GAP, _FONT + _GAP
    triple = len(_COLUMNS) * cell + _GAP
    across = min(_EXAMPLES_A_ROW, len(examples))
    rows = -(-len(examples) // across)
    width = across * triple
    entry = _FONT + 2 * _GAP + max(int(font.getlength(name)) + 1 for name in names)
    in_a_line = max(1, (width - _GAP) // entry)
    height = line + rows * cell + -(-len(entries) // in_a_line) * line + _GAP

    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (picture, *maps) in enumerate(examples):
        row, column = divmod(number, across)
        shown = [picture, *(colours[np.minimum(labels, len(names))] for labels in maps)]
        for place, (name, array) in enumerate(zip(_COLUMNS, shown, strict=True)):
            x = column * triple + place * cell + _GAP
            square = Image.fromarray(array.astype(np.uint8)).resize((_SIDE, _SIDE), Image.NEAREST)
            canvas.paste(square, (x, line + row * cell))
            if row == 0:
                draw.text((x + _SIDE // 2, line // 2), name, "black", font, anchor="mm")
    for number, label in enumerate(entries):
        row, column = divmod(number, in_a_line)
        x, y = _GAP + column * entry, line + rows * cell + row * line + line // 2
        box = (x, y - _FONT // 2, x + _FONT, y + _FONT // 2)
        draw.rectangle(box, tuple(colours[label].tolist()))
        draw.text((x + _FONT + _GAP, y), names[label], "black", font, anchor="lm")
    return canvas
