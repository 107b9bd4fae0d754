"""Sliding windows against a loop over windows, as mmsegmentation's."""

import dataclasses
import functools

import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import background, clip, devices, images, pipeline, vocabulary, windows
from dsolo_jax.pipeline import Setting
from dsolo_jax.pixels import to_pixels
from dsolo_jax.readings import resolve
from tests.oracles.colours import CLASSES
from tests.oracles.compilations import Compilations

CROP, STRIDE, GRID = 64, 48, 10
CHECKPOINT = {"attention": "clip", "short_side": 112, "attention_size": 192, "grid": GRID}
SETTINGS = [
    Setting("path", resolve("robust,start=proxyclip,upsample=bilinear")),
    Setting("logits", resolve("robust,upsample=bilinear"), background.Threshold(0.2, 20.0)),
]


@pytest.fixture(scope="module")
def whole(demo):
    return dsolo.load(clip=demo / "clip", **CHECKPOINT)


def with_windows(model, crop=CROP, stride=STRIDE):
    config = dataclasses.replace(model.config, crop=crop, stride=stride)
    return dataclasses.replace(model, config=config)


@pytest.fixture(scope="module")
def pictures(demo):
    """Of several shapes, one smaller than a window on one side once it is resized."""
    pixels = images.read_image(sorted((demo / "images").iterdir())[0])
    return [images.resize(pixels, size) for size in ((100, 160), (130, 100), (100, 101), (90, 300))]


def run(model, pictures, settings=SETTINGS, **options):
    words = vocabulary.parse(CLASSES)
    ready = (pipeline.prepare(model.config, picture) for picture in pictures)
    found = dict(pipeline.run(model, ready, words, settings, **options))
    return [found[i] for i in range(len(pictures))]


