"""The whole way, on a CLIP whose weights are set by hand so that it knows colours."""

import dataclasses
import math
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import background, clip, devices, images, pipeline, upsample, vocabulary
from dsolo_jax.datasets import miniature
from dsolo_jax.pipeline import Setting
from dsolo_jax.readings import BUNDLES, resolve
from dsolo_jax.upsample import strips
from tests.oracles.colours import CLASSES, COLOURS
from tests.oracles.compilations import Compilations

SMALL = {"attention": "clip", "short_side": 112, "attention_size": 192, "grid": 10}
METHODS = [method for method in dsolo.METHODS if method != "class_token"]


def picture_of(*stripes, height=120, width=90):
    """Upright stripes of the named colours, left to right."""
    rows = np.array([COLOURS[name] for name in stripes], np.uint8)
    column = np.arange(width) * len(stripes) // width
    return np.broadcast_to(rows[column], (height, width, 3)).copy()


def run(model, pictures, words, settings, **options):
    """What `pipeline.run` gives, in the order of the pictures."""
    found = dict(pipeline.run(model, pictures, words, settings, **options))
    assert sorted(found) == list(range(len(pictures)))
    return [found[index] for index in range(len(pictures))]


@pytest.fixture(scope="module")
def scene(demo):
    return images.read_image(demo / "images" / "scene_0.png")


@pytest.fixture(scope="module")
def small(demo):
    """The same CLIP on a grid of 10 x 10, for what does not hang on the grid."""
    return dsolo.load(clip=demo / "clip", **SMALL)


# ---- from a picture to labels --------------------------------------------------------------------


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


def test_scores_have_the_labels_as_their_argmax(small):
    pixels = picture_of("sky", "grass", "coal")
    labels = dsolo.segment(small, pixels, CLASSES).labels
    result = dsolo.segment(small, pixels, CLASSES, return_scores=True)
    assert result.scores.shape == (len(CLASSES), 120, 90) and result.scores.dtype == np.float32
    assert result.labels.dtype == np.int32
    np.testing.assert_array_equal(result.scores.argmax(0), result.labels)
    assert (result.labels == labels).mean() > 0.999  # the two compile to other roundings


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (37, 3)])
def test_odd_sizes_work(small, size):
    pixels = np.zeros((*size, 3), np.uint8)
    assert dsolo.segment(small, pixels, ["sky", "coal"], method="kl").labels.shape == size


