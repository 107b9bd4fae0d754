"""The command, in this process, on the model that comes with the package."""

import csv
import runpy
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import cli, images
from dsolo_jax.background import BACKGROUND_WORDS
from dsolo_jax.datasets import miniature

CLASSES = ("water", "sand", "circle, disc", "heart")
LISTED = "; ".join(CLASSES)


def segment(*arguments, classes=LISTED, method="kl"):
    """The exit code; `kl` needs no graph, so it is quick."""
    given = map(str, arguments)
    options = [f"--classes={classes}", f"--method={method}", "--preset=miniature"]
    return cli.main(["segment", *given, *options])


@pytest.fixture(scope="module")
def originals():
    return {name: miniature.draw(3, i).image for i, name in enumerate("abc")}


@pytest.fixture
def folder(tmp_path, originals):
    for name, image in originals.items():
        images.write_png(tmp_path / "pictures" / f"{name}.png", image)
    return tmp_path / "pictures"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def shares(output):
    with open(output / "shares.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_picture_gives_an_overlay_and_its_shares(folder, tmp_path, capsys):
    out = tmp_path / "new" / "out.png"
    assert segment(folder / "a.png", f"--output={out}", method="path") == 0
    assert names(out.parent) == ["out.png"]
    overlay = np.asarray(Image.open(out))
    assert overlay.shape[0] >= 112 and overlay.shape[1] >= 112
    *table, last = capsys.readouterr().out.splitlines()
    assert last == f"written to {out}"
    assert {line.split()[0] for line in table} <= {"water", "sand", "circle", "heart"}
    percent = [float(line.split()[-1].rstrip("%")) for line in table]
    assert sum(percent) == pytest.approx(100, abs=0.3) and percent == sorted(percent)[::-1]


def test_a_folder_gives_overlays_masks_and_a_table_of_shares(folder, tmp_path, originals, capsys):
    out = tmp_path / "out"
    assert segment(folder, f"--output={out}") == 0
    assert names(out) == ["a.png", "b.png", "c.png", "masks", "run.json", "shares.csv"]
    assert "3 pictures segmented, 0 were there already" in capsys.readouterr().out
    model = dsolo.load("miniature", graph=False)
    for row, (name, image) in zip(shares(out), originals.items(), strict=True):
        mask = images.read_labels(out / "masks" / f"{name}.png")
        np.testing.assert_array_equal(mask, dsolo.segment(model, image, CLASSES, "kl").labels)
        assert row.pop("picture") == f"{name}.png"
        assert list(row) == ["water", "sand", "circle", "heart"]
        expected = [(mask == c).mean() for c in range(4)]
        np.testing.assert_allclose([float(share) for share in row.values()], expected, atol=1e-6)


def test_only_what_is_missing_is_made_unless_all_of_it_is_wanted(
    folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert segment(folder, f"--output={out}") == 0
    whole, mask = shares(out), (out / "masks" / "b.png").read_bytes()
    (out / "b.png").unlink()
    (out / "shares.csv").unlink()
    kept = (out / "a.png").stat().st_mtime_ns
    capsys.readouterr()
    assert segment(folder, f"--output={out}") == 0
    assert "1 pictures segmented, 2 were there already" in capsys.readouterr().out
    assert (out / "a.png").stat().st_mtime_ns == kept
    assert shares(out) == whole and (out / "masks" / "b.png").read_bytes() == mask

    assert segment(folder, f"--output={out}", "--overwrite") == 0
    assert "3 pictures segmented, 0 were there already" in capsys.readouterr().out
    assert (out / "a.png").stat().st_mtime_ns > kept and shares(out) == whole

    monkeypatch.setattr(dsolo, "load", None)  # would be called otherwise
    assert segment(folder, f"--output={out}") == 0
    assert "0 pictures segmented, 3 were there already" in capsys.readouterr().out


def test_a_broken_picture_is_named_at_the_end_and_the_others_are_done(folder, tmp_path, capsys):
    broken, out = folder / "b.png", tmp_path / "out"
    broken.write_bytes(broken.read_bytes()[:300])
    assert segment(folder, f"--output={out}") == 1
    said = capsys.readouterr()
    assert "2 pictures segmented, 0 were there already" in said.out
    [line] = [line for line in said.err.splitlines() if line.startswith("not segmented: ")]
    assert line.count(str(broken)) == 1 and "cut short" in line
    assert [row["picture"] for row in shares(out)] == ["a.png", "c.png"]
    assert names(out / "masks") == ["a.png", "c.png"]


def test_a_single_broken_picture_is_an_error_and_leaves_nothing(folder, tmp_path, capsys):
    (folder / "b.png").write_bytes(b"no picture")
    out = tmp_path / "out.png"
    assert segment(folder / "b.png", f"--output={out}") == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "b.png is no picture" in said.err
    assert "Traceback" not in said.err and not out.exists()
    assert segment(folder / "b.png", f"--output={out}", "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err


def test_full_memory_is_a_message_and_a_fault_of_ours_a_traceback(
    folder, tmp_path, monkeypatch, capsys
):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 GiB\nand much more")

    arguments = folder, f"--output={tmp_path / 'out'}"
    monkeypatch.setattr(dsolo, "segment", full)
    assert segment(*arguments) == 1
    error = capsys.readouterr().err
    assert "memory is full: RESOURCE_EXHAUSTED: 5 GiB; a smaller preset, picture" in error
    assert error.count("takes less") == 1
    assert "Traceback" not in error
    monkeypatch.setattr(dsolo, "segment", lambda *_, **__: int("a library's ValueError"))
    with pytest.raises(ValueError, match="a library's"):
        segment(*arguments)


def test_two_pictures_of_one_name_are_refused(folder, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    out = tmp_path / "out"
    assert segment(folder, tmp_path / "more", f"--output={out}") == 1
    error = capsys.readouterr().err
    assert "a.png" in error and "a.jpg" in error and "two folders" in error
    assert not out.exists()


def test_a_picture_is_never_overwritten(folder, capsys):
    before = (folder / "a.png").read_bytes()
    for arguments in (
        (folder / "a.png", f"--output={folder / 'a.png'}"),
        (folder, f"--output={folder}"),
        (folder, f"--output={folder / '..' / folder.name}", "--overwrite"),
        # The masks would come to lie there.
        (shutil.copytree(folder, folder.parent / "out" / "masks"), f"--output={folder}/../out"),
    ):
        assert segment(*arguments) == 1
        assert "would overwrite the picture" in capsys.readouterr().err
    assert (folder / "a.png").read_bytes() == before and names(folder) == [
        "a.png",
        "b.png",
        "c.png",
    ]


def test_classes_may_come_from_a_file(folder, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for out, classes in (("x", LISTED), ("y", str(tmp_path / "classes.txt"))):
        output = f"--output={tmp_path / out}"
        assert segment(folder / "a.png", folder / "b.png", output, classes=classes) == 0
    assert shares(tmp_path / "x") == shares(tmp_path / "y")


def test_a_background_is_a_class_of_its_own(folder, tmp_path):
    out = tmp_path / "out"
    assert segment(folder / "a.png", f"--output={out}", "--background", classes="heart") == 0
    [row] = shares(out)
    assert list(row) == ["picture", "background", "heart"]
    assert "heart" not in BACKGROUND_WORDS and images.read_labels(out / "masks" / "a.png").max() < 2


@pytest.mark.parametrize(
    "arguments, classes, message",
    [
        (["--readings=robust,taw=1"], "heart", "unknown reading 'taw' (did you mean 'tau'?)"),
        (["--attention=klip"], "heart", "unknown attention source"),
        ([], "heart; heart", "'heart' is given twice"),
        ([], " ; ", "no classes given"),
    ],
)
def test_mistakes_are_one_message(folder, tmp_path, capsys, arguments, classes, message):
    out = tmp_path / "out"
    assert segment(folder, f"--output={out}", *arguments, classes=classes) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not out.exists()


def test_folders_without_pictures_and_files_that_are_not_there_are_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert segment(tmp_path / "empty", f"--output={tmp_path / 'out'}") == 1
    assert f"no pictures in {tmp_path / 'empty'}" in capsys.readouterr().err
    assert segment(tmp_path / "x.png", f"--output={tmp_path / 'out.png'}") == 1
    assert f"no such file: {tmp_path / 'x.png'}" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out.jpg", "notes.txt", "a.png"])
def test_an_output_that_is_no_folder_is_refused_at_once(folder, tmp_path, capsys, output):
    (tmp_path / "notes.txt").touch()
    pictures = [folder] if output == "a.png" else [folder / "a.png"]  # several, or one
    assert segment(*pictures, f"--output={tmp_path / output}") == 1
    assert f"{output}; wanted a folder, or a PNG for one picture" in capsys.readouterr().err
    assert names(tmp_path) == ["notes.txt", "pictures"]


def test_hidden_files_are_no_pictures(folder, tmp_path):
    (folder / "._a.png").write_bytes(b"what another system leaves beside a.png")
    assert segment(folder, f"--output={tmp_path / 'out'}") == 0


def test_a_single_file_of_weights_says_how_it_becomes_a_folder(folder, tmp_path, capsys):
    weights = tmp_path / "sd.safetensors"
    weights.touch()
    for flag in ("clip", "attention"):
        arguments = f"--{flag}={weights}", f"--output={tmp_path / 'out'}"
        assert segment(folder, *arguments, method="velocity") == 1
        assert "sd.safetensors' is a single file, wanted a folder" in capsys.readouterr().err


def test_unknown_methods_are_refused_with_all_there_are(capsys):
    with pytest.raises(SystemExit) as raised:
        segment("x.png", "--output=y.png", method="velocty")
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert "velocty" in error and all(method in error for method in dsolo.METHODS)


def test_flags_are_written_in_full(capsys):
    with pytest.raises(SystemExit) as raised:
        segment("x.png", "--output=y.png", "--over")
    assert raised.value.code == 2 and "--over" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_message(folder, tmp_path, monkeypatch, capsys):
    def devices():  # as JAX, where it has no plugin for what JAX_PLATFORMS names
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    assert segment(folder / "a.png", f"--output={tmp_path / 'out.png'}") == 1
    assert "(no plugin); install JAX for it" in capsys.readouterr().err


def test_help_has_every_option(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dsolo_jax", "segment", "--help"])
    with pytest.raises(SystemExit) as raised:  # as `python -m dsolo_jax segment --help`
        runpy.run_module("dsolo_jax", run_name="__main__")
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    options = "classes output background preset clip attention method readings overwrite verbose "
    options += "list recursive save tile every smooth dtype"
    assert all(f"--{option}" in text for option in options.split())
    assert "exit codes: 0 all is done; 1 " in text and "130 stopped by Ctrl-C" in text
    assert all(name in text for name in (*dsolo.METHODS, *dsolo.PRESETS))
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "segment" in capsys.readouterr().out
