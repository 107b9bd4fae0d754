"""A checkpoint's folder: a local one or the hub's snapshot, and what is said when there is none."""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# All that is of the hub or of the way to it; a full disk keeps its own words.
_UNREACHABLE = (
    hub_errors.HTTPError,
    hub_errors.LocalEntryNotFoundError,
    hub_errors.OfflineModeIsEnabled,
    ConnectionError,
    TimeoutError,
)
_INSTEAD = "give a local folder in the layout of transformers or diffusers instead"


def folder(source: str | os.PathLike, files: Iterable[str], instead: str = _INSTEAD) -> Path:
    """The local folder of a checkpoint: `source` itself, or the hub's snapshot of it.

    Where the hub's main branch holds no safetensors, the conversion that the hub's own bot has left
    in a pull request is taken, as transformers does.

    Args:
        source: a folder, or a hub id "owner/name".
        files: patterns of the files wanted from the hub, e.g. "*.safetensors".
        instead: the way out that an error names where the hub does not answer.

    Raises:
        ValueError: `source` is a single file; the message says how to make a folder of it.
        OSError: `source` is neither, or gated; the hub cannot be reached and the local cache does
            not have it, or cannot be written.
    """
    path = Path(source).expanduser()
    if str(source) and path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"checkpoint {str(source)!r} is a single file, wanted a folder. Of Stable Diffusion, "
            "diffusers and torch make one:\n"
            '    python -c "from diffusers import StableDiffusionPipeline as P; '
            f"P.from_single_file('{path}').save_pretrained('FOLDER')\"\n"
            "Weights of a CLIP or a DINO in transformers' names: put them into a folder as "
            "model.safetensors, beside the config.json and tokenizer files of their model"
        )
    if path.exists() or not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"checkpoint {str(source)!r} is neither a folder nor a hub id of the form owner/name; "
            "check the spelling, or download it and give its folder"
        )
    name, files = str(source), list(files)
    fetch = functools.partial(huggingface_hub.snapshot_download, name, allow_patterns=files)
    try:
        snapshot = Path(fetch())
        asked_for_weights = any(pattern.endswith(".safetensors") for pattern in files)
        if asked_for_weights and not any(snapshot.rglob("*.safetensors")):
            snapshot = Path(fetch(revision=_conversion(name)))
        return snapshot
    except hub_errors.GatedRepoError as error:
        raise PermissionError(
            f"checkpoint {str(source)!r} is gated: accept its terms on the hub and log in with "
            f"`hf auth login`, or {instead}"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"checkpoint {str(source)!r}: there is no such folder, and no such repository on the "
            f"hub (a private one needs `hf auth login`); {instead}"
        ) from error
    except _UNREACHABLE as error:
        cause = error.__cause__ or error
        why = [type(cause).__name__, *str(cause).splitlines()[:1]]
        raise ConnectionError(
            f"checkpoint {str(source)!r}: there is no such folder, and the hub could not be "
            f"reached ({': '.join(why)}); go online, or {instead}"
        ) from error
    except RuntimeError as error:  # of hf_xet, which downloads
        raise OSError(f"checkpoint {str(source)!r} could not be downloaded: {error}") from error


def _conversion(name: str) -> str | None:
    """The revision in which the hub's bot has converted a repository to safetensors."""
    discussions = huggingface_hub.get_repo_discussions(
        name, author="SFconvertbot", discussion_type="pull_request", discussion_status="open"
    )
    title = "Adding `safetensors` variant of this model"
    return next((d.git_reference for d in discussions if d.title == title), None)
