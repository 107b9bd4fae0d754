"""Videos in and out, against PyAV used plainly, and what becomes of labels between frames."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import draw, pipeline, video, vocabulary
from dsolo_jax.datasets import miniature
from tests.oracles import videos

WORDS = vocabulary.parse(["water", "sand", "circle, disc", "heart", "grass"])


@pytest.fixture(scope="module")
def model():
    return dsolo.load("miniature", graph=False)


@pytest.fixture(scope="module")
def scene():
    return miniature.draw(3, 1).image


def blocks(height=48, width=64):
    """A picture whose four quarters can be told apart after any compression."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = 220, 40, 40
    image[: height // 2, width // 2 :] = 40, 200, 60
    image[height // 2 :, : width // 2] = 50, 60, 210
    image[height // 2 :, width // 2 :] = 230, 220, 60
    return image


def near(found, expected, limit=25):
    assert found.shape == expected.shape
    return np.median(np.abs(found.astype(int) - expected)) < limit


def frames_of(path):
    with video.reading(path) as film:
        return film, list(film.frames)


# ------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_frames_come_with_their_times(tmp_path, name):
    images = [np.roll(blocks(), 4 * i, axis=1) for i in range(12)]
    videos.write(tmp_path / name, images)
    film, frames = frames_of(tmp_path / name)
    assert film.rate == 10 and abs(film.about - 12) <= 1
    assert [frame.number for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(12) / 10, atol=2e-3)
    assert all(near(frame.pixels, image) for frame, image in zip(frames, images, strict=True))


def test_a_variable_rate_is_kept_by_times(tmp_path):
    durations = [6000, 12000, 3000, 30000, 6000, 6000]
    videos.write(tmp_path / "in.mp4", [blocks()] * 6, durations=durations)
    film, frames = frames_of(tmp_path / "in.mp4")
    starts = np.cumsum([0, *durations[:-1]]) / videos.TICKS
    np.testing.assert_allclose([frame.seconds for frame in frames], starts, atol=1e-4)
    with video.writing(tmp_path / "out.mp4", film.rate) as write:
        for frame in frames:
            write(frame.pixels, frame.seconds, frame.duration)
    _, seconds, told = videos.read(tmp_path / "out.mp4")
    np.testing.assert_allclose(seconds, starts, atol=1e-4)
    assert told["seconds"] == pytest.approx(starts[-1] + frames[-1].duration, abs=1e-3)


@pytest.mark.parametrize(
    "matrix, turned",
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # a telephone held upright: a quarter clockwise
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    ],
)
def test_frames_are_upright(tmp_path, matrix, turned):
    path = tmp_path / "a.mp4"
    videos.write(path, [blocks()] * 3)
    videos.turn(path, *matrix)
    _, frames = frames_of(path)
    assert all(near(frame.pixels, turned(blocks())) for frame in frames)


def test_what_is_no_video_is_named(tmp_path):
    whole = tmp_path / "whole.mp4"
    videos.write(whole, [blocks()] * 5)
    for name, data in (
        ("empty.mp4", b""),
        ("text.mp4", b"no video at all" * 40),
        ("cut.mp4", whole.read_bytes()[:-400]),  # its index is at the end
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is no video that can be read"):
            frames_of(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.mp4"):
        frames_of(tmp_path / "none.mp4")


def test_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="has no pictures, only audio"):
        frames_of(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_that_breaks_off_says_where(tmp_path, name):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 48, 64, 3), np.uint8)  # noise fills the file evenly
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    videos.write(tmp_path / name, images, **options)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    got = []
    with video.reading(tmp_path / name) as film, pytest.raises(ValueError) as raised:
        for frame in film.frames:
            got.append(frame)
    assert 10 < len(got) < 30
    said = str(raised.value)
    assert f"after {len(got)} frames, {got[-1].seconds:.1f} s of 4.0 s" in said
    assert "ffmpeg" in said and name in said


def test_a_video_that_is_damaged_says_where(tmp_path):
    path = tmp_path / "a.mp4"
    images = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    videos.write(path, images, movflags="faststart")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20000] = bytes(20000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mp4 is damaged after [12]\d frames"):
        frames_of(path)


# ------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_what_is_written_is_what_was_given(tmp_path, monkeypatch, encoder):
    monkeypatch.setattr(video, "_ENCODERS", {encoder: video._ENCODERS[encoder]})
    images = [np.roll(blocks(72, 96), 6 * i, axis=1) for i in range(10)]
    with video.writing(tmp_path / "new" / "a.mp4", Fraction(30000, 1001)) as write:
        for i, image in enumerate(images):
            write(image, i * 1001 / 30000, 1001 / 30000)
    found, seconds, told = videos.read(tmp_path / "new" / "a.mp4")
    assert told["codec"] == {"libx264": "h264"}.get(encoder, encoder)
    assert told["frames"] == 10 and told["rate"] == Fraction(30000, 1001)
    assert told["seconds"] == pytest.approx(10 * 1001 / 30000, abs=1e-4)
    np.testing.assert_allclose(seconds, np.arange(10) * 1001 / 30000, atol=1e-4)
    assert all(near(one, image, 8) for one, image in zip(found, images, strict=True))


def test_nothing_half_written_stays(tmp_path):
    with pytest.raises(KeyboardInterrupt), video.writing(tmp_path / "a.mp4", Fraction(10)) as write:
        for i in range(5):
            write(blocks(), i / 10, 0.1)
        raise KeyboardInterrupt
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write .*file/a.mp4"):
        with video.writing(tmp_path / "file" / "a.mp4", Fraction(10)) as write:
            write(blocks(), 0, 0.1)


def test_times_that_do_not_go_on_are_no_error(tmp_path):
    with video.writing(tmp_path / "a.mp4", Fraction(10)) as write:
        for seconds in (0, 0.1, 0.1, 0.05, 0.4):
            write(blocks(), seconds, 0.1)
    _, seconds, told = videos.read(tmp_path / "a.mp4")
    assert (
        told["frames"] == 5 and np.all(np.diff(seconds) > 0) and seconds[-1] == pytest.approx(0.4)
    )


# ------------------------------------------------------------------------------- overlays


@pytest.mark.parametrize("shape", [(112, 111), (37, 481), (500, 300)])
def test_every_frame_has_one_size_one_legend_and_the_classes_colours(shape):
    random = np.random.default_rng(0)
    names = ["cat", "sofa", "a name that is longer than the others"]
    paint, colours = video.painter(names, opacity=0.5), draw.palette(3)
    pixels = random.integers(0, 256, (*shape, 3), np.uint8)
    labels = [np.full(shape, c, np.int32) for c in range(3)]
    labels.append(random.integers(0, 3, shape).astype(np.int32))
    drawn = [paint(pixels, one) for one in labels]
    factor = -(-480 // max(shape)) if max(shape) < 480 else 1
    height, width = factor * shape[0], factor * shape[1]
    for image, one in zip(drawn, labels, strict=True):
        assert image.shape == drawn[0].shape and image.dtype == np.uint8
        assert image.shape[0] % 2 == image.shape[1] % 2 == 0
        np.testing.assert_array_equal(image[height:], drawn[0][height:])  # the legend
        left = (image.shape[1] - width) // 2
        part = image[:height, left : left + width][::factor, ::factor].astype(int)
        inside = np.ones(shape, bool)  # borders are white
        inside[:, :-1] &= one[:, :-1] == one[:, 1:]
        inside[:-1] &= one[:-1] == one[1:]
        expected = (pixels.astype(int) + colours[one]) / 2
        if factor == 1:
            assert np.abs(part - expected)[inside].max() <= 1
            assert (part[~inside] == 255).all()
        else:
            assert np.abs(part - expected).max() <= 1
    legend = drawn[0][height:].reshape(-1, 3)
    assert all((legend == colour).all(axis=1).sum() > 50 for colour in colours)


def test_of_many_classes_the_legend_has_those_of_the_frame():
    names = [f"class number {i}" for i in range(60)]
    paint, colours = video.painter(names), draw.palette(60)
    pixels, shape = np.zeros((200, 500, 3), np.uint8), (200, 500)
    drawn = {c: paint(pixels, np.full(shape, c, np.int32)) for c in (3, 50)}
    assert drawn[3].shape == drawn[50].shape
    for c, image in drawn.items():
        legend = image[200:].reshape(-1, 3)
        assert ((legend == colours[c]).all(axis=1).sum() > 50) and (legend != 255).any()


# ------------------------------------------------------------------------------- labels


def noisy(scene, count, sigma=20):
    random = np.random.default_rng(0)
    noise = random.normal(0, sigma, (count, *scene.shape))
    images = np.clip(scene + noise, 0, 255).astype(np.uint8)
    return [video.Frame(i, i / 10, 0.1, image) for i, image in enumerate(images)]


def flicker(found):
    """Mean share of the pixels whose label is another in the next frame."""
    labels = [result.labels for _, result, _ in found]
    return np.mean([(a != b).mean() for a, b in itertools.pairwise(labels)])


def test_smoothing_calms_labels_of_a_noisy_picture_that_stands_still(model, scene):
    setting = pipeline.setting_of(model, "kl")
    # What follows the colours of each frame follows their noise too, which is not smoothed.
    readings = dataclasses.replace(setting.readings, upsample="bilinear")
    setting = setting._replace(readings=readings)
    frames = noisy(scene, 8, sigma=40)
    plain, smoothed = (
        flicker(list(video.segment(model, frames, WORDS, setting, smooth=s))) for s in (0.0, 0.8)
    )
    assert plain > 0.05 and smoothed < 0.4 * plain, (
        f"{plain:.1%} of pixels, smoothed {smoothed:.1%}"
    )


def test_smoothed_scores_are_the_exponential_average(model, scene, monkeypatch):
    setting = pipeline.setting_of(model, "kl")
    frames = noisy(scene, 5)
    alone = [
        np.asarray(pipeline.grid_scores(model, dsolo.encode(model, f.pixels), WORDS, setting))
        for f in frames
    ]
    used = []
    usual = pipeline.result
    monkeypatch.setattr(
        pipeline, "result", lambda e, s, w, r: used.append(np.asarray(s)) or usual(e, s, w, r)
    )
    list(video.segment(model, frames, WORDS, setting, smooth=0.7))
    for t, found in enumerate(used):
        weights = 0.7 ** np.arange(t, -1, -1) * np.where(np.arange(t + 1) > 0, 0.3, 1.0)
        assert weights.sum() == pytest.approx(1)
        expected = np.tensordot(weights, alone[: t + 1], axes=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_without_smoothing_a_frame_is_a_picture(model, scene):
    setting = pipeline.setting_of(model, "kl")
    frames = noisy(scene, 5)
    found = list(video.segment(model, frames, WORDS, setting, every=2))
    assert [new for _, _, new in found] == [True, False, True, False, True]
    for i, (frame, result, _) in enumerate(found):
        assert frame is frames[i]
        assert result is found[i - i % 2][1]
        picture = dsolo.segment(model, frames[i - i % 2].pixels, WORDS, "kl")
        np.testing.assert_array_equal(result.labels, picture.labels)
