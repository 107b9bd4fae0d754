import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin

from dsolo_jax import images
from dsolo_jax.clip import VIT_B16


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- reading -------------------------------------------------------------------------------------


def test_paths_pil_images_and_arrays_are_one(tmp_path):
    pixels = noise(5, 7)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    for image in (path, str(path), Image.fromarray(pixels), pixels):
        read = images.read_image(image)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "PA"]
)
def test_every_mode_becomes_rgb(mode):
    assert images.read_image(Image.new(mode, (4, 3))).shape == (3, 4, 3)


def test_grey_has_three_equal_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = images.decode_image(encoded(Image.fromarray(grey)), "grey.png")
    np.testing.assert_array_equal(read, np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    read = images.decode_image(encoded(Image.fromarray(grey), kind), "deep")
    np.testing.assert_array_equal(read[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_pictures_of_32_bits_are_refused(dtype):
    data = encoded(Image.fromarray(np.ones((2, 2), dtype)), "TIFF")
    with pytest.raises(ValueError, match=rf"depth\.tif holds {dtype} .* scale it to 8 bits"):
        images.decode_image(data, "depth.tif")


def test_what_is_transparent_shows_white():
    rgba = np.array([[[200, 10, 20, 0], [200, 10, 20, 255], [0, 0, 0, 128]]], np.uint8)
    read = images.decode_image(encoded(Image.fromarray(rgba)), "cutout.png")
    np.testing.assert_array_equal(read[0], [[255] * 3, [200, 10, 20], [127] * 3])

    indices = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    indices.putpalette([9, 9, 9, 50, 60, 70])
    read = images.decode_image(encoded(indices, transparency=0), "palette.png")
    np.testing.assert_array_equal(read[0], [[255] * 3, [50, 60, 70]])


@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(4, 6)), exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels, turned = images.decode_upright(data, "phone")
    np.testing.assert_array_equal(pixels, upright)
    np.testing.assert_array_equal(images.decode_image(data, "phone"), upright)
    assert turned == (2 <= orientation <= 8)


def test_a_broken_exif_means_upright():
    pixels = noise(4, 6)
    raw = PngImagePlugin.PngInfo()
    raw.add_text("Raw profile type exif", "\nexif\n 6\nnot hexadecimal")
    for options in ({"exif": b"\0\x08\0\2\1\x12\0\3"}, {"pnginfo": raw}):
        data = encoded(Image.fromarray(pixels), **options)
        with pytest.raises((SyntaxError, ValueError)):
            ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(images.decode_image(data, "x.png"), pixels)
        assert not images.decode_upright(data, "x.png")[1]


def test_what_is_no_raster_picture_starts_no_program(monkeypatch):
    """PIL would run Ghostscript on it, whatever its name."""
    data = encoded(Image.fromarray(noise(8, 8)), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was started"))
    with pytest.raises(ValueError, match=r"photo\.jpg is no picture.*%!PS-Adobe.*raster picture"):
        images.decode_image(data, "photo.jpg")


def test_the_true_reason_is_named():
    """A whole picture, of which PIL does not like the text."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (1 << 20) + "y", zip=True)
    data = encoded(Image.fromarray(noise(4, 6)), pnginfo=text)
    with pytest.raises(
        ValueError, match=r"x\.png cannot be read \(Decompressed data too large.*anew"
    ):
        images.decode_image(data, "x.png")


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.decode_image(data, "gif")[0, 0], [255, 0, 0])


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 4000), (8000, 8000)])
def test_odd_and_large_sizes_are_read_without_a_warning(size):
    data = encoded(Image.new("1", size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.decode_image(data, "odd").shape == (size[1], size[0], 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(15_000, 12_000), (20_000, 20_000)])
def test_absurd_sizes_are_refused_before_they_are_decoded(size):
    data = grey_png(np.zeros((1, 1), int), 8, size)
    with pytest.raises(ValueError, match=r"bomb\.png is too large.*MAX_IMAGE_PIXELS"):
        images.decode_image(data, "bomb.png")


def test_files_that_are_no_pictures_are_named(tmp_path):
    jpeg, png = (encoded(Image.fromarray(noise(40, 40)), kind) for kind in ("JPEG", "PNG"))
    bad = {
        "empty.jpg": (b"", r"empty \(0 bytes\)"),
        "page.jpg": (b"<html>404</html>", r"no picture.*16 bytes starting with b'<html>404"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "cut short: a JPEG of 40 x 40"),
        "half.png": (png[: len(png) // 2], "cut short: a PNG of 40 x 40"),
        "head.png": (png[:20], "cannot be read .*; fetch it again"),
        "foot.png": (png[20:], "no picture, or cut short"),
    }
    for name, (data, message) in bad.items():
        (tmp_path / name).write_bytes(data)
        for read in (images.read_image, images.read_labels):
            with pytest.raises(ValueError, match=f"{name} .*{message}"):
                read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        images.read_image(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="is a folder"):
        images.read_image(tmp_path)


@pytest.mark.parametrize(
    "array, way_out",
    [
        (np.zeros((4, 4, 3), np.float32), "255 \\* image"),
        (np.zeros((4, 4), np.uint8), "np.repeat"),
        (np.zeros((4, 4, 4), np.uint8), "PIL.Image.fromarray"),
        (np.zeros((3, 4, 4), np.uint8), "transpose"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    ],
)
def test_other_arrays_are_refused_with_the_way_out(array, way_out):
    with pytest.raises(ValueError, match=way_out):
        images.read_image(array)


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="image is a NoneType, wanted a path"):
        images.read_image(None)


def test_labels_are_indices_whatever_holds_them(tmp_path):
    small = np.array([[0, 1, 2], [254, 255, 7]], np.uint8)
    with_palette = Image.fromarray(small).convert("P")
    with_palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    large = small.astype(np.uint16) * 256 + 3
    for image, expected in (
        (Image.fromarray(small), small),
        (with_palette, small),
        (Image.fromarray(large), large),
    ):
        path = tmp_path / "labels.png"
        image.save(path)
        labels = images.read_labels(path)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, expected)


def grey_png(values, bits, size=None):
    """A grey PNG of 1, 2, 4 or 8 bits a pixel, which PIL itself does not write.

    It may say that it is of another size (height, width).
    """
    height, width = values.shape
    each = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(each.reshape(height, -1).astype(np.uint8), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = size or values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_maps_of_few_bits_hold_the_stored_values(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7))
    labels = images.decode_labels(grey_png(values, bits), "labels.png")
    np.testing.assert_array_equal(labels, values)
    with_palette = Image.fromarray(values.astype(np.uint8)).convert("P")
    with_palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    stored = encoded(with_palette, bits=bits)
    np.testing.assert_array_equal(images.decode_labels(stored, "labels.png"), values)


def test_coloured_labels_are_refused(tmp_path):
    Image.fromarray(noise(2, 2)).save(tmp_path / "coloured.png")
    with pytest.raises(ValueError, match=r"coloured\.png .*mode RGB \(3 channels\).*indices first"):
        images.read_labels(tmp_path / "coloured.png")


def test_labels_in_a_jpeg_are_refused_whatever_its_name(tmp_path):
    """Compressed as a photograph, 0 and 7 become 0, 1, 5, 6 and 7."""
    Image.fromarray(np.repeat([0, 7], 32).astype(np.uint8).reshape(8, 8)).save(
        tmp_path / "a.png", format="JPEG"
    )
    with pytest.raises(ValueError, match=r"a\.png is a JPEG, which changes the values"):
        images.read_labels(tmp_path / "a.png")


@pytest.mark.parametrize("highest, mode", [(255, "L"), (256, "I;16"), (65535, "I;16")])
def test_label_maps_come_back_from_png(tmp_path, highest, mode):
    labels = np.array([[0, 1], [2, highest]], np.int32)
    images.write_png(tmp_path / "labels.png", labels)
    np.testing.assert_array_equal(images.read_labels(tmp_path / "labels.png"), labels)
    with Image.open(tmp_path / "labels.png") as written:
        assert written.mode == mode


def test_write_png_writes_pictures_and_refuses_what_png_cannot_hold(tmp_path):
    pixels = noise(3, 4)
    images.write_png(tmp_path / "picture.png", pixels)
    np.testing.assert_array_equal(images.read_image(tmp_path / "picture.png"), pixels)
    for wrong in (np.array([[-1]]), np.array([[65536]]), np.array([[0.5]])):
        with pytest.raises(ValueError, match=r"wrong\.png"):
            images.write_png(tmp_path / "wrong.png", wrong)
    assert not (tmp_path / "wrong.png").exists()


# ---- sizes and patches ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (336, 448)),
        ((640, 480), (448, 336)),
        ((512, 683), (336, 448)),  # 448.2 goes down
        ((100, 5000), (48, 2048)),  # the long side binds; 40.96 -> 48
        ((1, 5000), (16, 2048)),  # at least one patch
        ((1, 1), (336, 336)),
        ((336, 336), (336, 336)),
        ((2, 3), (336, 512)),  # 504 = 31.5 patches: half goes up
    ],
)
def test_resized_size(size, expected):
    assert images.resized_size(*size, short_side=336, long_side=2048, multiple=16) == expected


@pytest.mark.parametrize("seed", range(20))
def test_resized_size_is_the_nearest_multiple_of_mmsegs_size(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 4000, 2))
    multiple = int(rng.choice([14, 16, 64]))
    short, long = int(rng.integers(64, 800)), int(rng.integers(900, 2500))
    scale = min(long / max(height, width), short / min(height, width))
    resized = images.resized_size(
        height, width, short_side=short, long_side=long, multiple=multiple
    )
    for side, new in zip((height, width), resized, strict=True):
        assert new % multiple == 0 and new >= multiple
        assert abs(new - side * scale) <= multiple / 2 + 1e-6 or new == multiple


def test_resized_size_names_what_is_wrong():
    with pytest.raises(ValueError, match="width is 0"):
        images.resized_size(5, 0, short_side=336, long_side=2048, multiple=16)


def test_resize_keeps_constants_and_averages_on_the_way_down():
    flat = np.full((30, 50, 3), 77, np.uint8)
    assert (images.resize(flat, (16, 32)) == 77).all()
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    shrunk = images.resize(stripes, (8, 8))
    assert shrunk.shape == (8, 8, 3)
    assert (
        abs(shrunk.astype(int) - 100).max() <= 10
    )  # cv2 without averaging gives 0 or 200 in places
    pixels = noise(6, 5)
    np.testing.assert_array_equal(images.resize(pixels, (6, 5)), pixels)


def test_normalisation_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    pixels = noise(16, 32)
    expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    ours = images.normalise(pixels, VIT_B16.image_mean, VIT_B16.image_std)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours.transpose(2, 0, 1), expected, rtol=1e-5, atol=1e-5)
