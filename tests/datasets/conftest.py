"""Small datasets in the layouts of the originals."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def ade20k(tmp_path):
    """An ADEChallengeData2016 of four validation pictures, written out of order."""
    root = tmp_path / "original" / "ADEChallengeData2016"
    images, labels = root / "images" / "validation", root / "annotations" / "validation"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in (3, 1, 4, 2):
        rng, size = np.random.default_rng(number), (5 + number, 9)
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        stored = rng.integers(0, 151, size, dtype=np.uint8)
        stored[0, :2] = 0, 150
        Image.fromarray(picture).save(images / f"ADE_val_{number:08d}.jpg")
        Image.fromarray(stored).save(labels / f"ADE_val_{number:08d}.png")
    return root
