"""Where a checkpoint's folder is, and what is said where there is none."""

import errno
import types

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from dsolo_jax import hub


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert hub.folder(tmp_path, ["*"]) == tmp_path


@pytest.mark.parametrize(
    "source", ["no-such-folder", "./no/such/folder", "a/b/c", "../no/such/folder", ""]
)
def test_neither_folder_nor_hub_id(source):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        hub.folder(source, ["*"])


def test_a_single_file_says_how_it_becomes_a_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ValueError, match=f"single file.*\n.*from_single_file\\('{path}'") as raised:
        hub.folder(path, ["*"])
    assert "transformers' names: put them into a folder" in str(raised.value)


def test_the_hub_is_asked_for_the_files_alone(monkeypatch, tmp_path):
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.folder("owner/name", ("config.json", "*.safetensors")) == tmp_path
    assert asked == {"owner/name": ["config.json", "*.safetensors"]}


def test_a_main_branch_without_safetensors_gives_way_to_the_hubs_own_conversion(
    monkeypatch, tmp_path
):
    def download(name, allow_patterns, revision="main"):
        snapshot = tmp_path / revision.replace("/", "_")
        snapshot.mkdir(exist_ok=True)
        if revision != "main":
            (snapshot / "model.safetensors").touch()
        return str(snapshot)

    def discussions(name, author, **_):
        titles = ("Adding safetensors", "Adding `safetensors` variant of this model")
        return [
            types.SimpleNamespace(title=title, git_reference=f"refs/pr/{number}")
            for number, title in enumerate(titles)
            if author == "SFconvertbot"
        ]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "get_repo_discussions", discussions)
    found = hub.folder("owner/name", ["config.json", "model*.safetensors"])
    assert found == tmp_path / "refs_pr_1"
    # Who asks for no weights gets the main branch.
    assert hub.folder("owner/name", ["config.json"]) == tmp_path / "main"


_ANSWER = types.SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("raised", "wanted", "words"),
    [
        (hub_errors.GatedRepoError("x", response=_ANSWER), PermissionError, "gated"),
        (hub_errors.RepositoryNotFoundError("x", response=_ANSWER), FileNotFoundError, "no such"),
        (hub_errors.LocalEntryNotFoundError("x"), ConnectionError, "could not be reached"),
        (hub_errors.OfflineModeIsEnabled("x"), ConnectionError, "could not be reached"),
        (hub_errors.HTTPError("x"), ConnectionError, "could not be reached"),
        (hub_errors.HfHubHTTPError("x", response=_ANSWER), ConnectionError, "could not be reached"),
        (TimeoutError("x"), ConnectionError, "could not be reached"),
    ],
)
def test_hub_failures_name_the_source_and_the_way_out(monkeypatch, raised, wanted, words):
    def download(*args, **kwargs):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(wanted, match=f"'owner/name'.*{words}.*local folder"):
        hub.folder("owner/name", ["*"])
    with pytest.raises(wanted, match=f"'owner/name'.*{words}.*take the other one"):
        hub.folder("owner/name", ["*"], "take the other one")


def test_why_the_hub_cannot_be_reached_is_said(monkeypatch):
    def download(*args, **kwargs):
        try:
            raise hub_errors.HfHubHTTPError("504 Gateway Timeout\nand more", response=_ANSWER)
        except hub_errors.HfHubHTTPError as error:
            raise hub_errors.LocalEntryNotFoundError("nothing is kept here") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        ConnectionError, match=r"\(HfHubHTTPError: 504 Gateway Timeout\); go online"
    ):
        hub.folder("owner/name", ["*"])


def test_a_full_disk_that_the_downloader_meets_keeps_its_words(monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("Data processing error: No space left on device (os error 28)")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(OSError, match="'owner/name' could not be downloaded: .*No space left"):
        hub.folder("owner/name", ["*"])


@pytest.mark.parametrize(
    "raised", [OSError(errno.ENOSPC, "No space left on device"), KeyError("ours"), TypeError("x")]
)
def test_what_is_not_the_hubs_keeps_its_own_words(monkeypatch, raised):
    """A full disk, or a fault of ours."""

    def download(*args, **kwargs):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(type(raised)) as caught:
        hub.folder("owner/name", ["*"])
    assert caught.value is raised
