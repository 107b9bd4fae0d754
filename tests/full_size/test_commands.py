"""The command as users have it, a process of its own: killed, interrupted, piped.

python -m pytest tests/full_size/test_commands.py -m full_size -s
"""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dsolo_jax import images
from dsolo_jax.datasets import miniature
from tests.oracles import videos

pytestmark = pytest.mark.full_size

KILLS, PICTURES = 6, 20
FLAGS = ["--classes=water; sand; circle, disc; heart", "--preset=miniature"]


def command(*arguments):
    return [sys.executable, "-m", "dsolo_jax", "segment", *map(str, arguments), *FLAGS]


def run(*arguments, **others):
    return subprocess.run(command(*arguments), capture_output=True, **others)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(PICTURES):
        images.write_png(folder / f"{index:02}.png", miniature.draw(3, index).image)
    return folder


def done(folder):
    path = folder / ".done.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def contents(folder):
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.name != ".done.jsonl"
    }


def stop(process, folder, until, how):
    """Sends a signal when so many pictures are done, or some time after."""
    while len(done(folder)) < until and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(how)
    return process.communicate()


def test_killed_runs_leave_what_one_left_alone_does(photos, tmp_path):
    assert run(photos, f"--output={tmp_path / 'alone'}").returncode == 0
    chance, out = random.Random(0), tmp_path / "killed"
    for kill in range(KILLS):
        before = done(out)
        process = subprocess.Popen(command(photos, f"--output={out}"), stderr=subprocess.PIPE)
        stop(process, out, len(before) + chance.randint(0, 5), signal.SIGKILL)
        assert done(out)[: len(before)] == before, "what was done is done again"
        print(f"kill {kill + 1}: {len(before)} pictures were there, {len(done(out))} now")
    before = done(out)
    assert 0 < len(before) < PICTURES
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    kept = [out / json.loads(line)["name"] for line in before]
    ended = run(photos, f"--output={out}", text=True)
    assert ended.returncode == 0
    left = PICTURES - len(before)
    assert f"{left} pictures segmented, {len(before)} were there already" in ended.stdout
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)
    assert contents(out) == contents(tmp_path / "alone")


def test_ctrl_c_is_one_line(photos, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(photos, f"--output={out}"), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    said, error = stop(process, out, 3, signal.SIGINT)
    assert process.returncode == 130 and said == b""
    assert error.decode().splitlines()[-1] == "interrupted; the same command does what is left"
    assert b"Traceback" not in error
    assert not [path for path in out.rglob(".*") if path.name not in (".done.jsonl", ".lock")]


def test_pipes(photos, tmp_path):
    picture, out = photos / "00.png", tmp_path / "out.png"
    assert run(picture, f"--output={out}").returncode == 0
    piped = run("-", "--output=-", stdin=picture.open("rb"))
    assert piped.returncode == 0 and piped.stdout == out.read_bytes()
    mask = run("-", "--output=-", "--save=mask", stdin=picture.open("rb"))
    (tmp_path / "mask.png").write_bytes(mask.stdout)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P" and image.size == (112, 112)


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("output, code", [("-", 1), ("out.png", 0)])
def test_a_reader_that_has_gone(photos, tmp_path, monkeypatch, buffered, output, code):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffered)
    output = output if output == "-" else tmp_path / output
    process = subprocess.Popen(
        command(photos / "00.png", f"--output={output}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == code
    assert b"Traceback" not in error and b"BrokenPipe" not in error and b"error" not in error
    assert output == "-" or output.is_file()


def test_a_killed_video_starts_anew(tmp_path):
    film, out = tmp_path / "film.mp4", tmp_path / "out"
    videos.write(film, [miniature.draw(3, index // 20).image for index in range(100)])
    save = "--save=overlay,mask,json"
    process = subprocess.Popen(command(film, f"--output={out}", save), stderr=subprocess.PIPE)
    partial = out / "masks" / "film.partial"
    while not (partial.is_dir() and len([*partial.iterdir()]) > 10):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    shown = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    assert sorted(shown) == ["masks", "run.json"]
    assert run(film, f"--output={out}", save).returncode == 0
    assert (
        len(videos.read(out / "film.mp4")[0]) == len([*(out / "masks" / "film").iterdir()]) == 100
    )
    assert sorted(path.name for path in out.iterdir()) == [
        *(".done.jsonl", ".lock", "film.json", "film.mp4", "masks", "run.json"),
    ]
    assert [path.name for path in (out / "masks").iterdir()] == ["film"]


def test_memory_does_not_grow_with_a_video(tmp_path):
    """Ten times the frames, the same memory: what a process used at most, as its parent is told."""
    peaks = {}
    for frames in (60, 600):
        film = tmp_path / f"{frames}.mp4"
        videos.write(film, [np.roll(miniature.draw(3, 0).image, i, axis=1) for i in range(frames)])
        script = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        flags = f"--output={tmp_path / 'out'}", "--every=30", "--save=overlay,mask,json"
        ended = subprocess.run(
            [sys.executable, "-c", script, *command(film, *flags)], capture_output=True, text=True
        )
        peaks[frames] = int(ended.stdout.split()[-1]) / 1024
    print(f"peak of {peaks} MiB")
    assert peaks[600] < peaks[60] + 100
