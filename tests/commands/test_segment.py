"""`dsolo segment` on pictures, folders and lists, and in pipes, by the miniature."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import draw, images
from dsolo_jax.commands import pictures
from tests.commands.runs import GIVEN, files, scene, segment, table, wide
from tests.oracles import videos

# ------------------------------------------------------------------------------- folders


def mixed(folder):
    """18 pictures of every format, mode and of four sizes, and two that are none."""
    folder.mkdir()
    sizes = (112, 112), (90, 130), (131, 97), (112, 60)
    kinds = (
        *("a.jpg RGB", "b.jpeg L", "c.png RGBA", "d.png P", "e.bmp RGB", "f.gif P", "g.webp RGBA"),
        *("h.tif RGB", "i.png LA", "j.png 1", "k.jpg CMYK", "l.ppm RGB", "m.JPG RGB", "n.tiff L"),
    )
    for index, kind in enumerate(kinds):
        name, mode = kind.split()
        scene(index, sizes[index % 4]).convert(mode).save(folder / name)
    deep = np.asarray(scene(0, sizes[0]).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "o.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    scene(1, sizes[1]).save(folder / "p.jpg", exif=turned)
    scene(2, sizes[2]).save(folder / "q.png", transparency=(0, 0, 0))
    moving = [scene(index, sizes[3]) for index in range(3)]
    moving[0].save(folder / "r.gif", save_all=True, append_images=moving[1:])
    (folder / "s.jpg").write_bytes((folder / "a.jpg").read_bytes()[:700])
    (folder / "t.png").write_text("a letter, not a picture")
    return folder


def test_twenty_mixed_pictures_two_of_them_broken(tmp_path, capsys):
    folder, out = mixed(tmp_path / "in"), tmp_path / "out"
    assert segment(folder, f"--output={out}", "--save=overlay,mask,json") == 1
    said = capsys.readouterr()
    assert said.out.startswith("18 pictures segmented, 0 were there already")
    failed = [line for line in said.err.splitlines() if line.startswith("not segmented: ")]
    assert len(failed) == 2 and "s.jpg is damaged or cut short" in failed[0]
    assert "t.png is no picture" in failed[1]
    stems = "abcdefghijklmnopqr"
    assert files(out) == sorted(
        [*(f"{s}.{end}" for s in stems for end in ("png", "json")), "run.json", "shares.csv"]
        + [f"masks/{s}.png" for s in stems]
    )
    shares = table(out)
    for name, row in shares.items():
        stem = name.partition(".")[0]
        with Image.open(out / "masks" / f"{stem}.png") as mask:
            assert mask.mode == "P" and mask.getpalette()[:12] == draw.palette(4).ravel().tolist()
            size = images.read_image(folder / name).shape
            assert (mask.height, mask.width) == size[:2]
            labels = np.asarray(mask)
        np.testing.assert_allclose(row, [(labels == c).mean() for c in range(4)], atol=1e-6)
    assert {name.partition(".")[0] for name in shares} == set(stems)
    # The two stay undone, and are tried again; nothing else is.
    assert segment(folder, f"--output={out}") == 1
    assert capsys.readouterr().out.startswith("0 pictures segmented, 18 were there already")


def test_results_below_have_the_folders_below(photos, tmp_path):
    out = photos / "results"  # inside of what is searched
    for _ in range(2):
        assert segment(photos, "--recursive", f"--output={out}") == 0
        overlays = ["a.png", "b.png", "trip/a.png"]
        masks = [f"masks/{name}" for name in overlays]
        assert files(out) == sorted([*overlays, *masks, "run.json", "shares.csv"])
        assert [*table(out)] == overlays
    assert files(out / "masks") == overlays


@pytest.mark.parametrize("by", ["pattern", "list"])
def test_patterns_and_lists(photos, tmp_path, by):
    out = tmp_path / "out"
    if by == "pattern":
        given = [photos / "**/a.*"]
    else:
        (photos / "some.txt").write_text("# two\na.png\ntrip/a.png\n")
        given = [f"--list={photos / 'some.txt'}"]
    assert segment(*given, f"--output={out}", "--save=mask") == 0
    assert files(out) == ["masks/a.png", "masks/trip/a.png", "run.json", "shares.csv"]


def test_masks_and_overlays_in_one_place_are_refused(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "masks").mkdir(parents=True)
    for name in ("a.png", "masks/a.png"):
        scene(0).save(folder / name)
    assert segment(folder, "--recursive", f"--output={out}") == 1
    assert "masks/a.png would be both" in capsys.readouterr().err and not out.exists()
    scene(0).save(folder / "run.png")
    assert segment(folder / "run.png", f"--output={out}", "--save=json") == 1
    assert "run.json would be both the command's own" in capsys.readouterr().err


def test_tiles_are_passed_on(photos, tmp_path):
    path, out = tmp_path / "wide.png", tmp_path / "out.png"
    Image.fromarray(wide(3)).save(path)
    found = {}
    for tile in (0, 112):
        assert segment(path, f"--output={out}", "--save=mask", f"--tile={tile}") == 0
        found[tile] = images.read_labels(out)
        expected = dsolo.segment(dsolo.load("miniature", graph=False), path, GIVEN, "kl", tile=tile)
        np.testing.assert_array_equal(found[tile], expected.labels)
    assert (found[0] != found[112]).any()


def test_a_large_picture_is_no_reason_to_warn(photos, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 10_000
    )  # PIL warns above, and raises above twice
    assert segment(photos / "a.png", f"--output={tmp_path / 'out.png'}") == 0
    assert not [w for w in recwarn if w.category is Image.DecompressionBombWarning]


# ------------------------------------------------------------------------------- going on


def test_a_run_that_was_killed_goes_on_where_it_was(photos, tmp_path, monkeypatch, counted):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert segment(photos, "--recursive", f"--output={whole}") == 0
    usual, written = pictures.write, []

    class Killed(BaseException):
        pass

    def kill(kind, result, source, path):
        written.append(path)
        if len(written) == 4:  # the second picture's second file
            raise Killed
        usual(kind, result, source, path)

    monkeypatch.setattr(pictures, "write", kill)
    with pytest.raises(Killed):
        segment(photos, "--recursive", f"--output={out}")
    monkeypatch.setattr(pictures, "write", usual)
    left = out / "masks" / f".{'0f' * 16}.png"  # as `atomic` leaves it when a process is killed
    left.write_bytes(b"half")
    with (out / ".done.jsonl").open("a") as file:
        file.write('{"name": "trip/a.png", "sta')
    kept = (out / "a.png").stat().st_mtime_ns
    counted.clear()
    assert segment(photos, "--recursive", f"--output={out}") == 0
    assert counted == ["b.png", "a.png"]  # that of trip
    assert not left.exists() and (out / "a.png").stat().st_mtime_ns == kept
    assert files(out) == files(whole)
    for name in files(whole):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_another_question_is_refused_and_nothing_is_mixed(photos, tmp_path, capsys, counted):
    out = f"--output={tmp_path / 'out'}"
    assert segment(photos, "--recursive", out) == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    counted.clear()
    for others in (
        {"classes": "water; sand"},
        {"classes": "water; sand; circle; heart"},  # a synonym less
        ["--background"],
        ["--readings=paper"],
        ["--tile=64"],
        ["--dtype=bf16"],
    ):
        arguments, named = (others, {}) if isinstance(others, list) else ([], others)
        assert segment(photos, "--recursive", out, *arguments, **named) == 1
        assert "has the results of another question" in capsys.readouterr().err
    assert not counted
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in before}
    # One folder is asked anew; what was not is not taken for an answer later.
    assert segment(photos, out, "--overwrite", classes="water; sand") == 0
    assert counted == ["a.png", "b.png"] and [*table(tmp_path / "out")] == ["a.png", "b.png"]
    assert segment(photos, "--recursive", out, classes="water; sand") == 0
    assert counted == ["a.png", "b.png", "a.png"]
    assert {len(row) for row in table(tmp_path / "out").values()} == {2}


def test_a_picture_that_has_changed_is_segmented_again(photos, tmp_path, counted):
    out = tmp_path / "out"
    assert segment(photos, f"--output={out}") == 0
    was = table(out)
    state = (photos / "a.png").stat()
    scene(3).save(photos / "a.png")
    counted.clear()
    assert segment(photos, f"--output={out}") == 0
    assert counted == ["a.png"] and table(out)["a.png"] != was["a.png"]
    os.utime(photos / "b.png", ns=(state.st_atime_ns, state.st_mtime_ns - 10**9))  # older, even
    assert segment(photos, f"--output={out}") == 0
    assert counted == ["a.png", "b.png"] and table(out)["b.png"] == was["b.png"]


def test_more_kinds_may_be_wanted_later(photos, tmp_path, counted):
    out = tmp_path / "out"
    assert segment(photos, f"--output={out}", "--save=mask") == 0
    assert segment(photos, f"--output={out}", "--save=mask,labelme") == 0
    assert "labelme/b.json" in files(out) and len(counted) == 4
    assert segment(photos, f"--output={out}", "--save=labelme") == 0
    assert len(counted) == 4


def test_other_programs_find_the_picture(photos, tmp_path):
    out = tmp_path / "out"
    assert segment(photos, "--recursive", f"--output={out}", "--save=coco,labelme") == 0
    told = json.loads((out / "coco" / "trip" / "a.json").read_text())
    assert told["images"][0]["file_name"] == "trip/a.png"
    path = out / "labelme" / "trip" / "a.json"
    shown = path.parent / json.loads(path.read_text())["imagePath"]
    assert shown.resolve() == (photos / "trip" / "a.png").resolve()


def test_masks_of_georeferenced_pictures_have_their_place(photos, tmp_path, counted):
    rasterio = pytest.importorskip("rasterio")

    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 5.4e6, 2, 2)}
    pixels = np.asarray(scene(2)).transpose(2, 0, 1)
    path, out = photos / "trip" / "field.tif", tmp_path / "out"
    profile = {"driver": "GTiff", "height": 112, "width": 112, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(pixels)
    for _ in range(2):
        assert segment(photos / "trip", f"--output={out}") == 0
        masks = ["masks/a.png", "masks/field.tif"]
        assert files(out) == ["a.png", "field.png", *masks, "run.json", "shares.csv"]
    assert len(counted) == 2
    with rasterio.open(out / "masks" / "field.tif") as file:
        assert file.crs == place["crs"] and file.transform == place["transform"]
        labels = file.read(1)
    assert segment(path, f"--output={tmp_path / 'one.tif'}", "--save=mask") == 0
    with rasterio.open(tmp_path / "one.tif") as file:
        np.testing.assert_array_equal(file.read(1), labels)
    assert segment(path, f"--output={tmp_path / 'one.png'}", "--save=mask") == 0
    np.testing.assert_array_equal(images.read_labels(tmp_path / "one.png"), labels)
    assert segment(photos / "a.png", f"--output={tmp_path / 'no.tif'}", "--save=mask") == 1


def test_files_of_others_are_not_overwritten(photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"mine")
    assert segment(photos, f"--output={out}") == 1
    assert "b.png is there already" in capsys.readouterr().err
    assert files(out) == ["b.png"] and (out / "b.png").read_bytes() == b"mine"


def test_interrupted(photos, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dsolo, "segment", interrupt)
    assert segment(photos, f"--output={tmp_path / 'out'}") == 130
    assert capsys.readouterr().err == "interrupted; the same command does what is left\n"


# ------------------------------------------------------------------------------- pipes


@pytest.mark.parametrize("kind", ["overlay", "mask"])
def test_a_picture_through_a_pipe_is_the_same_bytes(
    photos, tmp_path, monkeypatch, capsysbinary, kind
):
    out = tmp_path / "out.png"
    assert segment(photos / "a.png", f"--output={out}", f"--save={kind}") == 0
    capsysbinary.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((photos / "a.png").read_bytes())))
    assert segment("-", "--output=-", f"--save={kind}") == 0
    said = capsysbinary.readouterr()
    assert said.out == out.read_bytes() and said.out.startswith(b"\x89PNG")
    assert b"written to standard output" in said.err


def test_standard_input_may_go_to_a_folder_and_is_always_done(photos, tmp_path, monkeypatch):
    out, rows = tmp_path / "out", []
    for name in ("a.png", "b.png"):
        data = io.BytesIO((photos / name).read_bytes())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
        assert segment("-", f"--output={out}") == 0
        rows.append(table(out)["stdin"])
    assert rows[0] != rows[1] and files(out) == [
        "masks/stdin.png", "run.json", "shares.csv", "stdin.png",
    ]  # fmt: skip


def test_what_comes_through_a_pipe_and_is_none(monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    assert segment("-", "--output=-") == 1
    said = capsysbinary.readouterr()
    assert said.out == b"" and b"standard input is no picture" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "b.png", "--output=-"],
        ["a.png", "--output=-", "--save=overlay,mask"],
        ["a.png", "--output=x.png", "--save=json"],
        ["a.png", "--output=x.mp4"],
        ["film.mp4", "--output=x.png"],
        ["film.mp4", "--output=-"],
        ["film.mp4", "--output=x.mp4", "--save=mask"],
    ],
)
def test_one_file_has_one_kind_of_one_picture(photos, arguments, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    videos.write(photos / "film.mp4", [np.asarray(scene(0))])
    assert segment(*arguments) == 1
    assert "a single file has one kind of --save" in capsys.readouterr().err
    assert files(photos) == ["a.png", "b.png", "film.mp4", "trip/a.png"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.png", "--save=masks"], ["a.png", "--every=0"], ["a.png", "--smooth=1"],
     ["a.png", "--smooth=nan"], ["a.png", "--tile=-1"], ["a.png", "--tile=half"]],
)  # fmt: skip
def test_wrong_usage_is_told_from_what_could_not_be_done(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        segment(*arguments, f"--output={tmp_path / 'out'}")
    assert raised.value.code == 2 and "usage: " in capsys.readouterr().err
