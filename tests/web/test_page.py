"""The page's server as a client without a browser sees it: what it accepts, and what it refuses."""

import argparse
import asyncio
import json
import socket
import sys
import threading

import httpx
import pytest

from dsolo_jax import web
from dsolo_jax.utils.extras import MissingExtraError
from dsolo_jax.web import answer
from dsolo_jax.web.guard import Guard

FILE = {"_type": "gradio.FileData"}
HOW = [["grass", "sky", "arrow"], False, "miniature", *["the preset's own"] * 3]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def client(service):
    """A client of a running page, whose limit of an upload is 100 kB."""
    from dsolo_jax.web import page  # with Gradio, two seconds

    small = service.limits._replace(upload=100_000)
    usual, service.limits = service.limits, small
    with page.temporary_folder() as folder:
        blocks = page.build(service, folder)
        how = page.launching(service)
        blocks.launch(**how, server_name="127.0.0.1", server_port=free_port())
        with httpx.Client(base_url=blocks.local_url, timeout=60) as found:
            found.folder, found.page = folder, blocks
            yield found
        blocks.close()
    assert not folder.exists()
    service.limits = usual


def asked(client, picture, *how):
    """What the endpoint `segment` answers: the events' names and what they hold."""
    data = [picture, *(how or HOW)]
    made = client.post("/gradio_api/call/segment", json={"data": data})
    if made.status_code != 200:
        return [("refused", made.text)]
    found = client.get(f"/gradio_api/call/segment/{made.json()['event_id']}").text
    lines = [line.partition(": ")[2] for line in found.splitlines() if line]
    return list(zip(lines[::2], lines[1::2], strict=True))


def uploaded(client, path):
    with path.open("rb") as file:
        sent = client.post("/gradio_api/upload", files={"files": (path.name, file)})
    sent.raise_for_status()
    return {"path": sent.json()[0], "meta": FILE}


def test_a_picture_is_uploaded_and_segmented(client, scene):
    [*_, (event, data)] = asked(client, uploaded(client, scene))
    assert event == "complete"
    view, *_ = json.loads(data)
    assert [one["name"] for one in view["classes"]] == ["grass", "sky", "arrow"]
    assert view["size"] == [112, 112]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/gradio_api/file=/etc/passwd", "../../etc/passwd"]
)
@pytest.mark.parametrize(
    "others",
    [{"meta": FILE}, {}, {"meta": FILE, "url": "/etc/passwd"}, {"meta": FILE, "is_stream": True}],
)
def test_no_path_of_a_client_is_opened(client, path, others):
    [*_, (event, data)] = asked(client, {"path": path, **others})
    assert event != "complete", data
    assert "root:" not in data
    assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_no_picture_outside_the_uploads_is_opened(client, scene):
    # Gradio looks at paths only of what says that it is a file.
    [*_, (event, data)] = asked(client, {"path": str(scene)})
    assert event != "complete" and "was not uploaded here" in data


def test_a_string_instead_of_a_file_is_refused(client):
    [*_, (event, _)] = asked(client, "/etc/passwd")
    assert event != "complete"


@pytest.mark.parametrize("field", ["path", "url"])
def test_no_address_of_a_client_is_fetched(client, field):
    reached = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)

        def wait():
            try:
                other.accept()[0].close()
                reached.set()
            except OSError:
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        address = f"http://127.0.0.1:{other.getsockname()[1]}/x.png"
        picture = {"path": "x.png", "meta": FILE, field: address}
        [*_, (event, data)] = asked(client, picture)
        thread.join()
    assert event != "complete" and not reached.is_set()
    assert field == "url" or "none is fetched from an address" in data


def test_a_picture_inside_the_request_is_not_taken(client):
    inline = "data:image/png;base64,iVBORw0KGgo="
    for picture in ({"path": inline, "meta": FILE}, {"path": None, "url": inline, "meta": FILE}):
        [*_, (event, data)] = asked(client, picture)
        assert event != "complete" or "error" in json.loads(data)[0]


