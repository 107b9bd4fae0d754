"""Pictures made ready on the host: patches for CLIP, squares for the attention source, batches."""

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from dsolo_jax import clip, images
from dsolo_jax.assets import BUNDLED
from dsolo_jax.model import Config

AnyPicture = str | os.PathLike | Image.Image | UInt8[np.ndarray, "_ _ 3"]


class Picture(NamedTuple):
    """A picture made ready on the host: its pixels, its patches at the working size for CLIP, and
    its square for the attention source; what windows are cut from, where the model has some, or
    the side of its tiles, where it is taken by tiles alone. See `windows`."""

    pixels: UInt8[np.ndarray, "H W 3"]
    patches: UInt8[np.ndarray, "n K"]
    grid: tuple[int, int]  # (h, w), n = h · w
    square: UInt8[np.ndarray, "S S 3"]
    resized: UInt8[np.ndarray, "a b 3"] | None = None
    tile: int | None = None


class Batch(NamedTuple):
    """B pictures as arrays of one shape; patches behind h · w are padding."""

    patches: UInt8[np.ndarray, "B n K"]
    grids: Int[np.ndarray, "B 2"]
    squares: UInt8[np.ndarray, "B S S 3"]


# A picture of more pixels is taken by tiles of this side where nobody says how, see `prepare`: what
# it shows at the networks' size is too small by then. Photographs of telephones are below (ours).
LARGEST_WHOLE = 50_000_000
TILE = 2048
_SMALLEST_TILE = 32


def prepare(config: Config, image: AnyPicture, tile: int | None = 0) -> Picture:
    """Reads a picture, cuts it at the working size into patches, and squeezes it to the attention
    source's square; on the host.

    Args:
        tile: side of overlapping tiles that a larger picture is taken by, pixels of the picture; 0
            takes all whole; None those of at most `LARGEST_WHOLE` pixels, and others by `TILE`.

    Raises:
        ValueError: it is no picture; a tile of under 32 pixels, or beside the model's own windows.
        FileNotFoundError: no such file.
    """
    if tile and config.crop is not None:
        raise ValueError(
            f"tile is {tile}, and the model has windows of its own, crop {config.crop}; leave "
            "one out"
        )
    if tile and tile < _SMALLEST_TILE:
        raise ValueError(
            f"tile is {tile}; wanted a side of at least {_SMALLEST_TILE} pixels, such as {TILE}, "
            "or 0, which takes pictures whole"
        )
    pixels = images.read_image(image)
    if tile is None:
        large = pixels.shape[0] * pixels.shape[1] > LARGEST_WHOLE and config.crop is None
        tile = TILE if large else 0
    if config.tokenizer in BUNDLED["clip"] and min(pixels.shape[:2]) > 2 * config.short_side:
        warnings.warn(
            "the miniature CLIP knows its own drawn scenes of 112 pixels and 19 words alone, not "
            "photographs; take another preset",
            stacklevel=2,
        )
    if 0 < tile < max(pixels.shape[:2]):
        none = np.empty((0, 0), np.uint8)
        return Picture(pixels, none, (0, 0), none[:, :, None], tile=tile)
    return resized(config, pixels)


def resized(config: Config, pixels: UInt8[np.ndarray, "H W 3"]) -> Picture:
    """Makes a picture, or a tile of one, ready at the size that the config gives it for CLIP."""
    patch = config.clip.vision.patch_size
    height, width = images.resized_size(
        *pixels.shape[:2], short_side=config.short_side, long_side=config.long_side, multiple=patch
    )
    small = images.resize(pixels, (height, width))
    whole = view(config, pixels, small)
    return whole if config.crop is None else whole._replace(resized=small)


def view(
    config: Config, pixels: UInt8[np.ndarray, "H W 3"], resized: UInt8[np.ndarray, "a b 3"]
) -> Picture:
    """Makes a picture, or a window of one, ready whose size for CLIP is chosen already."""
    patch = config.clip.vision.patch_size
    grid = resized.shape[0] // patch, resized.shape[1] // patch
    [patches] = clip.patchify(resized[None], patch)
    return Picture(pixels, patches, grid, images.squeeze(pixels, config.source.size))


def batch(pictures: Sequence[Picture]) -> Batch:
    """Stacks pictures, each padded to the bucket of the longest."""
    length = bucket(max(len(picture.patches) for picture in pictures))
    padding = [((0, length - len(picture.patches)), (0, 0)) for picture in pictures]
    return Batch(
        np.stack([np.pad(p.patches, pad) for p, pad in zip(pictures, padding, strict=True)]),
        np.array([picture.grid for picture in pictures], np.int32),
        np.stack([picture.square for picture in pictures]),
    )


def bucket(length: int) -> int:
    """The next of the lengths 4, 5, 6, 7, 8, 10, 12, 14, 16, …: at most a quarter of padding."""
    step = 1 << max(length.bit_length() - 3, 0)
    return -(-length // step) * step


def normalised(
    config: Config, patches: UInt8[Array | np.ndarray, "B n K"]
) -> Float[Array, "B n K"]:
    """Normalises a batch's patches for CLIP, on the device: bytes come there sooner than float32.

    Raises:
        ValueError: patches that are no bytes.
    """
    if patches.dtype != np.uint8:
        raise ValueError(
            f"patches are {patches.dtype}, wanted uint8 and not normalised, as `batch` makes them"
        )
    pixels = jnp.asarray(patches).reshape(*patches.shape[:2], -1, 3)
    found = images.normalise(pixels, config.clip.image_mean, config.clip.image_std)
    return jnp.reshape(found, patches.shape)
