"""Pictures and label maps: read, resize, normalise, write."""

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from dsolo_jax.utils.files import atomic


def read_image(image: str | os.PathLike | Image.Image | np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Reads a picture as RGB, upright.

    From a path or a PIL image: the EXIF rotation is applied if it can be read, of an animation the
    current (in files, the first) frame is taken, what is transparent shows white, 16-bit grey is
    scaled to 8 bits (not clipped), every other mode goes through PIL's conversion. Arrays are taken
    as they are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is empty, damaged or no raster picture; an array of another type or
            shape; a picture of more pixels than PIL opens, twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(image, Image.Image):
        return _rgb(image, f"the PIL image of mode {image.mode}")
    if isinstance(image, str | os.PathLike):
        return decode_image(_read(image), str(image))
    return _checked(image)


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Reads as `read_image` an encoded picture in memory, which errors call `name`."""
    pixels, _ = decode_upright(data, name)
    return pixels


def decode_upright(data: bytes, name: str) -> tuple[UInt8[np.ndarray, "H W 3"], bool]:
    """Decodes as `decode_image`, and says whether the EXIF rotation turned the picture."""
    image = _open(data, name)
    return _rgb(image, name), _rotation(image) is not None


def read_labels(path: str | os.PathLike) -> Int[np.ndarray, "H W"]:
    """Reads a label map, int32, from a file of one index a pixel.

    Palette files give their indices, not their colours; grey files of 1 to 16 bits their values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is empty, damaged, no picture, coloured, or a JPEG.
    """
    return decode_labels(_read(path), str(path))


def decode_labels(data: bytes, name: str) -> Int[np.ndarray, "H W"]:
    """Reads as `read_labels` an encoded label map in memory, which errors call `name`."""
    image = _open(data, name)
    if image.format == "JPEG":
        raise ValueError(
            f"{name} is a JPEG, which changes the values of a label map; wanted a PNG, made anew "
            "from the labels"
        )
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise ValueError(
            f"{name} is a label file of mode {image.mode} ({len(image.getbands())} channels), "
            "wanted one index a pixel (mode P, L or I;16); turn colours into class indices first"
        )
    labels = np.asarray(image).astype(np.int32)
    # Grey of 2 and 4 bits PIL scales to 8. A PNG's depth is at a fixed place.
    depth = data[24] if image.format == "PNG" and image.mode == "L" else 8
    return labels // (255 // (2**depth - 1)) if depth in (2, 4) else labels


def resized_size(
    height: int, width: int, *, short_side: int, long_side: int, multiple: int
) -> tuple[int, int]:
    """Gives (height, width) of a picture at the working size, its proportions kept.

        scale = min(long_side / max(H, W), short_side / min(H, W))        (mmseg's keep-ratio rule)
        side  = multiple · max(1, round(side · scale / multiple))

    Each side goes to the nearest multiple of the patch, so that nothing is dropped or padded when
    the picture is cut; the proportions change by at most half a patch a side (ours).
    """
    for name, value in dict(locals()).items():
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    # As a ratio of integers: ties do not hang on a rounding error.
    large, small = max(height, width), min(height, width)
    to, of = min((long_side, large), (short_side, small), key=lambda ratio: Fraction(*ratio))

    def nearest(side: int) -> int:
        return multiple * max(1, (2 * side * to + of * multiple) // (2 * of * multiple))

    return nearest(height), nearest(width)


def resize(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Brings `image` to `size` (height, width), by PIL's bilinear filter.

    On the way down it averages what it drops; mmseg's cv2.INTER_LINEAR aliases.
    """
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def squeeze(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "S S 3"]:
    """Makes a square of `side` pixels, proportions not kept, by area as M2N2 does."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def normalise(
    pixels: UInt8[Array | np.ndarray, "*n 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array | np.ndarray, "*n 3"]:
    """Computes `(pixels / 255 - mean) / std` of each channel, float32."""
    means, deviations = np.asarray([mean, std], np.float32)
    return (pixels.astype(np.float32) / 255 - means) / deviations


def write_png(
    path: str | os.PathLike,
    image: np.ndarray | Image.Image,
    palette: UInt8[np.ndarray, "C 3"] | None = None,
) -> None:
    """Writes a picture (uint8 [H, W, 3]) or a label map (integers [H, W]) as PNG, atomically.

    Label maps become 8-bit grey where every value is at most 255, else 16-bit grey; `read_labels`
    gives them back. With a palette of at most 256 colours they become indices into it, so that
    viewers show the colours and `read_labels` still gives the indices.

    Raises:
        ValueError: a label below 0 or above 65535.
        OSError: naming `path`, if it cannot be written.
    """
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            low, high = image.min(initial=0), image.max(initial=0)
            if image.dtype.kind not in "iu" or low < 0 or high > 65535:
                raise ValueError(
                    f"label map for {path} is {image.dtype} with values {low}..{high}, wanted "
                    "integers in 0..65535"
                )
            image = image.astype(np.uint8 if high <= 255 else np.uint16)
        colours = palette if image.ndim == 2 else None
        image = Image.fromarray(image)
        if colours is not None and len(colours) <= 256:
            image.putpalette(colours.tobytes())  # of mode P from here
    with atomic(path) as temporary:
        image.save(temporary, format="PNG")


def encode_png(image: UInt8[np.ndarray, "H W 3"] | Shaped[np.ndarray, "H W"]) -> bytes:
    """Encodes a picture or a label map of 8 or 16 bits, quickly rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


# ---- decoding ------------------------------------------------------------------------------------


def _read(path: str | os.PathLike) -> bytes:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is a folder, wanted a picture file")
    return path.read_bytes()


def _open(data: bytes, name: str) -> Image.Image:
    """The decoded picture; PIL's decoders raise all sorts, one sort leaves here."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes), {_WANTED}")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({error}); {_SHRINK}") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is no picture, or cut short: {len(data)} bytes starting with {data[:12]!r}, "
            f"{_WANTED}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read ({error}); fetch it again, or save it anew"
        ) from error
    _guard(image, name)
    try:
        image.load()
    except Exception as error:
        raise ValueError(
            f"{name} is damaged or cut short: a {image.format} of {image.width} x {image.height} "
            f"in {len(data)} bytes that does not decode ({error}), {_WANTED}"
        ) from error
    return image


_WANTED = "wanted a whole raster picture (JPEG, PNG, WebP, TIFF, ...); fetch it again"
_SHRINK = "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
# Only pixels: for others, such as EPS, PIL starts programs.
_RASTER = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ROTATIONS = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
), start=2))  # fmt: skip


def _formats() -> list[str]:
    """The raster formats that this PIL and its plugins know."""
    Image.init()
    return [name for name in _RASTER if name in Image.OPEN]


def _rotation(image: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright; nothing where its EXIF is broken."""
    try:
        return _ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL raises all sorts
        return None


def _guard(image: Image.Image, name: str) -> None:
    if Image.MAX_IMAGE_PIXELS is None:
        return
    limit = 2 * Image.MAX_IMAGE_PIXELS  # PIL warns above the half, and refuses above this
    if image.width * image.height > limit:
        raise ValueError(
            f"{name} is too large: {image.width} x {image.height}, wanted at most {limit} pixels; "
            f"{_SHRINK}"
        )


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    _guard(image, name)
    deep = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")
    if (rotation := _rotation(image)) is not None:
        image = image.transpose(rotation)
    if image.mode.startswith(("I", "F")):
        return _grey_16(np.asarray(image), name, deep)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return np.asarray(image.convert("RGB"))


def _grey_16(grey: np.ndarray, name: str, deep: bool) -> np.ndarray:
    """16 bits to 8: the brightest, 65535, becomes 255."""
    if deep or grey.min() < 0 or grey.max() > 65535:
        raise ValueError(
            f"{name} holds {grey.dtype} values from {grey.min()} to {grey.max()}, wanted at most "
            "16 bits; scale it to 8 bits first, its range has no agreed meaning"
        )
    eight = ((grey.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(eight[:, :, None], 3, axis=2)


def _checked(image: np.ndarray) -> np.ndarray:
    if not hasattr(image, "__array__"):
        raise TypeError(
            f"image is a {type(image).__name__}, wanted a path, a PIL image or uint8 [H, W, 3]"
        )
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return array
    raise ValueError(
        f"image is an array of {array.dtype} {list(array.shape)}, wanted uint8 [H, W, 3], one "
        "picture at a time, at least one pixel; 0..1: (255 * image).round().astype(np.uint8), "
        "grey: np.repeat(image[..., None], 3, axis=2), channels first: image.transpose(1, 2, 0), "
        "RGBA: PIL.Image.fromarray(image)"
    )
