"""The wheel, installed as in a container: `pytest -m browser tests/web/test_container.py`, as root.

DSOLO_PYTHON names an interpreter that every user may run, /usr/bin/python3 if unset.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not shutil.which("unshare") or not shutil.which("setpriv") or os.geteuid() != 0,
        reason="needs Linux's namespaces, and root to give it up",
    ),
]

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("DSOLO_PYTHON", "/usr/bin/python3")


@pytest.fixture
def room():
    """A folder that every user may read, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "tmp").mkdir()
        yield path


def test_it_runs_offline_as_a_user_without_a_home(room, scene):
    def run(*command):
        subprocess.run([str(part) for part in command], check=True, cwd=room)

    pip = sys.executable, "-m", "pip"
    run(*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={room}", ROOT)
    [wheel] = room.glob("*.whl")
    run(PYTHON, "-m", "venv", "--without-pip", room / "env")
    run(*pip, f"--python={room / 'env/bin/python'}", "install", "--quiet", f"{wheel}[web]")
    picture = room / "scene.png"
    shutil.copyfile(scene, picture)
    script = Path(__file__).with_name("container.sh")
    how = {"capture_output": True, "text": True, "timeout": 300}
    found = subprocess.run([script, room / "env", room, picture], **how)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "answered: grass 0." in found.stdout and "dsolo_masks.zip" in found.stdout
    assert "ended well" in found.stdout
    assert "\nwritten elsewhere: \n" in found.stdout + "\n"
