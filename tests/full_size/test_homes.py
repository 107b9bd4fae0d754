"""The commands of a user for whom nothing can be kept between runs: no home, one that is read-only
or that of the system, a full disk. That costs one warning, and changes no result."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dsolo_jax import cli, images
from dsolo_jax.datasets import miniature

pytestmark = pytest.mark.full_size

# Nobody's: without an entry among the users, and so without a home. The capability lets it read
# Python and the checkout wherever they are; it writes where anybody may.
_NOBODY = "--reuid=54321 --regid=54321 --clear-groups".split()
_READING = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search".split()


@pytest.fixture(scope="module")
def user():
    """What a command begins with that an unprivileged user starts."""
    if os.geteuid() != 0:
        return []
    start = ["setpriv", *_NOBODY, *_READING]
    if not shutil.which("setpriv") or subprocess.run([*start, sys.executable, "-c", ""]).returncode:
        pytest.skip("another user cannot be had here")
    return start


@pytest.fixture(params=["none", "the system's", "read-only", "full"])
def home(request, tmp_path):
    """Changes of the environment."""
    if request.param == "none":
        if os.geteuid() != 0:
            pytest.skip("the user has a home")
        yield {"HOME": None}
    elif request.param == "the system's":
        yield {"HOME": "/"}
    elif request.param == "read-only":
        (tmp_path / "home").mkdir(mode=0o555)
        yield {"HOME": str(tmp_path / "home")}
    else:
        disk = tmp_path / "disk"
        disk.mkdir()
        options = "size=1m,mode=777"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        try:
            yield {"HOME": str(disk)}
        finally:
            subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def run(user, home, tmp_path):
    """Runs a module with an output folder, and sees that it warns once."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    left_out = {"DSOLO_CACHE", *(key for key, value in home.items() if value is None)}
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    environment = kept | {key: value for key, value in home.items() if value is not None}

    def run(*arguments):
        done = subprocess.run(
            [*user, sys.executable, "-m", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        [warning] = [line for line in done.stderr.splitlines() if "Warning" in line]
        assert "nothing can be kept between runs" in warning and "DSOLO_CACHE" in warning
        return out

    return run, out


def test_segment(run, tmp_path):
    run, out = run
    images.write_png(tmp_path / "a.png", miniature.draw(3, 0).image)
    flags = ["segment", str(tmp_path / "a.png"), "--preset=miniature", "--classes=water; heart"]
    run("dsolo_jax", *flags, f"--output={out}/a.png")
    assert cli.main([*flags, f"--output={tmp_path}/here.png"]) == 0
    ours, theirs = (images.read_image(p) for p in (tmp_path / "here.png", out / "a.png"))
    np.testing.assert_array_equal(theirs, ours)


def test_eval(run):
    run, out = run
    flags = "--dataset=miniature --method=kl --limit=2 --panel=0".split()
    run("experiments.eval", *flags, f"--output_dir={out}/run")
    assert json.loads((out / "run" / "results.json").read_text())["num_images"] == 2
