"""The pictures' way to the device: read, decoded, resized and cut, beside a PyTorch DataLoader."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dsolo_jax import clip, datasets, images
from dsolo_jax.datasets import Dataset
from dsolo_jax.transformer import patchify
from experiments.benchmarks.shapes import shapes
from experiments.benchmarks.timing import rows, torch_jobs

_PICTURES, _WORKERS = 96, 2
_SHORT_SIDE, _LONG_SIDE = 336, 2048


def run() -> list[dict]:
    """JPEGs and index PNGs of ADE20K's shapes; both sides have two workers and no device."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = _write(Path(folder))
        jobs = {"ours": lambda: _ours(dataset)}
        jobs |= torch_jobs("loader", dataset, _WORKERS, _SHORT_SIDE, _LONG_SIDE)
        case = f"{_PICTURES} pictures: decode, resize, cut"
        found = rows("host", case, jobs, repeats=3)
    return [row | {"pictures_per_second": _PICTURES / row["seconds"]} for row in found]


def _write(folder: Path) -> Dataset:
    """Photograph-like pictures: smooth, with some noise."""
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number, (height, width) in enumerate(shapes(_PICTURES)):
        blobs = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-12, 13, smooth.shape, np.int16)
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        picture.save(folder / "images" / f"{number:03d}.jpg", quality=90)
        labels = Image.fromarray(random.integers(0, 150, (12, 16), np.uint8))
        labels = labels.resize((width, height), Image.Resampling.NEAREST)
        labels.save(folder / "labels" / f"{number:03d}.png")
    (folder / "classes.txt").write_text("".join(f"class {c}\n" for c in range(150)))
    return datasets.load_folder(folder / "images", folder / "labels", folder / "classes.txt")


def _ready(example: dict) -> tuple[np.ndarray, np.ndarray]:
    """Patches at the working size, and the truth: what `dsolo.prepare` does."""
    config, pixels = clip.VIT_B16, example["image"]
    patch = config.vision.patch_size
    size = images.resized_size(
        *pixels.shape[:2], short_side=_SHORT_SIDE, long_side=_LONG_SIDE, multiple=patch
    )
    resized = images.resize(pixels, size)
    normalised = images.normalise(resized, config.image_mean, config.image_std)
    [patches] = patchify(normalised[None], patch)
    return patches, example["labels"]


def _ours(dataset: Dataset) -> int:
    return sum(1 for _ in datasets.examples(dataset, range(len(dataset)), transform=_ready))
