"""What people look at: label maps in colours, over the picture or beside it, with a legend."""

import contextlib
import functools
import math
from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from dsolo_jax.images import resize
from dsolo_jax.utils.checks import choose


def palette(num_classes: int) -> UInt8[np.ndarray, "C 3"]:
    """Gives each class a colour, always the same and, the first ones above all, far apart.

    Each is the one farthest, in CIE Lab, from all before it, among those of a grid of RGB values
    that are neither dark, pale, greyish nor glaring (ours). Beyond 1200 they come round again.
    """
    return _colours()[np.arange(num_classes) % len(_colours())]


@functools.cache
def _colours() -> np.ndarray:
    candidates = np.stack(np.meshgrid(*[np.linspace(20, 245, 17)] * 3), -1).reshape(-1, 3)
    lab = _lab(candidates / 255)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    usable = (42 < lightness) & (lightness < 84) & (28 < chroma) & (chroma < 90)
    candidates, lab = candidates[usable], lab[usable]
    chosen = [int(np.argmin(((candidates - _FIRST_COLOUR) ** 2).sum(1)))]
    nearest = np.full(len(lab), np.inf)
    while len(chosen) < _MAX_COLOURS:
        nearest = np.minimum(nearest, ((lab - lab[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest.argmax()))
    return np.round(candidates[chosen]).astype(np.uint8)


_FIRST_COLOUR = (60, 140, 220)
_MAX_COLOURS = 1200


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..1 to CIE Lab (white D65), where distances are those seen."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    x, y, z = np.moveaxis(linear @ _XYZ_OF_RGB.T / _WHITE, -1, 0)
    fx, fy, fz = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


_XYZ_OF_RGB = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_WHITE = np.array([0.9505, 1.0, 1.089])


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Int[np.ndarray, "H W"],
    names: Sequence[str],
    *,
    opacity: float = 0.55,
    hidden: Collection[str] = (),
) -> Image.Image:
    """Draws the picture under its classes' colours, and a legend of the classes present.

    The legend names the classes by their share of the pixels, largest first, 24 at most; by number
    those in letters that no font here has. Pictures whose longer side is below 480 pixels are shown
    enlarged, those above 1600 shrunk.

    Args:
        opacity: of the colours, 0 to 1.
        hidden: classes that get no colour and no entry.

    Raises:
        ValueError: sizes that differ, a label that is no index into `names`, an opacity out of
            range, a hidden class that is none.
    """
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"labels have shape {labels.shape}, wanted the picture's {image.shape[:2]}"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"labels hold {wrong}, wanted 0..{len(names) - 1} for {len(names)} names")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}, wanted 0 to 1")
    for name in hidden:
        choose("hidden class", name, names)
    seen = np.array([name not in hidden for name in names])
    opacities = opacity * seen[:, None]
    colours, names = palette(len(names)), legible(names)
    counts = np.bincount(labels.ravel(), minlength=len(names))
    entries = [
        (names[c], _percent(counts[c] / labels.size), colours[c])
        for c in np.argsort(-counts, kind="stable")
        if counts[c] and seen[c]
    ]
    longest = max(labels.shape)
    scale = enlargement(longest) * min(1.0, _LONGEST_DISPLAY / longest)
    picture, shown = _scaled(image, labels, scale)
    mixed = (1 - opacities[shown]) * picture + opacities[shown] * colours[shown]
    mixed[borders(np.where(seen[shown], shown, -1))] = _BORDER
    drawn = Image.fromarray(np.round(mixed).astype(np.uint8))
    return _above_legend(drawn, entries, min(26, max(15, max(drawn.size) // 45)))


def panel(
    examples: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    *,
    titles: Sequence[str] = ("picture", "truth", "prediction"),
    remarks: Sequence[str] = (),
    side: int = 224,
    across: int = 1,
) -> Image.Image:
    """Draws pictures beside label maps of them in the classes' colours, above one legend.

    A picture keeps its proportions. The legend names the classes by their pixels in the first maps,
    then those that only later maps have, 24 at most. Pixels whose label has no name are near black
    and called "not counted".

    Args:
        examples: of each a picture, uint8 [H, W, 3], and its label maps, int [H, W].
        names: the classes, in label order.
        titles: of the columns: the picture, then the maps.
        remarks: what the legend says of each class after its name.
        side: of the square that each picture is fitted into, pixels.
        across: examples in a row.
    """
    nameless = len(names)
    colours = np.concatenate([palette(nameless), [_NAMELESS]]).astype(np.uint8)
    labels = [
        [np.where((x >= 0) & (x < nameless), x, nameless) for x in maps] for _, *maps in examples
    ]
    counts = np.array(
        [
            sum(np.bincount(x.ravel(), minlength=nameless + 1) for x in column)
            for column in zip(*labels, strict=True)
        ]
    )
    words = [*zip(legible(names), remarks or [""] * nameless, strict=True), ("not counted", "")]
    present = sorted(np.flatnonzero(counts.any(axis=0)), key=lambda c: (*-counts[:, c], c))
    entries = [(*words[c], colours[c]) for c in present]

    rows = []  # of parts, all of an example's side by side
    for (image, *_), maps in zip(examples, labels, strict=True):
        scale = side / max(image.shape[:2])
        parts = [_scaled(image, maps[0], scale)[0]]
        rows.append(parts + [colours[_scaled(image, x, scale)[1]] for x in maps])
    rows = [list(chain(*rows[i : i + across])) for i in range(0, len(rows), across)]
    size = max(15, side // 24)
    gap, head = size // 2, 2 * size
    cell = max(part.shape[1] for row in rows for part in row) + gap
    heights = [max(len(part) for part in row) + gap for row in rows]
    canvas = Image.new("RGB", (len(rows[0]) * cell - gap, head + sum(heights) - gap), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, title in enumerate(legible(titles, "column") * min(across, len(examples))):
        middle, font = number * cell + (cell - gap) // 2, _font(title, size)
        draw.text((middle, head // 2), _fitting(title, font, cell - gap), _INK, font, anchor="mm")
    for i, row in enumerate(rows):
        for j, part in enumerate(row):
            x = j * cell + (cell - gap - part.shape[1]) // 2
            canvas.paste(Image.fromarray(part), (x, head + sum(heights[:i])))
    return _above_legend(canvas, entries, size)


SHORTEST_DISPLAY, _LONGEST_DISPLAY = 480, 1600
LEGEND_ENTRIES, _NAME_WIDTH = 24, 14  # in sizes of the font
_BORDER = (255, 255, 255)
_PAPER, _INK, _FAINT, _NAMELESS = (255, 255, 255), (34, 34, 34), (128, 128, 128), (24, 24, 24)


def _scaled(image: np.ndarray, labels: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture and labels at `scale`; enlarged both by the nearest pixel."""
    height, width = labels.shape
    h, w = (max(1, round(side * scale)) for side in (height, width))
    rows, columns = np.arange(h) * height // h, np.arange(w) * width // w
    nearest = np.ix_(rows, columns)
    return (resize(image, (h, w)) if scale < 1 else image[nearest]), labels[nearest]


def enlargement(longest: int) -> int:
    """Gives the whole factor by which a picture with this longer side is shown enlarged."""
    return max(1, -(-SHORTEST_DISPLAY // longest))


def borders(labels: Int[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Marks pixels whose neighbour to the right or below is of another class."""
    mask = np.zeros(labels.shape, bool)
    mask[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    mask[:-1] |= labels[:-1] != labels[1:]
    return mask


_Entry = tuple[str, str, np.ndarray]  # of a legend: name, remark, colour


def _above_legend(picture: Image.Image, entries: list[_Entry], size: int) -> Image.Image:
    """The picture above the classes' names, in a font of `size`; alone where there are none."""
    if not entries:
        return picture
    below = legend(entries, size, max(picture.width, SHORTEST_DISPLAY))
    width = max(picture.width, below.width, SHORTEST_DISPLAY)
    canvas = Image.new("RGB", (width, picture.height + size + below.height + size), _PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    canvas.paste(below, (0, picture.height + size))
    return canvas


def legend(entries: list[_Entry], size: int, width: int) -> Image.Image:
    """Draws a table read down its columns, as many as there is room for in `width` pixels."""
    font = ImageFont.load_default(size)
    row, gap = round(1.6 * size), size
    rest = len(entries) - LEGEND_ENTRIES
    rows = []
    for name, remark, colour in entries[:LEGEND_ENTRIES]:
        own = _font(name, size)
        rows.append((_fitting(name, own, _NAME_WIDTH * size), own, remark, colour))
    name_width = max(math.ceil(own.getlength(name)) for name, own, _, _ in rows)
    remark_width = max(math.ceil(font.getlength(remark)) for _, _, remark, _ in rows)
    cell = row + name_width + gap + remark_width + 2 * gap
    columns = max(1, min(len(rows), (width - gap) // cell))
    depth = -(-len(rows) // columns)
    canvas = Image.new("RGB", (gap + columns * cell, (depth + (rest > 0)) * row), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (name, own, remark, colour) in enumerate(rows):
        x, y = gap + index // depth * cell, index % depth * row + row // 2
        half = size // 2
        draw.rounded_rectangle((x, y - half, x + size, y + half), size // 5, tuple(colour.tolist()))
        draw.text((x + row, y), name, _INK, own, anchor="lm")
        end = x + row + name_width + gap + remark_width
        draw.text((end, y), remark, _FAINT, font, anchor="rm")
    if rest > 0:
        y = depth * row + row // 2
        draw.text((gap + row, y), f"+{rest} more", _FAINT, font, anchor="lm")
    return canvas


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def legible(names: Sequence[str], what: str = "class") -> list[str]:
    """Puts names in one line each; numbers instead of those in letters that no font has."""
    lines = [" ".join(name.split()) for name in names]
    return [f"{what} {i}" if _font_file(line) is None else line for i, line in enumerate(lines)]


def _font(text: str, size: int) -> _Font:
    path = _font_file(text)
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@functools.cache
def _font_file(text: str) -> str | None:
    """A font that has all letters of a text: "" for PIL's own, a system's, or None."""
    own = ImageFont.load_default(15)
    if all(bytes(own.getmask(c)) != bytes(own.getmask(_NO_LETTER)) for c in {*text}):
        return ""
    needed = {ord(c) for c in text}
    return next((path for path, letters in _system_fonts() if needed <= letters), None)


_NO_LETTER = "\U0010ffff"  # a font draws a box for it


@functools.cache
def _system_fonts() -> list[tuple[str, frozenset[int]]]:
    """Files of upright fonts and the letters they have, matplotlib's own and the system's."""
    from matplotlib import font_manager, ft2font  # late: a quarter of a second

    found = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    # Sans serif and regular before others. The Last Resort has a box for each letter.
    found.sort(key=lambda font: ("Sans" not in font.name, font.weight != 400, font.name))
    fonts = []
    for font in found:
        if "Last Resort" not in font.name:
            with contextlib.suppress(OSError, RuntimeError):  # damaged files
                fonts.append((font.fname, frozenset(ft2font.FT2Font(font.fname).get_charmap())))
    return fonts


def _fitting(text: str, font: _Font, width: int) -> str:
    """`text`, its middle left out where it is too wide."""
    whole, kept = text, min(len(text), width)  # a letter is at least a pixel wide
    while kept > 2 and font.getlength(text) > width:
        kept -= 1
        text = f"{whole[: kept // 2]}…{whole[len(whole) - kept // 2 :]}"
    return text


def _percent(share: float) -> str:
    return "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"
