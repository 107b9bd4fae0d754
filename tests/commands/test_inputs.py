"""What is meant by files, folders, patterns and lists, and what the results are called."""

import os
from pathlib import Path

import pytest

from dsolo_jax.commands.inputs import STDIN, find


@pytest.fixture
def photos(tmp_path):
    """Pictures, some below, with what is none among them."""
    root = tmp_path / "photos"
    for name in (
        *("b.jpg", "a.PNG", "notes.txt", "film.mp4", ".hidden.png", "trip/b.jpg", "trip/a.png"),
        *("trip/deep/b.jpg", "trip/.cache/c.png", "x[1].jpg"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(*given, lists=(), recursive=False, output="out"):
    """Names of the results, and the files that they are of."""
    found = find([*map(str, given)], lists, recursive, Path(output))
    return {source.name: source.path for source in found}


def test_a_folder_is_its_pictures_and_says_that_it_has_videos(photos, capsys):
    assert names(photos) == {
        "a": photos / "a.PNG",
        "b": photos / "b.jpg",
        "x[1]": photos / "x[1].jpg",
    }
    said = capsys.readouterr()
    assert not said.out and f"{photos} has 1 videos, which are left aside" in said.err


def test_recursive_results_have_the_folders_below(photos, capsys):
    found = names(photos, recursive=True)
    assert [*found] == ["a", "b", "trip/a", "trip/b", "trip/deep/b", "x[1]"]
    assert all(photos / path.relative_to(photos) == path for path in found.values())
    assert found["trip/deep/b"] == photos / "trip" / "deep" / "b.jpg"


def test_results_in_the_folder_itself_are_no_pictures_of_the_next_run(photos, capsys):
    before = names(photos, recursive=True, output=photos / "out")
    (photos / "out" / "masks").mkdir(parents=True)
    for name in ("a.png", "masks/a.png"):
        (photos / "out" / name).touch()
    assert names(photos, recursive=True, output=photos / "out") == before
    assert names(f"{photos}/**/*.png", output=photos / "out") == {"trip/a": photos / "trip/a.png"}
    # One who names the results means them.
    assert names(photos / "out", output=photos / "out") == {"a": photos / "out" / "a.png"}


def test_patterns_are_expanded_and_results_named_from_the_first_wildcard(photos, monkeypatch):
    assert [*names(f"{photos}/**/*.jpg")] == ["b", "trip/b", "trip/deep/b", "x[1]"]
    assert [*names(f"{photos}/tr?p/*.jpg")] == ["trip/b"]
    assert [*names(f"{photos}/trip/*")] == ["a", "b"]  # neither folders nor hidden files
    assert [*names(f"{photos}/*.mp4")] == ["film"]
    monkeypatch.chdir(photos)
    assert [*names("**/b.jpg")] == ["b", "trip/b", "trip/deep/b"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(photos):
    assert names(photos / "x[1].jpg") == {"x[1]": photos / "x[1].jpg"}


def test_a_list_is_relative_to_its_folder(photos, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "z.jpg").touch()
    lines = ["# what I like", "trip/deep/b.jpg", "", "  b.jpg  ", "../far/z.jpg", "trip/*.png"]
    chosen = photos / "chosen.txt"
    chosen.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert names(lists=[chosen]) == {
        "b": photos / "b.jpg",
        "trip/a": photos / "trip/a.png",
        "trip/deep/b": photos / "trip/deep/b.jpg",
        "z": photos / "../far/z.jpg",
    }
    whole = photos / "whole.txt"
    whole.write_text(f"trip\n{photos / 'b.jpg'}\n")
    assert [*names(lists=[whole])] == ["b", "trip/a", "trip/b"]


def test_what_is_named_twice_is_done_once(photos, capsys):
    assert [*names(photos, photos / "b.jpg", f"{photos}/*.jpg")] == ["a", "b", "x[1]"]


def test_two_files_of_one_name_are_refused(photos, tmp_path):
    (photos / "b.webp").touch()
    with pytest.raises(ValueError, match=r"b\.jpg and .*b\.webp have one name .* two folders"):
        names(photos)
    with pytest.raises(ValueError, match="one name"):
        names(photos / "trip/b.jpg", photos / "trip/deep/b.jpg")


def test_standard_input_is_one_picture():
    [source] = find(["-"], [], False, Path("out"))
    assert source.path == STDIN and source.name == source.place == "stdin"
    with pytest.raises(ValueError, match="given twice"):
        find(["-", "-"], [], False, Path("out"))


@pytest.mark.parametrize(
    "given, error, message",
    [
        ("empty", FileNotFoundError, "no pictures in .*empty.*--recursive looks into"),
        ("*.webp", FileNotFoundError, "no picture or video matches: .*webp"),
        ("a**/*.png", (ValueError, FileNotFoundError), "pattern|matches"),
    ],
)
def test_nothing_is_found_with_a_reason(photos, given, error, message):
    (photos / "empty" / "below").mkdir(parents=True)
    (photos / "empty" / "below" / "a.png").touch()
    with pytest.raises(error, match=message):
        names(photos / given)


def test_lists_that_are_none(photos):
    with pytest.raises(FileNotFoundError, match="no list at .*nowhere.txt"):
        names(lists=[photos / "nowhere.txt"])
    (photos / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="names no file"):
        names(lists=[photos / "empty.txt"])


def test_folders_that_go_round_in_a_circle_end(photos, capsys):
    before = names(photos, recursive=True), names(f"{photos}/**/*.jpg")
    os.symlink(photos, photos / "trip" / "round")
    assert (names(photos, recursive=True), names(f"{photos}/**/*.jpg")) == before
