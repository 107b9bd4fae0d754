"""Checkpoints that come with the package, in the layouts of the hub."""

import os
from pathlib import Path

_FOLDER = Path(__file__).parent
BUNDLED = ("miniature",)


def bundled(source: str | os.PathLike, part: str) -> str | os.PathLike:
    """The folder of a bundled checkpoint's part, e.g. "clip"; any other source as it is."""
    return _FOLDER / str(source) / part if source in BUNDLED else source
