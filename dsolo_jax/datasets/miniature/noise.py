"""Fields of noise that textures and borders are cut from: made once, read at random offsets."""

from functools import lru_cache

import numpy as np

_SIDE = 256

# Standard deviations of a Gaussian blur in pixels, (down, across), of what is kept less what is
# taken away: the band of white noise between the two.
_BANDS = {
    "cloud": ((12.0, 12.0), None),
    "grain": ((0.7, 0.7), None),
    "blob": ((3.0, 3.0), (6.0, 6.0)),
    "blade": ((4.0, 0.8), None),
    "fibre": ((1.0, 12.0), None),
}


@lru_cache
def _tiles(kind: str, repeats: int) -> np.ndarray:
    """Periodic noise, values spread evenly over 0..1, side by side: [repeats · _SIDE] · 2."""
    number = list(_BANDS).index(kind)
    spectrum = np.fft.rfft2(np.random.default_rng(number).standard_normal((_SIDE, _SIDE)))
    keep, remove = _BANDS[kind]
    field = np.fft.irfft2(spectrum * (_blur(*keep) - (0 if remove is None else _blur(*remove))))
    even = np.empty(field.size, np.float32)
    even[np.argsort(field, axis=None)] = np.linspace(0, 1, field.size)
    return np.tile(even.reshape(field.shape), (repeats, repeats))


def _blur(down: float, across: float) -> np.ndarray:
    """The transfer function of a Gaussian blur, exp(-2 (π σ f)²)."""
    y, x = np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None]
    return np.exp(-2 * np.pi**2 * ((down * y) ** 2 + (across * x) ** 2))


def noise(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """A random cut of a kind of noise, float32 [height, width] in 0..1, not to be written to."""
    y, x = rng.integers(_SIDE, size=2)
    return _tiles(kind, 1 + -(-max(height, width) // _SIDE))[y : y + height, x : x + width]
