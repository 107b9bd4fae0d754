"""The whole way, on a CLIP whose weights are set by hand so that it knows colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import images, pipeline, upsample, vocabulary
from dsolo_jax.readings import BUNDLES, METHODS
from experiments.compilations import Compilations
from experiments.demo import CLASSES, COLOURS


def picture_of(*stripes, height=120, width=90):
    """Upright stripes of the named colours, left to right."""
    rows = np.array([COLOURS[name] for name in stripes], np.uint8)
    column = np.arange(width) * len(stripes) // width
    return np.broadcast_to(rows[column], (height, width, 3)).copy()


@pytest.mark.parametrize("method", METHODS)
def test_pixels_get_the_class_whose_colour_they_have(model, method):
    pixels = picture_of("tomato", "sky")
    result = dsolo.segment(model, pixels, ["sky", "tomato, cherry"], method=method)
    assert result.labels.shape == (120, 90) and result.labels.dtype == np.int32
    assert result.scores is None
    assert (result.labels[:, :40] == 1).mean() > 0.95
    assert (result.labels[:, 50:] == 0).mean() > 0.95


def test_rows_and_columns_are_not_exchanged(model):
    pixels = picture_of("grass", "lemon", "plum", height=60, width=210)
    for upright in (True, False):
        image = pixels if upright else pixels.transpose(1, 0, 2)
        labels = dsolo.segment(model, image, ["grass", "lemon", "plum"], method="kl").labels
        labels = labels if upright else labels.T
        assert [int(np.median(labels[:, x])) for x in (20, 105, 190)] == [0, 1, 2]


def test_scores_have_the_labels_as_their_argmax(model):
    pixels = picture_of("sky", "grass", "coal")
    labels = dsolo.segment(model, pixels, CLASSES).labels
    result = dsolo.segment(model, pixels, CLASSES, return_scores=True)
    assert result.scores.shape == (len(CLASSES), 120, 90) and result.scores.dtype == np.float32
    np.testing.assert_array_equal(result.scores.argmax(0), result.labels)
    assert (result.labels == labels).mean() > 0.999  # the two compile to other roundings


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_scores_the_same_alone_in_a_batch_and_in_a_larger_bucket(model, demo, method):
    """Shapes from square to panorama; the largest difference is the contract's 1e-4."""
    scene = images.read_image(demo / "images" / "scene_0.png")
    shapes = [(120, 160), (160, 120), (90, 300), (200, 200)]
    pictures = [dsolo.prepare(model, images.resize(scene, shape)) for shape in shapes]
    words = vocabulary.parse(CLASSES)
    readings = model.readings

    def scores(batch):
        graph = pipeline.graph(model, batch)
        encoded = pipeline.encode(model, batch, words, readings.start, graph)
        return np.asarray(pipeline.solve(encoded, words, method, readings))

    together = scores(pictures)
    for picture, ours in zip(pictures, together, strict=True):
        np.testing.assert_allclose(scores([picture])[0], ours, atol=1e-4)


def test_a_batch_gives_each_picture_its_own_result_in_order(model):
    stripes = [("sky", "grass"), ("grass", "sky"), ("coal", "snow")]
    shapes = [(100, 80), (60, 200), (100, 80)]
    pictures = [
        dsolo.prepare(model, picture_of(*s, height=h, width=w))
        for s, (h, w) in zip(stripes, shapes, strict=True)
    ]
    results = dsolo.segment_batch(model, pictures, CLASSES, method="kl")
    names = [c.split(",")[0] for c in CLASSES]
    for s, shape, result in zip(stripes, shapes, results, strict=True):
        assert result.labels.shape == shape
        left, right = (int(np.median(result.labels[:, x])) for x in (10, shape[1] - 10))
        assert (names[left], names[right]) == s


def test_buckets_waste_a_quarter_at_most_and_never_cut():
    for length in range(1, 5000):
        assert length <= pipeline.bucket(length) <= max(1.25 * length, length + 1)
    assert len({pipeline.bucket(length) for length in range(441, 2689)}) <= 12


def test_pictures_of_any_size_share_their_programs(model):
    """Only another bucket of patches is another program; the pixels never are."""
    names = ["sky", "grass", "lemon", "tomato", "snow", "coal", "plum"]  # as many as no other test
    compilations = Compilations()
    for _ in range(2):
        for size in [(90, 120), (61, 83), (300, 401), (400, 299)]:
            picture = picture_of("sky", "coal", height=size[0], width=size[1])
            dsolo.segment(model, picture, names, method="kl")
    programs = compilations.programs
    assert programs["jit(_solve)"] == programs["jit(strip_labels)"] == 1, programs
    assert programs["jit(_encode)"] <= 1, programs


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (37, 3)])
def test_odd_sizes_work(model, size):
    pixels = np.zeros((*size, 3), np.uint8)
    assert dsolo.segment(model, pixels, ["sky", "coal"], method="kl").labels.shape == size