def test_every_kind_of_picture_works(small, tmp_path):
    pixels = picture_of("snow", "coal")
    for mode in ("L", "P", "RGBA", "CMYK", "LA", "1"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(pixels).convert(mode).save(path)
        labels = dsolo.segment(small, path, ["snow", "coal"], method="kl").labels
        assert (labels[:, :40] == 0).mean() > 0.9 and (labels[:, 50:] == 1).mean() > 0.9


def test_a_list_of_pictures_of_any_kind_equals_one_by_one(small, demo):
    path, other = sorted((demo / "images").iterdir())[:2]
    pictures = [
        path,
        Image.open(other),
        picture_of("sky", "coal"),
        str(other),
        picture_of("plum", "lemon", height=60, width=200),
        Image.fromarray(picture_of("snow", "coal")).convert("L"),
    ]
    together = dsolo.segment(small, pictures, CLASSES, "path", return_scores=True)
    assert len(together) == len(pictures)
    for picture, ours in zip(pictures, together, strict=True):
        alone = dsolo.segment(small, picture, CLASSES, "path", return_scores=True)
        np.testing.assert_array_equal(ours.labels, alone.labels)
        np.testing.assert_array_equal(ours.scores, alone.scores)
    assert dsolo.segment(small, [], CLASSES) == []
    [single] = dsolo.segment(small, (path,), vocabulary.parse(CLASSES), "path")
    assert (single.labels == together[0].labels).mean() > 0.999


def test_readings_can_be_chosen_by_name_or_in_full(small):
    pixels, classes = picture_of("tomato", "sky"), ["sky", "tomato"]
    named, full, robust = (
        dsolo.segment(small, pixels, classes, "kl", readings, return_scores=True).scores
        for readings in ("paper", BUNDLES["paper"], None)
    )
    np.testing.assert_array_equal(named, full)
    assert np.abs(robust - named).max() > 1e-3


def test_bfloat16_encoders_agree_with_float32(small, demo, scene):
    half = dsolo.load(clip=demo / "clip", dtype=jnp.bfloat16, **SMALL)
    assert half.params["clip"]["vision"]["patch_kernel"].dtype == jnp.bfloat16
    labels = [dsolo.segment(m, scene, CLASSES, method="kl").labels for m in (small, half)]
    assert (labels[0] == labels[1]).mean() > 0.98


def test_segmenting_refuses_by_name(small, tmp_path):
    pixels = picture_of("sky", "grass")
    with pytest.raises(ValueError, match="unknown method 'velocty'"):
        dsolo.segment(small, pixels, ["sky"], method="velocty")
    with pytest.raises(ValueError, match="unknown readings"):
        dsolo.segment(small, pixels, ["sky"], readings="vague")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        dsolo.segment(small, tmp_path / "nowhere.png", ["sky"])
    with pytest.raises(ValueError, match="no classes"):
        dsolo.segment(small, pixels, [])
    with pytest.raises(TypeError, match="image is a int"):
        dsolo.segment(small, [pixels, 3], ["sky"])


# ---- the pure functions --------------------------------------------------------------------------


def test_forward_is_what_segment_computes(small, scene):
    """The whole network, then the pixels, against the route that users take."""
    words, readings = vocabulary.parse(CLASSES), small.config.readings
    picture = pipeline.prepare(small.config, scene)
    text = pipeline.embed(small, words)
    [found] = pipeline.forward(
        small.params,
        small.config,
        pipeline.batch([picture]),
        text,
        np.array(words.query_class),
        num_classes=len(words.classes),
        method="velocity",
        readings=readings,
    )
    assert found.shape == (len(words.classes), 10, 10) and found.dtype == jnp.float32
    ours = pipeline.to_pixels(picture.pixels, found, readings, return_scores=True)()
    theirs = dsolo.segment(small, scene, CLASSES, "velocity", return_scores=True)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    assert (ours.labels == theirs.labels).mean() > 0.999


def test_a_start_that_mixes_by_the_graph_is_given_it(small, scene):
    """`forward`, `segment` and the formula: cosines on the graph's own grid, nothing resampled."""
    words, readings = vocabulary.parse(CLASSES), resolve("robust,start=proxyclip,upsample=bilinear")
    batch, text = (
        pipeline.batch([pipeline.prepare(small.config, scene)]),
        pipeline.embed(small, words),
    )
    graph = pipeline.graph(small.params, small.config, batch.squares)
    params, how = small.params["clip"], {"start": "proxyclip", "graph": graph}
    config = small.config.clip
    resized = images.resize(scene, tuple(config.vision.patch_size * batch.grids[0]))
    pixels = images.normalise(resized, config.image_mean, config.image_std)[None]
    [patches] = clip.encode_image(params, config, pixels, **how).patches
    patches = patches.reshape(-1, patches.shape[-1])
    cosines = (text @ patches.T) / jnp.linalg.norm(patches, axis=-1)
    expected = vocabulary.fold(cosines, np.array(words.query_class), len(words.classes))
    options = {"num_classes": len(words.classes), "method": "logits", "readings": readings}
    given = small.params, small.config, batch, text, np.array(words.query_class)
    [found] = pipeline.forward(*given, **options)
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-5)
    ours = pipeline.to_pixels(scene, found, readings, return_scores=True)()
    theirs = dsolo.segment(small, scene, words, "logits", readings, return_scores=True)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


def test_patches_that_are_normalised_already_are_refused(small, scene):
    batch = pipeline.batch([pipeline.prepare(small.config, scene)])
    given = batch._replace(patches=batch.patches.astype(np.float32))
    with pytest.raises(ValueError, match="patches are float32, wanted uint8"):
        pipeline.class_maps(small.params, small.config, given, jnp.ones((1, 1)), start="vanilla")


