"""A picture that is encoded once answers as the picture itself; tiles of large pictures."""

import dataclasses

import jax
import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import clip, images, pictures, pipeline, vocabulary, windows
from dsolo_jax.datasets import miniature
from dsolo_jax.solver import discrepancy
from tests.oracles.compilations import Compilations

SCENE = miniature.draw(0, 3, split="validation").image
WORDS = ["brick", "wood", "star", "cross, plus", "sky"]


@pytest.fixture(scope="module")
def model():
    return dsolo.load("miniature")


@pytest.fixture(scope="module")
def encoded(model):
    return dsolo.encode(model, SCENE)


@pytest.mark.parametrize("method", dsolo.METHODS)
def test_an_encoded_picture_answers_as_the_picture(model, encoded, method):
    expected = dsolo.segment(model, SCENE, WORDS, method).labels
    assert np.mean(dsolo.segment(model, encoded, WORDS, method).labels == expected) > 0.999


def test_any_number_of_classes_has_the_scores_it_has_alone(model, encoded):
    """They are filled up to one number for all."""
    for number in (1, 2):
        expected = dsolo.segment(model, SCENE, WORDS[:number], return_scores=True)
        found = dsolo.segment(model, encoded, WORDS[:number], return_scores=True)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        labels = dsolo.segment(model, encoded, WORDS[:number]).labels
        np.testing.assert_array_equal(labels, found.labels)


def test_an_encoded_picture_answers_by_other_readings(model, encoded):
    """Those of another start too, for which CLIP sees the picture again."""
    expected = dsolo.segment(model, SCENE, WORDS, readings="paper").labels
    own = dsolo.encode(model, SCENE, "paper")
    assert (encoded.start, own.start) == ("maskclip", "vanilla")
    for one in (encoded, own):
        found = dsolo.segment(model, one, WORDS, readings="paper").labels
        assert np.mean(found == expected) > 0.999


def test_a_second_question_asks_no_network_and_compiles_nothing(model, encoded, monkeypatch):
    dsolo.segment(model, encoded, WORDS)
    for name in ("_encode", "run"):
        monkeypatch.setattr(pipeline, name, None)
    compiled = Compilations()
    for words in (["ring"], ["road, street", "lava", "ball"], [*WORDS, "sand", "moon"]):
        dsolo.segment(model, encoded, words)
    assert set(compiled.programs) <= {"jit(stage)"}, str(compiled)  # prompts of other lengths


def test_questions_of_another_model_are_refused(model, encoded):
    other = dsolo.load("miniature", grid=7)
    with pytest.raises(ValueError, match=r"encoded by another model; .*dsolo\.encode"):
        dsolo.segment(other, encoded, WORDS)
    with pytest.raises(ValueError, match="tile is 64 and the picture is encoded already"):
        dsolo.segment(model, encoded, WORDS, tile=64)
    without = dsolo.load("miniature", graph=False)
    alone = dsolo.encode(without, SCENE)
    assert dsolo.segment(without, alone, WORDS, "kl").labels.shape == SCENE.shape[:2]
    with pytest.raises(ValueError, match="needs a patch graph"):
        dsolo.segment(without, alone, WORDS)


@pytest.mark.parametrize("method", [name for name in dsolo.METHODS if discrepancy.fills(name)])
def test_classes_that_fill_up_change_no_score(method):
    random = np.random.default_rng(0)
    f, presence = random.normal(0.2, 0.03, (5, 36)), random.normal(0.2, 0.03, 5)
    attention = random.dirichlet(np.full(36, 0.3), 36)
    f, presence, attention = (x.astype(np.float32) for x in (f, presence, attention))
    expected = dsolo.discrepancy(f[:3], attention, presence[:3], method=method)
    counted = np.arange(5) < 3
    found = dsolo.discrepancy(f, attention, presence, method=method, counted=counted)
    np.testing.assert_allclose(found[:3], expected, atol=1e-6)


def test_a_method_that_counts_all_classes_says_so():
    f, attention = np.ones((2, 4), np.float32), np.full((4, 4), 0.25, np.float32)
    with pytest.raises(ValueError, match="'optimise' counts all classes"):
        dsolo.discrepancy(f, attention, method="optimise", counted=np.array([True, False]))


# --------------------------------------------------------------------------------------- tiles


@pytest.fixture(scope="module")
def sheet():
    """Scenes beside each other, which the miniature's CLIP knows one by one: [224, 336, 3]."""
    drawn = [miniature.draw(0, i, split="validation") for i in range(6)]
    rows = [[scene.image for scene in drawn[i : i + 3]] for i in (0, 3)]
    truth = [[scene.labels for scene in drawn[i : i + 3]] for i in (0, 3)]
    return np.block([[[x] for x in row] for row in rows]), np.block(truth)


def test_tiles_see_what_the_whole_picture_is_too_small_for(model, sheet):
    """Tiles as large as a scene are nearly as good as the scenes alone; the whole sees little."""
    picture, truth = sheet
    right = {
        tile: np.mean(dsolo.segment(model, picture, miniature.CLASSES, tile=tile).labels == truth)
        for tile in (0, 112)
    }
    assert right[112] > 0.8 and right[0] < 0.5


