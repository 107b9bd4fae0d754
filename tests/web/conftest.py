"""One service for all tests of a worker, with scenes of the drawn world as files."""

import numpy as np
import pytest
from PIL import Image

from dsolo_jax.datasets import miniature


@pytest.fixture(scope="session")
def service():
    from dsolo_jax.web.answer import Service

    return Service()


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A scene of grass, sky, sand and an arrow, as a PNG."""
    path = tmp_path_factory.mktemp("scenes") / "scene.png"
    Image.fromarray(miniature.draw(0, 85, split="validation").image).save(path)
    return path


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A picture of 50 megapixels in a small file."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    Image.fromarray(np.zeros((6250, 8000), np.uint8)).save(path)
    return path
