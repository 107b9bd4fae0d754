"""The pictures' way to the device: read, decoded, resized and cut, beside a PyTorch DataLoader."""

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dsolo_jax import clip, datasets, images
from dsolo_jax.datasets import Dataset
from dsolo_jax.transformer import patchify
from experiments.benchmarks.shapes import shapes
from experiments.benchmarks.timing import compare

_PICTURES, _WORKERS = 96, 2
_SHORT_SIDE, _LONG_SIDE = 336, 2048


def run() -> list[dict]:
    """JPEGs and index PNGs of ADE20K's shapes; both sides have two workers and no device."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = _write(Path(folder))
        jobs = {"ours": functools.partial(_ours, dataset)}
        if importlib.util.find_spec("torch"):
            jobs["torch DataLoader, 2 workers"] = _theirs(dataset)
        seconds = compare(jobs, repeats=3)
    ours = seconds.pop("ours")
    row = {
        "stage": "host",
        "case": f"{_PICTURES} pictures: decode, resize, cut",
        "seconds": ours,
        "pictures_per_second": _PICTURES / ours,
    }
    for name, theirs in seconds.items():
        row |= {"baseline": name, "baseline_seconds": theirs, "ratio": ours / theirs}
    return [row]


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
    pixels, patch = example["image"], clip.VIT_B16.vision.patch_size
    size = images.resized_size(
        *pixels.shape[:2], short_side=_SHORT_SIDE, long_side=_LONG_SIDE, multiple=patch
    )
    [patches] = patchify(images.normalise(images.resize(pixels, size))[None], patch)
    return patches, example["labels"]


def _ours(dataset: Dataset) -> int:
    return sum(1 for _ in datasets.examples(dataset, range(len(dataset)), transform=_ready))


def _theirs(dataset: Dataset) -> Callable[[], int]:
    """The same files, PIL and torch, in worker processes: mmsegmentation's way without mmcv."""
    import torch

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            encoded = dataset.encoded(index)
            pixels = images.decode_image(encoded.image, encoded.image_name)
            labels = images.decode_labels(encoded.labels, encoded.labels_name)
            size = images.resized_size(
                *pixels.shape[:2], short_side=_SHORT_SIDE, long_side=_LONG_SIDE, multiple=16
            )
            small = torch.from_numpy(images.resize(pixels, size).copy()).permute(2, 0, 1).float()
            mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.CLIP_MEAN, images.CLIP_STD))
            return (small / 255 - mean) / std, torch.from_numpy(labels)

    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=1, num_workers=_WORKERS, collate_fn=lambda batch: batch
    )
    return lambda: sum(1 for _ in loader)
