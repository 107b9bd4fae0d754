"""`dsolo segment` in this process, and what it leaves."""

import numpy as np
from PIL import Image

from dsolo_jax import cli
from dsolo_jax.datasets import miniature

GIVEN = ["water", "sand", "circle, disc", "heart"]
LISTED = "; ".join(GIVEN)
NAMES = ["water", "sand", "circle", "heart"]


def segment(*arguments, classes=LISTED):
    """The exit code; `kl` needs no graph, so it is quick."""
    options = [f"--classes={classes}", "--method=kl", "--preset=miniature"]
    return cli.main(["segment", *map(str, arguments), *options])


def scene(index, size=None):
    """One of four drawn scenes."""
    image = Image.fromarray(miniature.draw(3, index % 4).image)
    return image if size is None else image.resize(size)


def wide(count):
    """Scenes side by side."""
    return np.concatenate([np.asarray(scene(index)) for index in range(count)], axis=1)


def files(folder):
    """All that is there and not hidden, by its place."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("."))


def table(folder):
    """Rows of shares.csv, by the pictures."""
    lines = (folder / "shares.csv").read_text().splitlines()
    return {line.split(",")[0]: [float(x) for x in line.split(",")[1:]] for line in lines[1:]}
