"""The container without an engine: the Dockerfile's own commands, each where it would run.

The wheel is built of what `.dockerignore` lets in and installed into an empty environment. The page
is started as the Dockerfile's user, without rights, a home or a network, on a read-only root where
the volume and /tmp alone can be written. Its health is asked for by the Dockerfile's own command,
and a client uploads a scene and gets its labels.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.test_release import ROOT, all_of

pytestmark = pytest.mark.full_size

# Runs in mount, network and process namespaces of its own, the last of which ends with it.
_SERVE = """
set -eu
cd /
mount --make-rprivate /
mount --bind {base} {work}/python
ip link set lo up
mount -t tmpfs tmpfs /tmp
mount --bind {work}/cache {work}/cache
mount -o remount,bind,ro /
user="setpriv --reuid={uid} --regid={gid} --clear-groups --inh-caps=-all --bounding-set=-all"
user="env --ignore-environment {environment} $user --no-new-privs"
cd /tmp
if touch {work}/x /x 2> /dev/null; then echo "the root can be written"; exit 1; fi
$user {serve} &
server=$!
for second in $(seq 90); do
  if $user {health} 2> /dev/null; then echo healthy; break; fi
  kill -0 $server
  sleep 1
done
$user {ask}
kill -TERM $server
wait $server || test $? = 143
echo "the page has ended"
"""

_ASK = """
import io, json, socket
import httpx
from PIL import Image
from dsolo_jax.datasets import miniature

try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError:
    print("no network")
scene, file = miniature.draw(0, 85, split="validation"), io.BytesIO()
Image.fromarray(scene.image).save(file, format="PNG")
client = httpx.Client(base_url="http://127.0.0.1:{port}", timeout=120)
[path] = client.post("/gradio_api/upload", files={{"files": ("a.png", file.getvalue())}}).json()
picture = {{"path": path, "meta": {{"_type": "gradio.FileData"}}}}
how = ["grass", "sky", "arrow"], False, "miniature", *["the preset's own"] * 3
made = client.post("/gradio_api/call/segment", json={{"data": [picture, *how]}}).json()
lines = client.get("/gradio_api/call/segment/" + made["event_id"]).text.splitlines()
data = [line.partition(": ")[2] for line in lines if line.startswith("data")][-1]
print("classes", [one["name"] for one in json.loads(data)[0]["classes"]])
"""


@pytest.fixture
def work():
    """A folder that is not below /tmp, which the container has for itself."""
    folder = Path(tempfile.mkdtemp(prefix="container", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _python() -> tuple[str, Path]:
    """A Python of the container's version if there is one here, else this one; its folder."""
    image = all_of("FROM")[0].split()[0]
    version = image.removeprefix("python:").removesuffix("-slim")
    ask = ["-c", "import sys; print(sys.base_prefix)"]
    for python in (shutil.which(f"python{version}"), sys.executable):
        done = python and subprocess.run([python, *ask], capture_output=True, text=True)
        if done and done.returncode == 0:  # pyenv has commands of versions that are not chosen
            return python, Path(done.stdout.strip())
    raise AssertionError("this Python itself does not run")


def test_the_dockerfiles_commands_serve_the_page_to_nobody_offline(work):
    allowed = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True)
    if os.geteuid() != 0 or allowed.returncode:
        pytest.skip("namespaces of one's own cannot be had here")
    for name in ("source", "wheels", "cache", "python"):
        (work / name).mkdir()
    *files, folder = [name for rest in all_of("COPY")[:2] for name in rest.split()[:-1]]
    for name in files:
        shutil.copy(ROOT / name, work / "source")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / folder, work / "source" / folder, ignore=ignored)

    # Pip's own settings of this machine are kept: they say where packages are.
    python, base = _python()
    subprocess.run([python, "-m", "venv", work / "venv"], check=True)
    path = f"{work}/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    [build, install, volume] = [
        command.replace("/wheels", f"{work}/wheels").replace("/cache", f"{work}/cache")
        for command in all_of("RUN")
    ]
    volume = volume.replace(f"mkdir {work}/cache", "true")
    for command in (build, install, volume):
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=work / "source",
            env=kept | {"PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    # The environment's Python may lie where nobody may look; it is bound to where all may.
    for link in (work / "venv/bin").iterdir():
        if link.is_symlink() and (real := link.readlink()).is_relative_to(base):
            link.unlink()
            link.symlink_to(work / "python" / real.relative_to(base))
    configured = work / "venv/pyvenv.cfg"
    configured.write_text(configured.read_text().replace(str(base), f"{work}/python"))

    uid, gid = all_of("USER")[0].split(":")
    [port], [health] = all_of("EXPOSE"), all_of("HEALTHCHECK")
    caches = all_of("ENV")[0].replace("=/cache", f"={work}/cache")
    # A Python that was built elsewhere looks for its own library there.
    environment = f"PATH={path} LD_LIBRARY_PATH={work}/python/lib HOME=/nonexistent {caches}"
    serve = [*json.loads(all_of("ENTRYPOINT")[0]), *json.loads(all_of("CMD")[0])]
    script = _SERVE.format(
        base=base,
        work=work,
        uid=uid,
        gid=gid,
        environment=environment,
        serve=shlex.join(serve),
        health=shlex.join(json.loads(health.partition("CMD ")[2])),
        ask=shlex.join(["python", "-c", _ASK.format(port=port)]),
    )
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = subprocess.run(
        [*namespaces, "bash", "-c", script], capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for line in ("healthy", "no network", "classes ['grass', 'sky', 'arrow']", "has ended"):
        assert line in said, said
    assert "Traceback" not in said and "cache" not in done.stderr.lower(), said
    kept_there = {path.relative_to(work / "cache").parts[0] for path in (work / "cache").iterdir()}
    assert kept_there >= {"dsolo"}
    assert {path.stat().st_uid for path in (work / "cache").iterdir()} == {int(uid)}
