"""What people look at: colours far apart, sizes to look at, legends of what is there."""

import numpy as np
import pytest
from PIL import Image

from dsolo_jax import draw


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_colours_are_far_apart_and_do_not_change():
    colours = draw.palette(171)
    assert colours.shape == (171, 3) and colours.dtype == np.uint8
    np.testing.assert_array_equal(draw.palette(20), colours[:20])
    apart = np.abs(colours[:, None].astype(int) - colours[None]).sum(-1)
    np.fill_diagonal(apart, 999)
    assert apart.min() >= 18
    assert apart[:20, :20].min() >= 60
    assert draw.palette(3000).shape == (3000, 3)


@pytest.mark.parametrize(
    "size, displayed",
    [
        ((1, 1), (480, 480)),
        ((32, 32), (480, 480)),
        ((300, 200), (600, 400)),
        ((480, 640), (480, 640)),
        ((2000, 1000), (1600, 800)),
        ((1, 5000), (1, 1600)),
    ],
)
def test_overlay_is_shown_at_a_size_to_look_at(size, displayed):
    labels = np.zeros(size, np.int32)
    drawn = draw.overlay(np.zeros((*size, 3), np.uint8), labels, ["sky, cloud"])
    height, width = displayed
    assert drawn.mode == "RGB"
    assert drawn.width == max(width, 480) and height < drawn.height < height + 120


def test_overlay_mixes_the_colours_and_draws_borders():
    image = noise(500, 500)
    labels = np.zeros((500, 500), np.int32)
    labels[:, 250:] = 2
    colours = draw.palette(3).astype(float)
    drawn = np.asarray(draw.overlay(image, labels, ["a", "b", "c"]))
    expected = 0.45 * image + 0.55 * colours[labels]
    inside = np.ones(500, bool)
    inside[249] = False
    np.testing.assert_allclose(drawn[:500, inside], expected[:, inside], atol=0.51)
    assert (drawn[:500, 249] == 255).all()


def test_legend_has_the_classes_present_only_and_is_capped():
    def height(present):
        labels = np.arange(480 * 480).reshape(480, 480) % present
        names = [f"class {i}" for i in range(150)]
        return draw.overlay(np.zeros((480, 480, 3), np.uint8), labels, names).height

    assert height(1) < height(10) < height(24) < height(25) == height(150)


def test_legend_puts_the_largest_class_first():
    labels = np.zeros((480, 480), np.int32)
    labels[:400] = 1
    drawn = np.asarray(draw.overlay(np.zeros((480, 480, 3), np.uint8), labels, ["few", "many"]))
    legend = drawn[480:].reshape(-1, 3)
    first = [tuple(c) for c in legend.tolist()]
    few, many = (tuple(c) for c in draw.palette(2).tolist())
    assert first.index(many) < first.index(few)


def test_long_names_do_not_widen_the_overlay():
    labels = np.zeros((480, 480), np.int32)
    drawn = draw.overlay(np.zeros((480, 480, 3), np.uint8), labels, ["word " * 400])
    assert drawn.width == 480


def drawn_legend(name):
    """The legend of one class of all pixels, without the picture."""
    labels = np.zeros((480, 480), np.int32)
    return np.asarray(draw.overlay(np.zeros((480, 480, 3), np.uint8), labels, [name]))[480:]


def test_names_in_letters_that_no_font_has_are_numbers(monkeypatch):
    """Boxes would say nothing; matplotlib brings a font with accents, Cyrillic and Greek."""
    for name in ("трава", "Kätzchen", "άλογο"):
        legend = drawn_legend(name)
        assert (legend != drawn_legend("class 0")).any()
        assert (legend != drawn_legend("\U0010ffff" * len(name))).any()
    np.testing.assert_array_equal(drawn_legend("\U0010ffff"), drawn_legend("class 0"))
    monkeypatch.setattr(draw, "_system_fonts", lambda: [])
    draw._font_file.cache_clear()
    np.testing.assert_array_equal(drawn_legend("трава"), drawn_legend("class 0"))
    assert (drawn_legend("grass") != drawn_legend("class 0")).any()
    draw._font_file.cache_clear()


