"""What comes with the package: checkpoints in the layouts of the hub, the script of exports."""

import os
from pathlib import Path

_FOLDER = Path(__file__).parent
# Of each part, the names that it comes by.
BUNDLED = {"clip": ("miniature", "miniature_dense"), "stable_diffusion": ("miniature",)}
RUN = _FOLDER / "run.py"  # of an export


def bundled(source: str | os.PathLike, part: str) -> str | os.PathLike:
    """The folder of a bundled checkpoint's part, e.g. "clip"; any other source as it is."""
    return _FOLDER / str(source) / part if source in BUNDLED[part] else source