def test_no_border_of_a_tile_shows(model, sheet):
    """Labels change across borders of tiles no more often than inside them, where the scores of
    windows that do not fade do: the middle of a scene holds a border of its neighbours' tiles."""
    picture, _ = sheet
    encoded = dsolo.encode(model, picture, tile=112)
    words = vocabulary.parse(miniature.CLASSES)
    setting = pipeline.setting_of(model)

    def jump(encoded):
        """How far scores differ between columns beside a border, over those elsewhere."""
        scores = np.asarray(pipeline.grid_scores(model, encoded, words, setting))
        steps = np.abs(np.diff(scores, axis=2)).mean(axis=(0, 1))
        borders = np.arange(7, scores.shape[2], 14) - 1  # of every second tile, in points
        return steps[borders].mean() / np.delete(steps, np.arange(6, len(steps), 7)).mean()

    assert encoded.views[0].view.place.points == (28, 42)
    plain = [
        one._replace(view=one.view._replace(place=one.view.place._replace(fades=False)))
        for one in encoded.views
    ]
    flat = jump(dataclasses.replace(encoded, views=tuple(plain)))
    assert jump(encoded) < 1.3 and flat > 1.2 * jump(encoded)


def test_tiles_blend_as_a_loop_over_points_does(model, sheet):
    """The weighted mean of the tiles' scores, each bilinear, point by point in float64."""
    picture, _ = sheet
    words, setting = vocabulary.parse(WORDS), pipeline.setting_of(model)
    encoded = dsolo.encode(model, picture[:150, :200], tile=112)
    found = np.asarray(pipeline.grid_scores(model, encoded, words, setting))
    assert found.shape == (5, 19, 25)
    total, weight = np.zeros(found.shape), np.zeros(found.shape[1:])
    for one in encoded.views:
        H, W, top, left, height, width = one.view.place.box.tolist()
        alone = dsolo.encode(model, picture[top : top + height, left : left + width])
        scores = np.asarray(pipeline.grid_scores(model, alone, words, setting), np.float64)
        for i, j in np.ndindex(weight.shape):
            y, x = (i + 0.5) * H / 19 - top, (j + 0.5) * W / 25 - left
            if 0 <= y < height and 0 <= x < width:
                own = min(y, height - y) * min(x, width - x)
                p, q = (
                    np.clip(at * 14 / side - 0.5, 0, 13) for at, side in ((y, height), (x, width))
                )
                at = [jax.numpy.array([p]), jax.numpy.array([q])]
                each = jax.vmap(lambda s, at=at: jax.scipy.ndimage.map_coordinates(s, at, 1))
                total[:, i, j] += own * np.asarray(each(scores))[:, 0]
                weight[i, j] += own
    np.testing.assert_allclose(found, total / weight, atol=2e-5)


def test_a_tile_as_large_as_the_picture_is_the_picture(model):
    expected = dsolo.segment(model, SCENE, WORDS, tile=0).labels
    np.testing.assert_array_equal(dsolo.segment(model, SCENE, WORDS, tile=112).labels, expected)
    np.testing.assert_array_equal(dsolo.segment(model, SCENE, WORDS).labels, expected)


def test_large_pictures_go_by_tiles_of_themselves(model, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_WHOLE", SCENE.size // 3 - 1)
    monkeypatch.setattr(pictures, "TILE", 64)
    expected = dsolo.segment(model, SCENE, WORDS, tile=64).labels
    np.testing.assert_array_equal(dsolo.segment(model, SCENE, WORDS).labels, expected)
    assert np.any(dsolo.segment(model, SCENE, WORDS, tile=0).labels != expected)
    encoded = dsolo.encode(model, SCENE)
    assert len(encoded.views) == 9
    np.testing.assert_array_equal(dsolo.segment(model, encoded, WORDS).labels, expected)


def test_where_memory_is_short_there_are_fewer_points(model, sheet, monkeypatch):
    picture, truth = sheet
    monkeypatch.setattr(windows.memory, "available", lambda: 6 * 4 * 19 * 28 * 42 // 4)
    place = windows.Place(np.zeros(6, np.int32), (28, 42), fades=True)
    found = windows.add(None, np.zeros((19, 14, 14), np.float32) + jax.numpy.zeros(()), place)
    assert found.scores.shape == (19, 14, 21)
    labels = dsolo.segment(model, picture, miniature.CLASSES, tile=112).labels
    assert np.mean(labels == truth) > 0.7


def test_tiles_that_cannot_be_are_refused(model, monkeypatch):
    for tile in (-1, 5, 31):
        with pytest.raises(ValueError, match=f"tile is {tile}; wanted a side of at least 32 pix"):
            dsolo.segment(model, SCENE, WORDS, tile=tile)
    config = dataclasses.replace(model.config, crop=56, stride=28)
    with pytest.raises(ValueError, match="tile is 64, and the model has windows of its own"):
        pipeline.prepare(config, SCENE, 64)
    monkeypatch.setattr(pipeline.memory, "available", lambda: 1 << 20)
    with pytest.raises(MemoryError, match=r"the 9 tiles of this picture.*segment the picture"):
        dsolo.encode(model, SCENE, tile=64)
    assert images.read_image(SCENE) is SCENE and clip.STARTS
