"""Labels a picture by the exported program beside this file.

python run.py PICTURE LABELS.png

Needs jax, flatbuffers, numpy, safetensors and Pillow. LABELS.png holds the number of a class for
each pixel, as export.json lists them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np
from PIL import Image, ImageOps
from safetensors.flax import load_file

FOLDER = Path(__file__).parent


def load(folder: Path = FOLDER) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Gives the function from uint8 [H, W, 3] to int32 [H, W], and the content of export.json."""
    settings = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    program = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    weights = load_file(folder / "weights.safetensors")
    compiled = jax.jit(program.call)
    return lambda pixels: np.asarray(compiled(weights, pixels)), settings


def main(picture: str, target: str) -> None:
    label, settings = load()
    with Image.open(picture) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    height, width = settings["size"]
    if pixels.shape != (height, width, 3):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        sys.exit(f"{picture} is {found} pixels, wanted {width} x {height}; resize it first")
    labels = label(pixels)
    if labels.min() < 0:
        sys.exit("the scores are not finite; export the model in float32")
    few = len(settings["classes"]) <= 256
    Image.fromarray(labels.astype(np.uint8 if few else np.uint16)).save(target)
    for number, name in enumerate(settings["classes"]):
        print(f"{number:3} {name:30} {(labels == number).mean():6.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