def test_every_kind_of_picture_works(model, tmp_path):
    pixels = picture_of("snow", "coal")
    for mode in ("L", "P", "RGBA", "CMYK", "LA", "1"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(pixels).convert(mode).save(path)
        labels = dsolo.segment(model, path, ["snow", "coal"], method="kl").labels
        assert (labels[:, :40] == 0).mean() > 0.9 and (labels[:, 50:] == 1).mean() > 0.9


def test_bfloat16_encoders_agree_with_float32(model, demo):
    half = dsolo.load(clip=demo / "clip", attention="clip", dtype=jnp.bfloat16, short_side=224)
    assert half.params["vision"]["patch_kernel"].dtype == jnp.bfloat16
    pixels = images.read_image(demo / "images" / "scene_1.png")
    labels = [dsolo.segment(m, pixels, CLASSES, method="kl").labels for m in (model, half)]
    assert (labels[0] == labels[1]).mean() > 0.98


def test_a_four_thousand_pixel_picture_with_150_classes_is_bounded():
    """XLA's account: temporaries and results of the pixel stage stay under 2 GiB."""
    scores = jax.ShapeDtypeStruct((150, 32, 32), jnp.float32)
    guide = jax.ShapeDtypeStruct((pipeline.bucket(3000), pipeline.bucket(4000), 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((2,), jnp.int32)
    memory = upsample.upsample_labels.lower(scores, guide, size).compile().memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert 0 < total < 2**31


def test_loading_refuses_by_name(demo):
    with pytest.raises(ValueError, match="unknown preset 'dslo_b61' .did you mean 'dslo_b16'"):
        dsolo.load("dslo_b61")
    with pytest.raises(ValueError, match="unknown attention source .* 'klip'"):
        dsolo.load(clip=demo / "clip", attention="klip")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        dsolo.load(clip="no such place", attention="clip")
    with pytest.raises(ValueError, match="grid is 0"):
        dsolo.load(clip=demo / "clip", attention="clip", grid=0)
    with pytest.raises(ValueError, match="unknown layer of clip '7'"):
        dsolo.load(clip=demo / "clip", attention="clip", attention_layers=("7",))
    with pytest.raises(ValueError, match="attention_size are for other sources than 'clip'"):
        dsolo.load(clip=demo / "clip", attention="clip", attention_size=512)


def test_segmenting_refuses_by_name(model, tmp_path):
    pixels = picture_of("sky", "grass")
    with pytest.raises(ValueError, match="unknown method 'velocty'"):
        dsolo.segment(model, pixels, ["sky"], method="velocty")
    with pytest.raises(ValueError, match="unknown readings"):
        dsolo.segment(model, pixels, ["sky"], readings="vague")
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        dsolo.segment(model, tmp_path / "nowhere.png", ["sky"])
    with pytest.raises(ValueError, match="no classes"):
        dsolo.segment(model, pixels, [])


def test_readings_can_be_chosen_by_name_or_in_full(model):
    pixels = picture_of("tomato", "sky")
    named = dsolo.segment(model, pixels, ["sky", "tomato"], readings="paper", return_scores=True)
    full = dsolo.segment(
        model, pixels, ["sky", "tomato"], readings=BUNDLES["paper"], return_scores=True
    )
    np.testing.assert_array_equal(named.scores, full.scores)
    robust = dsolo.segment(model, pixels, ["sky", "tomato"], return_scores=True)
    assert np.abs(robust.scores - named.scores).max() > 1e-3


def test_the_background_threshold_is_the_fields_rule_at_the_pixels(model, demo):
    """Logits of all queries upsampled, softmax over them, argmax, class 0 below the threshold."""
    queries = ("sky", "grass", "lemon", "tomato", "cherry")
    words = vocabulary.Vocabulary(queries[:3], queries, (0, 1, 1, 2, 2))
    [pixels] = [images.read_image(path) for path in sorted((demo / "images").iterdir())[:1]]
    picture, scale = dsolo.prepare(model, pixels), 5.0
    each = vocabulary.unfolded(words)
    [logits] = dsolo.segment_batch(model, [picture], each, "logits", return_scores=True)
    exponentials = np.exp(scale * logits.scores.astype(np.float64))
    p = exponentials / exponentials.sum(axis=0)
    p = np.stack([p[0], p[1:3].max(axis=0), p[3:].max(axis=0)])
    threshold = float(np.median(p.max(axis=0)))
    expected = np.where(p.max(axis=0) < threshold, 0, p.argmax(axis=0))
    assert 0.1 < (expected != p.argmax(axis=0)).mean() < 0.9

    asked = {"threshold": vocabulary.BackgroundThreshold(threshold, scale)}
    [ours] = dsolo.segment_batch(model, [picture], words, "logits", **asked)
    [scored] = dsolo.segment_batch(model, [picture], words, "logits", return_scores=True, **asked)
    clear = np.abs(p.max(axis=0) - threshold) > 1e-5
    for labels in (ours.labels, scored.labels):
        np.testing.assert_array_equal(labels[clear], expected[clear])
    assert scored.scores.shape[0] == 3