def test_overlay_names_what_does_not_fit():
    image, labels = noise(4, 4), np.zeros((4, 4), np.int32)
    with pytest.raises(ValueError, match=r"\(2, 4\), wanted the picture's \(4, 4\)"):
        draw.overlay(image, labels[:2], ["a"])
    with pytest.raises(ValueError, match=r"labels hold 1, wanted 0\.\.0 for 1 names"):
        draw.overlay(image, labels + 1, ["a"])


# ---- panels --------------------------------------------------------------------------------------


def test_a_panel_keeps_pictures_whole_and_in_proportion():
    """Every pixel of one wide and one high picture is found, enlarged, where it belongs."""
    wide, high = noise(2, 4), noise(4, 1, seed=1)
    labels = np.array([[0, 0, 1, 1], [0, 255, 1, -1]])
    examples = [(wide, labels, np.zeros((2, 4), int)), (high, labels[:1].T, labels[1:].T)]
    panel = np.asarray(draw.panel(examples, ["cat", "dog"], side=160))
    size = 15
    gap, top = size // 2, 2 * size
    cat, dog = draw.palette(2)
    none = draw._NAMELESS
    centres = np.arange(20, 160, 40)
    for part, expected in enumerate(
        (wide, [[cat, cat, dog, dog], [cat, none, dog, none]], [[cat] * 4] * 2)
    ):
        shown = panel[top + centres[:2, None], part * (160 + gap) + centres]
        np.testing.assert_array_equal(shown, expected)
    below, middle = top + 80 + gap, 80
    for part, expected in enumerate((high[:, 0], [cat, cat, dog, dog], [cat, none, dog, none])):
        shown = panel[below + centres, part * (160 + gap) + middle]
        np.testing.assert_array_equal(shown, expected)
        beside = panel[below : below + 160, part * (160 + gap) : part * (160 + gap) + 59]
        assert (beside == 255).all()
    legend = {tuple(colour) for colour in panel[below + 170 :].reshape(-1, 3).tolist()}
    assert {tuple(cat.tolist()), tuple(dog.tolist()), none} <= legend


def test_a_panel_puts_examples_across_and_names_its_columns():
    labels = np.zeros((60, 60), int)
    examples = [(noise(60, 60, seed), labels, labels) for seed in range(4)]
    down, across = (draw.panel(examples, ["a"], side=60, across=n) for n in (1, 2))
    untitled = draw.panel(examples, ["a"], side=60, titles=("", "", ""))
    assert down.height - across.height == 2 * (60 + 7) and across.width == 480  # that of a legend
    titles = [np.asarray(drawn)[:30] < 128 for drawn in (down, untitled)]
    assert titles[0].any() and not titles[1].any()


def test_a_panels_legend_goes_by_the_truth_first():
    truth, predicted = np.array([[0, 0, 1, 1, 1]]), np.array([[2, 2, 2, 2, 0]])
    panel = draw.panel([(noise(1, 5), truth, predicted)], ["a", "b", "c", "d"], side=60)
    legend = [tuple(c) for c in np.asarray(panel)[50:].reshape(-1, 3).tolist()]
    a, b, c, d = (tuple(colour) for colour in draw.palette(4).tolist())
    assert legend.index(b) < legend.index(a) < legend.index(c)
    assert d not in legend
    remarked = draw.panel(
        [(noise(1, 5), truth, predicted)], ["a", "b", "c", "d"], side=60, remarks=["IoU 10.0"] * 4
    )
    assert np.asarray(remarked).sum() < np.asarray(panel).sum()  # more ink


@pytest.mark.parametrize("title", ["", "a", "a_title_that_is_much_too_long_for_its_column" * 3])
def test_titles_are_cut_in_their_middle(title):
    labels = np.zeros((9, 9), int)
    panel = draw.panel([(noise(9, 9), labels)], ["a"], side=90, titles=(title, "truth"))
    between = np.asarray(panel.crop((90, 0, 97, 30)))
    assert panel.size[0] == 480 and (between == 255).all()
    assert isinstance(panel, Image.Image)
