"""The miniature world: reproducible, exactly labelled, and honest about what train never shows."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dsolo_jax.datasets import miniature
from dsolo_jax.datasets.miniature import scenes, shapes, words

CLASSES, NUM_STUFF = miniature.CLASSES, miniature.NUM_STUFF


@pytest.fixture(scope="module")
def drawn():
    """A few hundred scenes of each split."""
    return {
        split: [miniature.draw(3, index, split=split) for index in range(150)]
        for split in miniature.SPLITS
    }


def things(scene):
    return [item for item in scene.items if item.index >= NUM_STUFF]


def may_be_seen(thing, colour, pattern):
    return colour not in words.COLOURS.unseen[thing] and pattern not in words.PATTERNS.unseen[thing]


def same(a, b):
    return np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels)


def test_a_scene_is_a_function_of_its_arguments():
    first, again = (miniature.draw(5, 7, split="tune") for _ in range(2))
    assert same(first, again) and first.items == again.items
    others = [miniature.draw(*args) for args in ((6, 7), (5, 8))] + [
        miniature.draw(5, 7, split=split) for split in ("train", "validation")
    ]
    assert not any(same(first, other) for other in others)


def test_the_world_is_the_one_the_bundled_networks_were_trained_on():
    """Any change of what is drawn from the random numbers, or of their order, is seen here."""
    wanted = {
        "train": ("lime latticed heart, red speckled ball, yellow zigzag house, red latticed star",
                  (85.8, 86.65, 50.72), 0.3553),
        "tune": ("pink halved house, red latticed ball", (100.14, 102.41, 84.34), 0.2113),
        "validation": ("purple plain moon, red halved flower, pink zigzag ring",
                       (98.41, 114.92, 152.13), 0.3068),
    }  # fmt: skip
    for split, (listed, colour, covered) in wanted.items():
        scene = miniature.draw(0, 5, split=split)
        found = [f"{i.colour} {i.pattern} {CLASSES[i.index]}" for i in things(scene)]
        assert ", ".join(found) == listed
        np.testing.assert_allclose(scene.image.mean(axis=(0, 1)), colour, atol=0.02)
        assert (scene.labels >= NUM_STUFF).mean() == pytest.approx(covered, abs=0.0005)


@pytest.mark.parametrize("size, shape", [(112, (112, 112)), ((40, 300), (40, 300)), (32, (32, 32))])
def test_the_canvas_is_of_the_size_asked_for(size, shape):
    scene = miniature.draw(0, 0, size)
    assert scene.image.shape == (*shape, 3) and scene.image.dtype == np.uint8
    assert scene.labels.shape == shape and scene.labels.dtype == np.uint8


def test_things_keep_their_size_on_any_canvas():
    areas = {
        size: np.mean(
            [
                (scene.labels >= NUM_STUFF).sum()
                for index in range(80)
                for scene in [miniature.draw(1, index, size, things=(1, 1), stuff=(1, 2))]
            ]
        )
        for size in (64, 112, 256)
    }
    assert areas[256] == pytest.approx(areas[112], rel=0.1)
    assert areas[64] == pytest.approx(areas[112], rel=0.15)  # a little is outside


def test_items_are_the_labels_classes(drawn):
    for scene in [scene for split in drawn.values() for scene in split]:
        listed = [item.index for item in scene.items]
        counts = np.bincount(scene.labels.ravel(), minlength=len(CLASSES))
        assert len(set(listed)) == len(listed)
        assert 1 <= len(things(scene)) <= 4
        # Only stuff that hardly shows is left out.
        assert {c for c in np.flatnonzero(counts) if c not in listed} <= {
            c for c in range(NUM_STUFF) if counts[c] < 180
        }
        assert all(counts[c] for c in listed)


def test_every_class_is_shown_often_and_things_are_large(drawn):
    for scenes_ in drawn.values():
        shown = np.array([[c in s.labels for c in range(len(CLASSES))] for s in scenes_])
        assert shown.mean(axis=0).min() > 0.1
        assert 0.18 < np.mean([(s.labels >= NUM_STUFF).mean() for s in scenes_]) < 0.3


def test_train_never_shows_what_is_withheld(drawn):
    shown = {(i.index, i.colour, i.pattern) for scene in drawn["train"] for i in things(scene)}
    for index, colour, pattern in shown:
        assert may_be_seen(CLASSES[index], colour, pattern)
    assert len({colour for _, colour, _ in shown}) == len({p for _, _, p in shown}) == 9


@pytest.mark.parametrize("split", ["tune", "validation"])
def test_a_third_of_the_other_splits_things_is_unseen(split, drawn):
    items = [item for scene in drawn[split] for item in things(scene)]
    for item in items:
        assert item.seen == may_be_seen(CLASSES[item.index], item.colour, item.pattern)
    assert np.mean([not item.seen for item in items]) == pytest.approx(1 / 3, abs=0.06)


def test_a_third_of_the_words_is_withheld_from_each_thing_and_no_two_alike():
    for look in (words.COLOURS, words.PATTERNS):
        assert len(set(look.words)) == 9 and set(look.unseen) == set(words.THINGS)
        withheld = [set(look.unseen[thing]) for thing in words.THINGS]
        assert all(len(never) == 3 and never < set(look.words) for never in withheld)
        assert all(sum(word in never for never in withheld) == 3 for word in look.words)
        # No two things share two: what one word withholds says little of the others.
        assert all(len(a & b) <= 1 for a, b in itertools.combinations(withheld, 2))


def test_a_look_says_little_of_the_class():
    """The likeliest thing of a colour is right a sixth of the time, a ninth being chance."""
    shown = [
        (item.index, getattr(item, side))
        for index in range(700)
        for item in things(miniature.draw(3, index, 40, things=(1, 1), stuff=(1, 1)))
        for side in ("colour", "pattern")
    ]
    words_ = {word for _, word in shown}
    of_word = [Counter(index for index, other in shown if other == word) for word in words_]
    right = sum(counts.most_common(1)[0][1] for counts in of_word) / len(shown)
    assert 1 / 6 < right < 0.3


# ---- labels and silhouettes ----------------------------------------------------------------------


@pytest.mark.parametrize("thing", words.THINGS)
def test_distance_is_that_to_the_outline(thing):
    """Against PIL's polygons for the sign, and the nearest of many points for the size."""
    side, reach, finer = 64, 1.15, 8
    inside = np.zeros((side, side), bool)
    for outline in shapes._OUTLINES[thing]:
        raster = Image.new("1", (side * finer, side * finer))
        corners = (outline + reach) / (2 * reach) * side * finer - 0.5
        ImageDraw.Draw(raster).polygon(list(map(tuple, corners)), fill=1)
        inside ^= np.asarray(raster)[finer // 2 :: finer, finer // 2 :: finer]
    at = (np.arange(side) + 0.5) / side * 2 * reach - reach
    x, y = np.meshgrid(at, at)
    found = shapes.distance(thing, x, y)

    steps = np.linspace(0, 1, 40, endpoint=False)[:, None, None]
    points = np.concatenate(
        [(o + steps * (np.roll(o, -1, axis=0) - o)).reshape(-1, 2) for o in shapes._OUTLINES[thing]]
    )
    expected = np.full(x.shape, np.inf)
    for px, py in points:
        np.minimum(expected, np.hypot(x - px, y - py), out=expected)
    np.testing.assert_allclose(np.abs(found), expected, atol=0.02)
    clear = expected > 0.03
    np.testing.assert_array_equal((found < 0)[clear], inside[clear])


def test_a_pixel_is_a_things_where_it_covers_more_than_half():
    """A plain white thing with its dark outline, on white: its share of an outer pixel is what it
    takes away of the brightness."""
    item = scenes.Item(CLASSES.index("heart"), "white", "plain")
    image, labels = np.ones((80, 80, 3), np.float32), np.zeros((80, 80), np.uint8)
    scenes._put(np.random.default_rng(0), image, labels, item, (38.3, 41.7, 25.0))
    share = (1 - image[..., 0]) / (1 - shapes.OUTLINE[0])
    inside = labels == item.index
    assert inside[40, 42] and not inside[2, 2]
    assert ((share > 0.02) & (share < 0.98)).sum() > 100
    assert (share[~inside] <= 0.5).all()
    np.testing.assert_allclose(image[38, 41], 250 / 255, atol=1e-6)
    neighbours = [np.roll(inside, step, axis) for step in (1, -1) for axis in (0, 1)]
    edge = inside & ~np.all(neighbours, axis=0)
    assert (share[edge] >= 0.45).all()


# ---- captions ------------------------------------------------------------------------------------


def test_captions_say_what_is_there_and_nothing_else(drawn):
    rng, told = np.random.default_rng(0), set()
    nouns, looks = set(CLASSES), set(words.COLOURS.words) | set(words.PATTERNS.words)
    for scene in drawn["train"][:120]:
        for text in miniature.captions(scene, rng, 5):
            tokens = re.findall(r"[a-z]+", text)
            named = [token for token in tokens if token in nouns]
            by_name = {CLASSES[item.index]: item for item in scene.items}
            assert named and len(set(named)) == len(named) and set(named) <= set(by_name)
            told.update(named)
            for place, token in enumerate(tokens):
                if token in looks and "black and white" not in text:
                    noun = next(t for t in tokens[place:] if t in nouns)
                    assert token in (by_name[noun].colour, by_name[noun].pattern)
    assert told == nouns


def test_captions_vary(drawn):
    texts = miniature.captions(drawn["train"][0], np.random.default_rng(0), 40)
    assert len(set(texts)) > 30
    again = miniature.captions(drawn["train"][0], np.random.default_rng(0), 40)
    assert texts == again


# ---- the benchmark -------------------------------------------------------------------------------


def test_the_benchmark_is_the_scenes():
    dataset = miniature.load("tune", seed=4)
    scene, example = miniature.draw(4, 11, split="tune"), dataset[11]
    assert example["id"] == "tune_00011" and dataset.classes == CLASSES
    np.testing.assert_array_equal(example["image"], scene.image)
    np.testing.assert_array_equal(example["labels"], scene.labels)


def test_subsets_are_the_things_by_whether_train_may_show_them():
    dataset, both = miniature.load("validation"), 0
    for index in range(12):
        scene, subsets = miniature.draw(0, index, split="validation"), dataset[index]["subsets"]
        for name, wanted in (("seen", True), ("unseen", False)):
            classes = [item.index for item in things(scene) if item.seen == wanted]
            np.testing.assert_array_equal(subsets[name], np.isin(scene.labels, classes))
            both += bool(classes)
    assert both > 12  # neither is empty throughout


def test_train_has_no_labels():
    example = miniature.load("train")[3]
    assert (example["labels"] == 255).all()
    np.testing.assert_array_equal(example["image"], miniature.draw(0, 3).image)


def test_sizes_of_the_splits():
    assert len(miniature.load("tune")) >= 300 and len(miniature.load()) >= 500


def test_tfds_holds_the_same_scenes_and_captions(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from dsolo_jax.datasets.miniature import dataset

    for split, count in {"train": 2, "tune": 1, "validation": 3}.items():
        monkeypatch.setitem(dataset.COUNTS, split, count)
    place = miniature.prepare(tmp_path, seed=6)
    assert [path.name for path in tmp_path.iterdir()] == ["world_6"]
    read = tfds.builder_from_directory(place)
    records = read.as_data_source("validation")
    assert len(records) == 3
    scene = miniature.draw(6, 2, split="validation")
    np.testing.assert_array_equal(records[2]["image"], scene.image)
    stored = records[2]["labels"][..., 0]
    unseen = stored >= len(CLASSES)
    np.testing.assert_array_equal(np.where(unseen, stored - 9, stored), scene.labels)
    train = read.as_data_source("train")[1]
    assert (train["labels"] == 255).all() and len(train["captions"]) == 4
    assert any(name in train["captions"][0].decode() for name in CLASSES)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="unknown split of miniature 'test'.*train, tune"):
        miniature.load("test")
    with pytest.raises(ValueError, match="unknown split of miniature 'val'"):
        miniature.draw(0, 0, split="val")
    with pytest.raises(ValueError, match="seed of the miniature world is -1"):
        miniature.load(seed=-1)
