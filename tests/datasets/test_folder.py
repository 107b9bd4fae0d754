import os
import warnings

import numpy as np
import pytest
from PIL import Image

from dsolo_jax import datasets


@pytest.fixture
def folder(tmp_path):
    """Writes pictures, label maps and classes; returns the arguments of `load_folder`."""

    def write(labels, classes="cat\ndog, hound\nsky\n", suffix="jpg"):
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        for name, stored in labels.items():
            stored = np.array(stored)
            picture = np.full((*stored.shape, 3), 90, np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / f"{name}.{suffix}")
            Image.fromarray(stored.astype(np.uint8)).save(tmp_path / "labels" / f"{name}.png")
        (tmp_path / "classes.txt").write_text(classes)
        return tmp_path / "images", tmp_path / "labels", tmp_path / "classes.txt"

    return write


def test_pictures_and_labels_are_matched_by_stem_and_sorted(folder):
    places = folder({"b": [[0, 1]], "a": [[2, 255]], "c.d": [[1, 1]]})
    (places[0] / ".DS_Store").write_text("")
    (places[0] / "._a.jpg").write_text("")
    Image.new("L", (2, 1)).save(places[1] / "without_picture.png")
    dataset = datasets.load_folder(*places)
    assert dataset.ids == ("a", "b", "c.d")
    assert dataset.classes == ("cat", "dog, hound", "sky")
    assert len(dataset) == 3 and dataset.ignore == 255
    example = dataset[0]
    assert example["id"] == "a" and example["image"].shape == (1, 2, 3)
    assert example["labels"].dtype == np.int32
    np.testing.assert_array_equal(example["labels"], [[2, 255]])


@pytest.mark.parametrize(
    "options, stored, expected",
    [
        ({}, [[0, 1, 2, 255]], [[0, 1, 2, 255]]),
        ({"label_offset": -1}, [[0, 1, 3, 255]], [[255, 0, 2, 255]]),
        ({"label_offset": 1}, [[0, 1, 255]], [[1, 2, 255]]),
        ({"ignore": 0}, [[0, 1, 2]], [[255, 1, 2]]),
        ({"ignore": 0, "label_offset": -1}, [[0, 1, 3]], [[255, 0, 2]]),
        ({"ignore": 7, "label_offset": -1}, [[7, 1, 0]], [[255, 0, 255]]),
        ({"ignore": -1}, [[0, 1, 2]], [[0, 1, 2]]),
    ],
)
def test_ignore_and_offset(folder, options, stored, expected):
    dataset = datasets.load_folder(*folder({"a": stored}), **options)
    np.testing.assert_array_equal(dataset[0]["labels"], expected)


def test_more_than_255_classes_have_another_ignored_value(folder):
    places = folder({"a": [[0, 0]]}, classes="\n".join(f"class {i}" for i in range(300)))
    Image.fromarray(np.array([[299, 255]], np.uint16)).save(places[1] / "a.png")
    dataset = datasets.load_folder(*places, ignore=65535)
    np.testing.assert_array_equal(dataset[0]["labels"], [[299, 255]])
    assert dataset.ignore == 65535


@pytest.mark.parametrize(
    "options, stored, found, wanted",
    [
        ({}, 3, "3", r"0\.\.2, 255"),
        ({"label_offset": -1}, 4, "4", r"0\.\.3, 255"),
        ({"label_offset": 1}, 2, "2", r"0\.\.1, 255"),
        ({"ignore": 0}, 255, "255", r"0\.\.2;"),
    ],
)
def test_labels_outside_the_classes_name_file_value_and_settings(
    folder, options, stored, found, wanted
):
    dataset = datasets.load_folder(*folder({"a": [[stored, 1]]}), **options)
    with pytest.raises(ValueError, match=rf"a\.png holds the label {found} \(1 .*wanted {wanted}"):
        dataset[0]
    with pytest.raises(ValueError, match=r"classes\.txt has 3 classes, ignore is"):
        dataset[0]