def test_forward_can_be_jitted_over_a_model(small, scene):
    words = vocabulary.parse(CLASSES)

    @jax.jit
    def scores(model, batch, text):
        queries, count = np.array(words.query_class), len(words.classes)
        options = {"num_classes": count, "method": "path", "readings": "robust,epsilon=1"}
        return pipeline.forward(model.params, model.config, batch, text, queries, **options)

    batch = pipeline.batch([pipeline.prepare(small.config, scene)])
    [found] = scores(small, batch, pipeline.embed(small, words))
    readings = resolve("robust,epsilon=1")
    ours = pipeline.to_pixels(scene, found, readings, return_scores=True)()
    theirs = dsolo.segment(small, scene, CLASSES, "path", readings, return_scores=True)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


@pytest.fixture(scope="module")
def encoded(small, scene):
    """Graph and class maps of three pictures, up to a panorama, together and of each alone."""
    shapes = [(120, 160), (160, 120), (90, 300)]
    pictures = [pipeline.prepare(small.config, images.resize(scene, shape)) for shape in shapes]
    text = pipeline.embed(small, vocabulary.parse(CLASSES))

    @jax.jit
    def encode(batch):
        maps = pipeline.class_maps(small.params, small.config, batch, text, start="naclip")
        return maps, pipeline.graph(small.params, small.config, batch.squares)

    alone = [encode(pipeline.batch([picture])) for picture in pictures]
    return encode(pipeline.batch(pictures)), alone


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_scores_the_same_alone_in_a_batch_and_in_a_larger_bucket(encoded, method):
    """The largest difference is the contract's 1e-4, from the pixels on."""
    words = vocabulary.parse(CLASSES)
    options = {"num_classes": len(words.classes), "method": method, "readings": resolve("robust")}

    @jax.jit
    def scores(maps, graph):
        return pipeline.scores(maps, graph, np.array(words.query_class), **options)

    together, alone = encoded
    for ours, one in zip(scores(*together), alone, strict=True):
        np.testing.assert_allclose(scores(*one)[0], ours, atol=1e-4)


def test_buckets_waste_a_quarter_at_most_and_never_cut():
    for length in range(1, 5000):
        assert length <= pipeline.bucket(length) <= max(1.25 * length, length + 1)
    assert len({pipeline.bucket(length) for length in range(441, 2689)}) <= 12


# ---- many pictures -------------------------------------------------------------------------------

SETTINGS = [
    Setting("velocity", resolve("robust")),
    Setting("path", resolve("robust,epsilon=1")),
    Setting("kl", resolve("robust,start=maskclip,temperature=1")),
    Setting("logits", resolve("robust"), background.Threshold(0.2, 20.0)),
    Setting("logits", resolve("robust")),
]


@pytest.fixture(scope="module")
def mixed(small):
    """Seven pictures of three shapes, two of which share a bucket."""
    stripes = [("sky", "grass"), ("grass", "sky"), ("coal", "snow"), ("plum", "lemon")]
    shapes = [(100, 80), (60, 200), (100, 80), (80, 100), (100, 80), (60, 200), (80, 100)]
    return [
        pipeline.prepare(small.config, picture_of(*stripes[i % 4], height=h, width=w))
        for i, (h, w) in enumerate(shapes)
    ]


def test_several_settings_at_once_equal_one_at_a_time(small, mixed):
    words = vocabulary.parse(CLASSES)
    together = run(small, mixed[:3], words, SETTINGS, return_scores=True)
    for s, setting in enumerate(SETTINGS):
        for several, [alone] in zip(
            together, run(small, mixed[:3], words, [setting], return_scores=True), strict=True
        ):
            np.testing.assert_array_equal(several[s].scores, alone.scores)
            np.testing.assert_array_equal(several[s].labels, alone.labels)