def mmseg_boxes(height, width, crop, stride):
    """The loop of mmseg's slide_inference, spelled out."""
    found = []
    for i in range(max(height - crop + stride - 1, 0) // stride + 1):
        for j in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
            found.append((max(bottom - crop, 0), bottom, max(right - crop, 0), right))
    return found


def by_loop(model, pixels, setting):
    """The picture's scores at R x R points: each window and point by itself, in float64."""
    config, words = model.config, vocabulary.parse(CLASSES)
    patch = config.clip.vision.patch_size
    height, width = images.resized_size(
        *pixels.shape[:2], short_side=112, long_side=config.long_side, multiple=patch
    )
    resized = images.resize(pixels, (height, width))
    solved, _ = background.decision(words, setting.method, setting.threshold)
    side = int(np.ceil(GRID * 112 / CROP))
    total, count = np.zeros((len(solved.classes), side, side)), np.zeros((side, side))
    for top, bottom, left, right in mmseg_boxes(height, width, CROP, STRIDE):
        window = resized[top:bottom, left:right]
        batch = pipeline.Batch(
            clip.patchify(window[None], patch),
            np.array([window.shape[:2]], np.int32) // patch,
            images.squeeze(window, config.source.size)[None],
        )
        [scores] = forward(model, setting, solved, batch, pipeline.embed(model, words))
        for i, j in np.ndindex(side, side):
            y, x = (i + 0.5) * height / side, (j + 0.5) * width / side
            if top <= y < bottom and left <= x < right:
                down = (y - top) * GRID / (bottom - top) - 0.5
                across = (x - left) * GRID / (right - left) - 0.5
                total[:, i, j] += bilinear(np.asarray(scores, np.float64), down, across)
                count[i, j] += 1
    assert (count >= 1).all() and (count > 1).any()
    return (total / count).astype(np.float32)


def forward(model, setting, solved, batch, text):
    """The networks and the solver, by the programs that the pipeline has anyway."""
    program, config = functools.partial(devices.program, mesh=None), model.config
    params, graph = model.params, None
    if setting.method == "path":
        weights = {"params": {"attention": params["attention"]}}
        graph = program(pipeline.graph, config=config)(weights, {"squares": batch.squares})
    weights = {"params": {"clip": {"vision": params["clip"]["vision"]}}, "text": text}
    shared = {"pictures": batch} | ({} if graph is None else {"graph": graph})
    maps = program(pipeline.class_maps, config=config, start=setting.readings.start)
    how = {"method": setting.method, "readings": setting.readings}
    scores = program(pipeline.scores, num_classes=len(solved.classes), **how)
    of = {"query_class": np.array(solved.query_class, np.int32)}
    return scores(of, {"maps": maps(weights, shared), "graph": graph})


def bilinear(scores, y, x):
    """As torch's interpolate: clamped at the centres of the border's patches."""
    y, x = np.clip(y, 0, scores.shape[1] - 1), np.clip(x, 0, scores.shape[2] - 1)
    corners = [
        (int(y), int(x)),
        (int(y) + 1, int(x)),
        (int(y), int(x) + 1),
        (int(y) + 1, int(x) + 1),
    ]
    return sum(
        (1 - abs(y - a)) * (1 - abs(x - b)) * scores[:, a, b]
        for a, b in corners
        if a < scores.shape[1] and b < scores.shape[2]
    )


def test_windows_lie_as_mmsegs():
    random = np.random.default_rng(0)
    for height, width, crop in random.integers(1, 200, (200, 3)):
        stride = int(random.integers(1, crop + 1))
        ours = [
            (*rows, *columns)
            for rows in windows.spans(height, crop, stride)
            for columns in windows.spans(width, crop, stride)
        ]
        assert ours == mmseg_boxes(height, width, crop, stride)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_a_picture_is_the_mean_of_its_windows(whole, pictures, number):
    """Scores at the pixels of the whole way, and labels, against the loop's."""
    model, setting = with_windows(whole), SETTINGS[number]
    _, decide = background.decision(vocabulary.parse(CLASSES), setting.method, setting.threshold)
    pixels = pictures[number]
    expected = by_loop(model, pixels, setting)
    ours = to_pixels(pixels, expected, setting.readings, decide, True)()
    [[found]] = run(model, [pixels], [setting], return_scores=True)
    [[labelled]] = run(model, [pixels], [setting])
    np.testing.assert_allclose(found.scores, ours.scores, atol=1e-5)
    second, first = np.sort(ours.scores, axis=0)[-2:]
    decided = first - second > 2e-5  # than which both may be apart
    assert decided.mean() > 0.98
    for labels in (found.labels, labelled.labels):
        np.testing.assert_array_equal(labels[decided], ours.labels[decided])


def test_windows_of_several_pictures_fill_the_same_batches(whole, pictures):
    model, stages, setting = with_windows(whole), [], SETTINGS[1:]
    one_by_one = run(model, pictures, setting, return_scores=True)
    ready = [pipeline.prepare(model.config, picture) for picture in pictures]
    sizes = [len(list(windows.cut(model.config, picture))) for picture in ready]
    assert min(sizes) > 1 and len(set(sizes)) > 1
    options = {"batch_size": 5, "return_scores": True}
    batched = run(model, pictures, setting, watch=lambda s, _: stages.append(s), **options)
    assert stages.count("CLIP") == stages.count("solver") == -(-sum(sizes) // 5)
    assert stages.count("pixels") == len(pictures)
    for [ours], [theirs] in zip(batched, one_by_one, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    # A run that goes on after it was cut off, with the same batch size.
    rest = run(model, pictures[2:], setting, **options)
    for [ours], [theirs] in zip(rest, batched[2:], strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_windows_are_cut_as_they_are_wanted(whole, monkeypatch):
    """Hundreds of windows, of which a batch is there at a time, and one picture's sum."""
    model, held, cut = with_windows(whole, CROP, 8), [0], windows.cut

    def counted(*given):
        for one in cut(*given):
            held[-1] += 1
            yield one

    monkeypatch.setattr(windows, "cut", counted)
    watch = lambda stage, _: stage == "CLIP" and held.append(0)  # noqa: E731
    picture = np.zeros((112, 240, 3), np.uint8)
    run(model, [picture], SETTINGS[1:], batch_size=5, watch=watch)
    assert sum(held) == 7 * 23 and max(held) <= 6


def test_pictures_of_any_shape_share_their_programs(whole, pictures):
    model, compilations = with_windows(whole, 64, 32), Compilations()
    for pixels in pictures[:3]:
        dsolo.segment(model, pixels, CLASSES[:5], "logits")
    programs = compilations.programs
    for name in ("class_maps", "scores", "_add"):
        assert programs[f"jit({name})"] <= 1, programs


def test_without_windows_nothing_of_them_is_run(whole, pictures, monkeypatch):
    monkeypatch.delattr(windows, "add")
    monkeypatch.delattr(windows, "cut")
    assert pipeline.prepare(whole.config, pictures[0]).resized is None
    run(whole, pictures[:1], SETTINGS[1:])
    monkeypatch.undo()
    ready, words = [pipeline.prepare(whole.config, pictures[0])], vocabulary.parse(CLASSES)
    with pytest.raises(ValueError, match="ready for a model without windows.* crop is 64"):
        next(pipeline.run(with_windows(whole), ready, words, SETTINGS[1:]))


def test_one_window_of_all_of_a_square_picture_is_the_picture(whole, demo):
    pixels = images.resize(images.read_image(sorted((demo / "images").iterdir())[0]), (112, 112))
    expected = dsolo.segment(whole, pixels, CLASSES, "logits", return_scores=True).scores
    model = with_windows(whole, 112, 112)
    [(_, place)] = windows.cut(model.config, pipeline.prepare(model.config, pixels))
    assert place.points == (GRID, GRID)
    found = dsolo.segment(model, pixels, CLASSES, "logits", return_scores=True).scores
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride": 16}, "stride is 16 without a crop.*such as 32"),
        ({"crop": 65, "stride": 32}, "crop is 65; wanted a multiple of .* 16 pixels, such as 64"),
        ({"crop": 0, "stride": 32}, "crop is 0; .*such as 16"),
        (
            {"crop": 128, "stride": 64},
            "crop is 128, larger than the short side .* 112; .*short_side",
        ),
        ({"crop": 64}, "stride is None; wanted 1 to 64.*half of it, 32"),
        ({"crop": 64, "stride": 0}, "stride is 0; wanted 1 to 64"),
        ({"crop": 64, "stride": 65}, "stride is 65; wanted 1 to 64.*no gaps"),
    ],
)
def test_windows_that_cannot_be_are_refused(whole, demo, changes, message):
    with pytest.raises(ValueError, match=message):
        dsolo.load(clip=demo / "clip", **CHECKPOINT, **changes)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(whole.config, **changes)