def test_what_cannot_be_answered_is_told_in_words(client, scene, tmp_path):
    text = tmp_path / "letter.txt"
    text.write_text("a letter, not a picture")
    for picture, classes, said in (
        (uploaded(client, text), ["sky"], "this file"),
        (uploaded(client, scene), [], "no classes are given"),
        (uploaded(client, scene), [f"class {i}" for i in range(300)], "at most 200"),
        (None, ["sky"], "no picture is given"),
    ):
        [*_, (event, data)] = asked(client, picture, classes, *HOW[1:])
        assert event == "complete"
        assert said in json.loads(data)[0]["error"]
        assert str(client.folder) not in data


def test_large_requests_are_refused(client, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(150_000))  # above the page's limit, below that of the server
    with large.open("rb") as file:
        sent = client.post("/gradio_api/upload", files={"files": ("large.png", file)})
    assert sent.status_code == 413
    large.write_bytes(bytes(3_000_000))
    with large.open("rb") as file:
        sent = client.post("/gradio_api/upload", files={"files": ("large.png", file)})
    assert sent.status_code == 413
    sent = client.post("/gradio_api/call/segment", json={"data": ["x" * 2_100_000]})
    assert sent.status_code == 413

    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "path, most", [("/gradio_api/queue/join", 2_000_000), ("/up/upload", 600_000)]
)
def test_requests_of_no_announced_length_are_cut_off(path, most):
    given, taken = [], []

    async def app(scope, receive, send):
        while (found := await receive())["type"] == "http.request":
            taken.append(len(found["body"]))

    async def receive():
        given.append(100_000)
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    scope = {"type": "http", "path": path, "headers": []}
    asyncio.run(Guard(app, upload=500_000)(scope, receive, None))
    assert sum(taken) == most and sum(given) == most + 100_000


def test_what_was_uploaded_and_made_is_removed_in_time(client, scene):
    from gradio.route_utils import delete_files_created_by_app

    sent = uploaded(client, scene)
    for name, data in (("segment", [sent, *HOW]), ("download", [])):
        join = {"session_hash": "one", "data": data}
        made = client.post(f"/gradio_api/call/{name}", json=join).json()
        text = client.get(f"/gradio_api/call/{name}/{made['event_id']}").text
        assert "event: complete" in text
    files = [path for path in client.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".png", ".zip"}
    # As Gradio does every ten minutes, of files that are an hour old.
    delete_files_created_by_app(client.page, age=None)
    left = [path for path in client.folder.rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} <= {"examples"}


def test_nothing_of_the_page_comes_from_elsewhere(client):
    front = client.get("/")
    policy = front.headers["content-security-policy"]
    assert "default-src 'self' data: blob:;" in policy
    assert "http" not in policy and "*" not in policy
    assert client.get("/gradio_api/runs").status_code == 404  # nothing is recorded
    assert client.get("/docs").status_code == 404
    assert client.get("/monitoring").status_code != 200


def test_downloads_are_of_what_was_asked_last_by_the_same_person(client, scene):
    picture = uploaded(client, scene)
    made = client.post("/gradio_api/call/segment", json={"data": [picture, *HOW]}).json()
    client.get(f"/gradio_api/call/segment/{made['event_id']}")
    other = client.post("/gradio_api/call/download", json={"data": []}).json()["event_id"]
    assert "event: error" in client.get(f"/gradio_api/call/download/{other}").text


def _command(*arguments):
    parser = argparse.ArgumentParser()
    web.add_arguments(parser)
    return web.run(parser.parse_args(arguments))


def test_a_port_that_is_taken_is_told(monkeypatch, service, capsys):
    monkeypatch.setattr(answer, "Service", lambda *_: service)
    monkeypatch.setattr("dsolo_jax.web.page._WARM", ())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1, port {port} .*--port"):
            _command(f"--port={port}")
    assert capsys.readouterr().err == ""


def test_options_become_limits_and_other_hosts_are_warned_of(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(answer, "Service", lambda *given: given)
    monkeypatch.setattr("dsolo_jax.web.page.serve", lambda *given: seen.append(given))
    many = "--max-upload=5", "--max-pixels=2", "--max-classes=999"
    assert _command("--preset=miniature, clip_b16", "--host=0.0.0.0", *many) == 0
    [((presets, sources, limits), host, port)] = seen
    assert (presets, sources, host, port) == (["miniature", "clip_b16"], [], "0.0.0.0", 7860)
    assert (limits.upload, limits.pixels, limits.classes) == (5_000_000, 2_000_000, 255)
    assert "others may reach it" in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dsolo-jax\[web\]"'):
        _command()