def test_batches_give_each_picture_its_own_result(small, mixed):
    """Full and filled up, of several buckets; the right half is not the left one's class."""
    words, setting = vocabulary.parse(CLASSES), Setting("path", resolve("robust"))
    one_by_one = run(small, mixed, words, [setting], return_scores=True)
    for batch_size in (2, 8):
        batched = run(small, mixed, words, [setting], batch_size=batch_size, return_scores=True)
        for picture, [ours], [alone] in zip(mixed, batched, one_by_one, strict=True):
            assert ours.labels.shape == picture.pixels.shape[:2]
            np.testing.assert_allclose(ours.scores, alone.scores, atol=1e-4)
    left, right = (one_by_one[0][0].labels[:, x] for x in (10, 70))
    assert [CLASSES[int(np.median(half))] for half in (left, right)] == ["sky", "grass"]


def test_every_batch_has_its_full_size(small, mixed):
    """A last batch that lacks pictures is filled up: no program of another shape, no other bits."""
    words, found = vocabulary.parse(CLASSES), []
    run(small, mixed[:3], words, SETTINGS[2:], batch_size=2, watch=lambda _, x: found.append(x))
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(found)}
    assert sizes == {2}


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_shapes_of_ade20k_are_served_by_sixteen_programs(backend, monkeypatch):
    """Its pictures have a short side of 512 pixels, or less where the original has. A program for
    each bucket of patches and for each strip; the graph, the scores, and whether they are finite.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    large = [(512, long) for long in range(512, 1500, 7)]
    small = [(short, int(ratio * short)) for short in range(256, 512, 5) for ratio in (1, 1.5, 2)]
    buckets, programs, shape = set(), set(), (150, 64, 64)
    for size in [*large, *small, *((w, h) for h, w in large + small)]:
        how = {"short_side": 336, "long_side": 2048, "multiple": 16}
        buckets.add(pipeline.bucket(math.prod(images.resized_size(*size, **how)) // 16**2))
        tiles = strips.rounded(strips.tiles_of_cell(size, shape))
        lengths = None if backend == "cpu" else (tiles * strips.TILE * 64**2,)
        group, length, places = strips.cut(size, shape, lengths)
        assert len(places) == 1 or backend == "cpu"
        programs.add((group, length))
    assert len(buckets) + len(programs) + 3 <= 16


def test_an_accelerator_upsamples_a_batch_at_once_to_the_same_labels(small, mixed, monkeypatch):
    words = vocabulary.parse(CLASSES)
    expected = run(small, mixed[:3], words, SETTINGS[2:], batch_size=2)
    batches = []
    whole = upsample.batch_labels
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        upsample, "batch_labels", lambda x, p, **o: (batches.append(len(p)), whole(x, p, **o))[1]
    )
    found = run(small, mixed[:3], words, SETTINGS[2:], batch_size=2)
    assert sorted(batches) == [1] * 3 + [2] * 3
    for ours, others in zip(found, expected, strict=True):
        for one, other in zip(ours, others, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)


def test_every_stage_is_watched_and_the_graph_is_made_once(small, mixed):
    stages = []
    words = vocabulary.parse(CLASSES)
    run(small, mixed[:1], words, SETTINGS, watch=lambda stage, value: stages.append(stage))
    assert stages == ["graph", "CLIP", *["solver", "pixels"] * len(SETTINGS)]
    stages.clear()
    run(small, mixed[:1], words, SETTINGS[2:], watch=lambda stage, value: stages.append(stage))
    assert "graph" not in stages


def test_pictures_of_any_size_share_their_programs(small):
    """Only another bucket of patches, or of pixels, is another program."""
    names = ["sky", "grass", "lemon", "tomato", "snow", "coal", "plum"]  # as many as no other test
    compilations = Compilations()
    for _ in range(2):
        for size in [(90, 120), (61, 82), (100, 134), (134, 100)]:
            picture = picture_of("sky", "coal", height=size[0], width=size[1])
            dsolo.segment(small, picture, names, method="kl")
    programs = compilations.programs
    assert programs["jit(scores)"] == programs["jit(upsample)"] == 1, programs
    assert programs["jit(class_maps)"] <= 1, programs


@pytest.mark.parametrize("method", ["kl", "logits"])
def test_methods_without_a_graph_do_without_its_weights(small, demo, scene, method):
    bare = dsolo.load(clip=demo / "clip", graph=False, **SMALL)
    ours = dsolo.segment(bare, scene, CLASSES, method).labels
    np.testing.assert_array_equal(ours, dsolo.segment(small, scene, CLASSES, method).labels)
    for other in ("velocity", "path", "fusion", "propagate"):
        with pytest.raises(ValueError, match=f"'{other}': this needs a patch graph.*graph=True"):
            dsolo.segment(bare, scene, CLASSES, other)
    with pytest.raises(ValueError, match=r"start 'proxyclip': this needs a .*graph=True"):
        dsolo.segment(bare, scene, CLASSES, method, "robust,start=proxyclip")
    batch, text = pipeline.batch([pipeline.prepare(bare.config, scene)]), np.zeros((1, 64))
    with pytest.raises(ValueError, match="start 'proxyclip' mixes .* found None"):
        pipeline.class_maps(bare.params, bare.config, batch, text, start="proxyclip")


@pytest.mark.parametrize("method", ["logits", "kl"])
def test_the_background_threshold_is_the_fields_rule_at_the_pixels(small, scene, method):
    """Scores upsampled, softmax over them, argmax, class 0 below the threshold.

    Of logits those of all queries, of other methods those of classes.
    """
    queries = ("sky", "grass", "lemon", "tomato", "cherry")
    words = vocabulary.Vocabulary(queries[:3], queries, (0, 1, 1, 2, 2))
    if method == "logits":
        each, of = vocabulary.Vocabulary(queries, queries, (0, 1, 2, 3, 4)), [[0], [1, 2], [3, 4]]
    else:
        each, of = words, [[0], [1], [2]]
    scale = 5.0
    picture, readings = pipeline.prepare(small.config, scene), small.config.readings
    [[plain]] = run(small, [picture], each, [Setting(method, readings)], return_scores=True)
    exponentials = np.exp(scale * plain.scores.astype(np.float64))
    p = exponentials / exponentials.sum(axis=0)
    p = np.stack([p[members].max(axis=0) for members in of])
    threshold = float(np.median(p.max(axis=0)))
    expected = np.where(p.max(axis=0) < threshold, 0, p.argmax(axis=0))
    assert 0.1 < (expected != p.argmax(axis=0)).mean() < 0.9

    setting = Setting(method, readings, background.Threshold(threshold, scale))
    [[ours]] = run(small, [picture], words, [setting])
    [[scored]] = run(small, [picture], words, [setting], return_scores=True)
    clear = np.abs(p.max(axis=0) - threshold) > 1e-5
    for labels in (ours.labels, scored.labels):
        np.testing.assert_array_equal(labels[clear], expected[clear])
    assert scored.scores.shape[0] == 3


# ---- several devices -----------------------------------------------------------------------------


def test_a_mesh_of_one_device_changes_no_bit(small, mixed):
    words, settings = vocabulary.parse(CLASSES), SETTINGS[:2]
    mesh = Mesh(np.array(jax.devices()[:1]), ("picture",))
    params = devices.replicated(small.params, mesh)
    spread = dataclasses.replace(small, params=params, mesh=mesh)
    for ours, theirs in zip(
        run(spread, mixed[:3], words, settings, return_scores=True),
        run(small, mixed[:3], words, settings, return_scores=True),
        strict=True,
    ):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.scores, b.scores)


_SPREAD = """
import dataclasses, sys, jax, numpy as np
import dsolo_jax as dsolo
from dsolo_jax import pipeline, vocabulary
assert len(jax.devices()) == 4
model = dsolo.load(clip=sys.argv[1], attention="appearance", short_side=64, attention_size=64)
spread = pipeline.spread(model)
assert spread.mesh.size == 4 and pipeline.spread(spread) is spread
random, sizes = np.random.default_rng(0), [64, 64, 96, 64, 64, 64]
pixels = [random.integers(0, 256, (64, size, 3), np.uint8) for size in sizes]
words = vocabulary.parse(["sky", "grass", "coal"])
settings = [pipeline.Setting("fusion", model.config.readings)]
windows = dataclasses.replace(model.config, crop=32, stride=24)
for config in (model.config, windows):
    pictures = [pipeline.prepare(config, picture) for picture in pixels]
    one, four = (
        dict(pipeline.run(dataclasses.replace(m, config=config), pictures, words, settings,
                          return_scores=True))
        for m in (model, spread))
    assert sorted(one) == sorted(four) == list(range(len(pictures)))
    for i in one:
        np.testing.assert_array_equal(one[i][0].scores, four[i][0].scores)
