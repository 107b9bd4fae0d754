"""`dsolo segment` on videos, in this process, by the miniature."""

import json
import sys

import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import draw, images
from tests.commands.runs import NAMES, files, scene, segment, wide
from tests.oracles import videos


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Ten seconds, five frames a second: a look that wanders over four scenes."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    videos.write(path, [wide(4)[:, i : i + 130] for i in range(0, 300, 6)], rate=5)
    return path


def test_a_video_of_ten_seconds(film, tmp_path, capsys):
    out = tmp_path / "out"
    options = "--every=5", "--smooth=0.5", "--save=overlay,mask,json"
    assert segment(film, f"--output={out}", *options) == 0
    assert capsys.readouterr().out.startswith("1 videos segmented, 0 were there already")
    masks = [f"masks/film/{number:06}.png" for number in range(0, 50, 5)]
    assert files(out) == sorted(["film.json", "film.mp4", *masks, "run.json"])

    found, seconds, told = videos.read(out / "film.mp4")
    given, before, _ = videos.read(film)
    assert told["frames"] == len(found) == 50 and told["seconds"] == pytest.approx(10, abs=1e-3)
    np.testing.assert_allclose(seconds, before, atol=1e-3)
    height, width = given.shape[1:3]
    assert found.shape[1] % 2 == found.shape[2] % 2 == 0
    labels = np.stack([images.read_labels(out / name) for name in masks])
    assert len(np.unique(labels)) == 4 and labels.shape[1:] == (height, width)

    # Each frame is the picture under the colours of the last mask, four times as large.
    for number in (0, 37, 49):
        own = labels[number // 5]
        expected = 0.45 * given[number] + 0.55 * draw.palette(4)[own]
        left = (found.shape[2] - 4 * width) // 2
        shown = found[number][: 4 * height, left : left + 4 * width][1::4, 1::4]
        assert np.median(np.abs(shown - expected).max(axis=-1)) < 12
        other = 0.45 * given[number] + 0.55 * draw.palette(4)[(own + 1) % 4]
        assert np.median(np.abs(shown - other).max(axis=-1)) > 30
    legend = found[:, 4 * height + 4 :].astype(int)
    assert np.abs(legend - legend[0]).mean() < 1 and legend.min() < 100

    told = json.loads((out / "film.json").read_text())
    assert told["classes"] == NAMES and [f["frame"] for f in told["frames"]] == [*range(0, 50, 5)]
    for one, own in zip(told["frames"], labels, strict=True):
        assert one["seconds"] == pytest.approx(one["frame"] / 5, abs=1e-3)
        shares = [(own == c).mean() for c in range(4)]
        np.testing.assert_allclose([*one["shares"].values()], shares, atol=1e-6)

    # What is finished is not done again; another film beside it is.
    kept = (out / "film.mp4").stat().st_mtime_ns
    assert segment(film, f"--output={out}", *options) == 0
    assert "0 videos segmented, 1 were there already" in capsys.readouterr().out
    assert (out / "film.mp4").stat().st_mtime_ns == kept


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.mp4"
    videos.write(path, [np.asarray(scene(0))] * 4)
    return path


def test_one_video_to_one_file(short, tmp_path, capsys):
    out = tmp_path / "new" / "labelled.mp4"
    assert segment(short, f"--output={out}", "--every=4") == 0
    assert files(out.parent) == ["labelled.mp4"] and len([*out.parent.iterdir()]) == 1
    assert len(videos.read(out)[0]) == 4
    before = short.read_bytes()
    assert segment(short, f"--output={short}", "--every=4") == 1
    assert "would overwrite" in capsys.readouterr().err and short.read_bytes() == before


def test_a_broken_video_is_named_and_the_pictures_are_done(photos, short, tmp_path, capsys):
    broken, out = tmp_path / "broken.mp4", tmp_path / "out"
    broken.write_bytes(short.read_bytes()[:-300])
    assert segment(photos, broken, short, f"--output={out}", "--every=4") == 1
    said = capsys.readouterr()
    assert said.out.startswith("3 pictures and videos segmented, 0 were there already")
    assert "not segmented: " in said.err and "broken.mp4 is no video that can be read" in said.err
    assert files(out) == [
        *("a.png", "b.png", "masks/a.png", "masks/b.png", "run.json", "shares.csv", "short.mp4"),
    ]


def test_a_video_that_was_killed_starts_anew(short, tmp_path, monkeypatch):
    out, save = tmp_path / "out", "--save=overlay,mask,json"
    usual, seen = dsolo.pipeline.result, []

    class Killed(BaseException):
        pass

    def kill(*arguments):
        seen.append(usual(*arguments))
        if len(seen) == 3:
            raise Killed
        return seen[-1]

    monkeypatch.setattr(dsolo.pipeline, "result", kill)
    with pytest.raises(Killed):
        segment(short, f"--output={out}", save)
    assert files(out) == ["run.json"]
    partial = out / "masks" / ".short.partial"  # as a process that is killed at once leaves it
    partial.mkdir()
    (partial / "000007.png").touch()
    assert segment(short, f"--output={out}", save) == 0
    masks = [f"masks/short/{number:06}.png" for number in range(4)]
    assert files(out) == [*masks, "run.json", "short.json", "short.mp4"]
    assert [path.name for path in (out / "masks").iterdir()] == ["short"]


def test_videos_have_no_polygons(short, tmp_path, capsys):
    assert segment(short, f"--output={tmp_path / 'out'}", "--save=coco") == 1
    assert "--save=coco is of pictures" in capsys.readouterr().err


def test_without_pyav_it_says_how_to_get_it(photos, short, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    out = tmp_path / "out"
    assert segment(photos, short, f"--output={out}") == 1
    assert 'pip install "dsolo-jax[video]"' in capsys.readouterr().err and not out.exists()
    assert segment(photos, f"--output={out}") == 0