def test_sizes_that_differ_are_both_named(folder):
    places = folder({"a": [[0, 1]]})
    Image.new("L", (5, 4)).save(places[1] / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is 4 x 5 .* picture .*a\.jpg, 1 x 2"):
        datasets.load_folder(*places)[0]


def turned(path, orientation):
    """Gives a picture an EXIF rotation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def test_labels_of_pictures_with_an_exif_rotation(folder):
    """Whether the labels were drawn upright is seen from the size, or not at all."""
    places = folder({"a": [[0, 1]], "b": [[0, 1], [2, 2]]})
    turned(places[0] / "a.jpg", 6)
    turned(places[0] / "b.jpg", 3)
    dataset = datasets.load_folder(*places)
    with pytest.raises(ValueError, match=r"a\.png is 1 x 2 .*, 2 x 1; .*EXIF rotation.*so too"):
        dataset[0]
    with pytest.warns(UserWarning, match=r"b\.jpg is turned .* EXIF rotation.* labels must be so"):
        np.testing.assert_array_equal(dataset[1]["labels"], [[0, 1], [2, 2]])
    turned(places[0] / "b.jpg", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset[1]


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\nb", os.fsdecode(b"a\xffb")])
def test_names_that_no_table_can_hold_are_refused_when_the_folder_is_listed(folder, name):
    try:
        places = folder({"z": [[0]], name: [[0]]})
    except OSError:
        pytest.skip("this file system knows no such name")
    with pytest.raises(ValueError, match=r"is not one line of text in UTF-8; rename") as raised:
        datasets.load_folder(*places)
    assert ascii(name) in str(raised.value)


def test_names_of_other_languages_are_kept(folder):
    names = ("Bildschirmfoto um 10.00\u202fUhr", "ångström", "猫 1")
    assert datasets.load_folder(*folder({name: [[0]] for name in names})).ids == names


def test_an_accent_may_be_a_letter_of_its_own_in_one_of_both_names(folder):
    """As a Mac writes it, or what was packed on one."""
    places = folder({"caf\u00e9": [[1]]})
    (places[1] / "caf\u00e9.png").rename(places[1] / "cafe\u0301.png")
    dataset = datasets.load_folder(*places)
    assert dataset.ids == ("caf\u00e9",) and dataset[0]["labels"] == 1


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "JPG"])
def test_pictures_of_rarer_suffixes_are_not_passed_over(folder, suffix):
    dataset = datasets.load_folder(*folder({"a": [[0] * 16] * 16}, suffix=suffix))
    assert dataset[0]["image"].shape == (16, 16, 3)


def test_a_broken_link_shows_when_the_folder_is_listed(folder):
    places = folder({"a": [[0]]})
    (places[0] / "b.jpg").symlink_to("nowhere.jpg")
    (places[1] / "b.png").symlink_to("a.png")
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        datasets.load_folder(*places)


def test_pictures_without_labels_are_listed_and_counted(folder):
    places = folder({f"p{i}": [[0]] for i in range(9)})
    for i in range(1, 8):
        (places[1] / f"p{i}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"7 of 9 pictures .*p1\.png, .*p5\.png and 2 more"):
        datasets.load_folder(*places)


def test_empty_and_missing_folders(folder, tmp_path):
    images, labels, classes = folder({})
    with pytest.raises(FileNotFoundError, match="no pictures in .*images"):
        datasets.load_folder(images, labels, classes)
    with pytest.raises(FileNotFoundError, match="no folder of pictures at .*nowhere"):
        datasets.load_folder(tmp_path / "nowhere", labels, classes)


def test_two_pictures_of_one_stem_are_refused(folder):
    places = folder({"a": [[0]]})
    Image.new("RGB", (1, 1)).save(places[0] / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have one name"):
        datasets.load_folder(*places)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("cat\n\ndog\n", "line 2 of .* is empty"),
        ("cat; kitten\n", "separate synonyms by ', '"),
        ("__ignore__\n_background_\ncat\n", "line 1 of .*'__ignore__', which names no class"),
        ("# label:color_rgb:parts:actions\nsky:0,0,0::\n", "line 1 of .* names no class"),
        ("sky:0,0,0::\ncat:128,0,0::\n", "line 1 of .*'sky:0,0,0::', .*wanted the names alone"),
    ],
)
def test_bad_class_files(folder, text, message):
    places = folder({"a": [[0]]}, classes=text)
    with pytest.raises(ValueError, match=message):
        datasets.load_folder(*places)


def test_class_files_of_other_systems(folder):
    places = folder({"a": [[0]]})
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        places[2].write_bytes("\ufeffcat, Kätzchen\r\ndog\r\n\r\n".encode(encoding))
        assert datasets.load_folder(*places).classes == ("cat, Kätzchen", "dog")
    places[2].write_bytes("Kätzchen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt is no text in UTF-8 .*save it as UTF-8"):
        datasets.load_folder(*places)
    with pytest.raises(FileNotFoundError, match=r"no class file at .*none\.txt"):
        datasets.load_folder(*places[:2], places[2].parent / "none.txt")


def test_damaged_pictures_are_named(folder):
    places = folder({"a": [[0]], "b": [[0]]})
    (places[0] / "b.jpg").write_bytes(b"")
    dataset = datasets.load_folder(*places)
    dataset[0]
    with pytest.raises(ValueError, match=r"b\.jpg is empty"):
        dataset[1]