print("same")
"""


def test_four_devices_give_what_one_gives(demo):
    """To the bit, of two buckets whose last batches are not full, and by windows."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    ran = subprocess.run(
        [sys.executable, "-c", _SPREAD, demo / "clip"],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert ran.stdout.strip() == "same", ran.stderr[-2000:]


# ---- what the method gains -----------------------------------------------------------------------


def test_on_drawn_scenes_the_path_is_ahead_of_the_velocity_ahead_of_the_logits():
    """mIoU of the bundled model over 32 scenes that it was neither trained nor chosen on."""
    model = dsolo.load("miniature")
    scenes = [miniature.draw(0, i, split="validation") for i in range(32)]
    words = vocabulary.parse(miniature.CLASSES)
    settings = [Setting(m, model.config.readings) for m in ("path", "velocity", "logits")]
    matrices = np.zeros((len(settings), len(words.classes), len(words.classes)), np.int64)
    pictures = (pipeline.prepare(model.config, scene.image) for scene in scenes)
    for index, results in pipeline.run(model, pictures, words, settings, batch_size=4):
        truth = scenes[index].labels
        for matrix, result in zip(matrices, results, strict=True):
            matrix += dsolo.metrics.confusion_matrix(result.labels, truth, len(words.classes))
    path, velocity, logits = (100 * dsolo.metrics.mean_iou(matrix)[0] for matrix in matrices)
    print(f"path {path:.1f}, velocity {velocity:.1f}, logits {logits:.1f}")
    assert path > velocity > logits
    # 79.5, 77.8 and 71.8 when this was written; two points are left for other roundings.
    assert path > 77.5 and velocity > 75.8


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kl", "velocity"])
@pytest.mark.parametrize("part", ["clip", "attention"])
def test_scores_that_are_not_finite_are_refused_where_they_are_fetched(small, method, part):
    """As after an overflow in bfloat16; what a method does not look at does not matter to it."""
    spoilt = jax.tree.map(lambda x: x, small.params)
    kernel = spoilt[part]["vision"]["patch_kernel"]
    spoilt[part]["vision"]["patch_kernel"] = kernel.at[0, 0, 0, 0].set(jnp.nan)
    model = dataclasses.replace(small, params=spoilt)
    pixels = picture_of("sky", "grass")
    if part == "attention" and method == "kl":
        assert dsolo.segment(model, pixels, CLASSES, method).labels.shape == (120, 90)
        return
    for return_scores in (False, True):
        with pytest.raises(ValueError, match="scores hold NaN or infinity.*load .* in float32"):
            dsolo.segment(model, pixels, CLASSES, method, return_scores=return_scores)


def test_a_full_memory_is_a_message(small, monkeypatch):
    def program(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")

    monkeypatch.setattr(devices, "program", program)
    with pytest.raises(MemoryError, match="allocating 5 bytes; .*batch_size.*bfloat16"):
        dsolo.segment(small, picture_of("sky", "grass"), CLASSES)


def test_the_miniature_says_once_that_it_knows_its_own_world_alone():
    model = dsolo.load("miniature", graph=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        pipeline.prepare(model.config, miniature.draw(0, 0).image)
        assert not caught
        for _ in range(3):
            dsolo.segment(model, np.zeros((400, 500, 3), np.uint8), ["sky", "cat"], "logits")
    assert ["not photographs" in str(one.message) for one in caught].count(True) == 1


@pytest.mark.parametrize("method", ["velocity", "path"])
def test_x64_changes_no_result(small, method):
    """JAX_ENABLE_X64=1, with scores asked for."""
    pixels = picture_of("sky", "grass")
    expected = dsolo.segment(small, pixels, CLASSES, method, return_scores=True)
    with jax.enable_x64(True):
        found = dsolo.segment(small, pixels, CLASSES, method, return_scores=True)
    assert found.labels.dtype == np.int32 and found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
