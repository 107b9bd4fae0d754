"""How stuff looks: for each a field in 0..1 and a palette that turns it into colours."""

from collections.abc import Callable

import numpy as np

from dsolo_jax.datasets.miniature.noise import noise

Field = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]

_SHADES = 128


def _plain(kind: str, share: float) -> Field:
    """Noise of one kind, roughened by grain."""

    def field(rng, y, x):
        size = y.size, x.size
        return share * noise(rng, kind, *size) + (1 - share) * noise(rng, "grain", *size)

    return field


def _water(rng, y, x):
    """Waves that lie across and are bent."""
    bend = noise(rng, "cloud", y.size, x.size)
    return 0.5 + 0.5 * np.sin(y / rng.uniform(1.6, 2.1) + 18 * bend)


def _sand(rng, y, x):
    """Grain on soft dunes."""
    dunes = np.sin((y + x * rng.uniform(-1, 1)) / 5 + 9 * noise(rng, "cloud", y.size, x.size))
    return 0.5 + 0.2 * dunes + 0.6 * (noise(rng, "grain", y.size, x.size) - 0.5)


def _brick(rng, y, x):
    """Rows of bricks, every second one shifted by half a brick, in light mortar."""
    length, height = rng.uniform(15, 19), rng.uniform(7.5, 9)
    row = np.floor(y / height)
    along = (x / length + 0.5 * (row % 2)) % 1 * length
    mortar = (along < 1.6) | (y % height < 1.6)
    tone = np.sin(37 * row + 91 * np.floor(x / length + 0.5 * (row % 2)))
    stone = 0.35 + 0.2 * tone + 0.2 * noise(rng, "grain", y.size, x.size)
    return np.where(mortar, 1.0, stone)


def _wood(rng, y, x):
    """Planks with fibres along them and dark seams."""
    height = rng.uniform(15, 20)
    tone = 0.12 * np.sin(5 * np.floor(y / height))
    plank = 0.15 + tone + 0.75 * noise(rng, "fibre", y.size, x.size)
    return np.where(y % height < 1.8, 0.0, plank)


def _lava(rng, y, x):
    """A dark crust with glowing cracks where the noise is near its middle."""
    crack = 1 - 7 * np.abs(noise(rng, "blob", y.size, x.size) - 0.5)
    return np.maximum(crack, 0.15 * noise(rng, "grain", y.size, x.size))


_TEXTURES: dict[str, tuple[Field, list[tuple[int, int, int]]]] = {
    "sky": (_plain("cloud", 0.97), [(70, 135, 225), (115, 175, 240), (225, 236, 250)]),
    "grass": (_plain("blade", 0.85), [(25, 85, 20), (70, 150, 40), (150, 205, 85)]),
    "water": (_water, [(8, 55, 105), (15, 100, 135), (135, 200, 205)]),
    "sand": (_sand, [(180, 150, 100), (216, 190, 138), (240, 222, 178)]),
    "brick": (_brick, [(105, 38, 25), (165, 75, 55), (205, 195, 185)]),
    "wood": (_wood, [(60, 34, 16), (140, 90, 50), (188, 134, 82)]),
    "snow": (_plain("cloud", 0.75), [(196, 208, 230), (240, 243, 250), (255, 255, 255)]),
    "road": (_plain("grain", 1.0), [(52, 52, 56), (88, 88, 92), (140, 140, 142)]),
    "leaves": (_plain("blob", 0.92), [(10, 28, 12), (34, 84, 30), (120, 140, 30)]),
    "lava": (_lava, [(34, 12, 14), (205, 60, 10), (255, 225, 90)]),
}


def _shades(palette: list[tuple[int, int, int]]) -> np.ndarray:
    """The palette's colours, joined by straight lines: [_SHADES, 3] in 0..1."""
    at, places = np.linspace(0, 1, _SHADES), np.linspace(0, 1, len(palette))
    return np.stack([np.interp(at, places, c) for c in np.transpose(palette)], -1) / 255


_PALETTES = {name: _shades(palette) for name, (_, palette) in _TEXTURES.items()}


def paint(rng: np.random.Generator, names: list[str], regions: np.ndarray) -> np.ndarray:
    """Fills the regions with stuff: float32 [H, W, 3] in 0..1.

    Args:
        names: of the stuff in each region.
        regions: number of the region of each pixel [H, W].
    """
    height, width = regions.shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    shade = np.zeros((height, width), np.float32)
    for number, name in enumerate(names):
        down, across = rng.uniform(0, 100, 2).astype(np.float32)
        field = _TEXTURES[name][0](rng, y + down, x + across)
        np.copyto(shade, field, where=regions == number, casting="same_kind")
    palettes = np.stack([_PALETTES[name] * rng.uniform(0.9, 1.1, 3) for name in names])
    entry = np.clip(shade * (_SHADES - 1), 0, _SHADES - 1).astype(np.intp) + _SHADES * regions
    return palettes.reshape(-1, 3).astype(np.float32).take(entry, axis=0)
