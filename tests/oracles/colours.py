"""Coloured scenes with labels, and a CLIP set by hand that knows eight colours and nothing else.

Its files are in the hub's formats and are read like any real checkpoint's.
"""

import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from dsolo_jax import clip, images
from dsolo_jax.checkpoints import flatten, unflatten
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.utils.files import atomic
from experiments.training.tokenizer import write_tokenizer

COLOURS = {
    "tomato": (200, 40, 40),
    "grass": (60, 140, 50),
    "sky": (70, 120, 210),
    "lemon": (230, 200, 50),
    "snow": (245, 245, 245),
    "coal": (25, 25, 25),
    "plum": (130, 50, 150),
    "carrot": (240, 130, 30),
}
CLASSES = ("sky", "grass", "lemon", "tomato, cherry", "snow", "coal", "plum", "carrot")
_SYNONYMS = {"cherry": "tomato"}


def write(folder: Path, num_pictures: int) -> None:
    """images/, labels/, classes.txt and clip/."""
    write_clip(folder / "clip")
    for number in range(num_pictures):
        picture, labels = scene(np.random.default_rng(number))
        images.write_png(folder / "images" / f"scene_{number}.png", picture)
        images.write_png(folder / "labels" / f"scene_{number}.png", labels)
    with atomic(folder / "classes.txt") as temporary:
        temporary.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def scene(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A landscape of coloured things under uneven light: picture [H, W, 3], labels [H, W]."""
    height, width = random.integers(240, 400, 2)
    canvas = Image.new("L", (int(width), int(height)), 0)  # class 0 is the sky's
    draw = ImageDraw.Draw(canvas)
    x = np.linspace(0, width, 40)
    horizon = height * (0.6 + 0.05 * np.sin(x / width * random.uniform(4, 12)))
    draw.polygon([*zip(x, horizon, strict=True), (width, height), (0, height)], fill=1)
    for label in random.choice(np.arange(2, len(CLASSES)), 4, replace=False):
        radius = random.uniform(0.12, 0.2) * min(height, width)
        cx, cy = random.uniform(0.15, 0.85, 2) * (width, height)
        box = (cx - radius, cy - radius, cx + radius, cy + radius)
        (draw.ellipse if random.uniform() < 0.5 else draw.rectangle)(box, fill=int(label))
    labels = np.asarray(canvas)
    colours = np.array([COLOURS[name.split(",")[0]] for name in CLASSES])
    light = 1 + 0.15 * np.cos(np.arange(width) / width * random.uniform(2, 6))[None, :, None]
    picture = colours[labels] * light + random.normal(0, 14, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), labels.astype(np.int32)


def write_clip(folder: Path) -> None:
    """A CLIP of two blocks a tower, in a space with one axis for each colour and one for all.

    Of the width, 8 numbers hold a patch's colour as (c, −c, 1, −1) and 8 + 8 the axes ±w, so that
    means are zero and layer norms keep directions. Block 0: patches of a colour attend to each
    other; an MLP unit a colour fires on what is near it and writes to its axis. Block 1: attention
    along the axes, and the class token takes the mean. Words have their axis from the start, all
    other words of a prompt are zero, and the end token takes the mean over the prompt. What all
    share (the ±1) keeps cosines in a range of 0.2, as narrow as a trained CLIP's.
    """
    count, width = len(COLOURS), 8 + 2 * len(COLOURS)
    words = [*COLOURS, *_SYNONYMS]
    size = write_tokenizer(folder, [*words, *IMAGENET_TEMPLATES], 10_000, 77)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    config = clip.ClipConfig(
        vision=clip.VisionConfig(width, count, 2, 1, image_size=112, patch_size=16),
        text=clip.TextConfig(size, width, count, 2, 1, eos_token_id=size - 1),
        projection_dim=count + 1,
    )
    axes = np.concatenate([np.zeros((count, 8)), np.eye(count), -np.eye(count)], axis=1)
    colours = np.array(
        [(np.array(c) / 255 - config.image_mean) / config.image_std for c in COLOURS.values()]
    )
    ones = np.ones((count, 1))
    near = np.concatenate([colours, -colours, ones, -ones], axis=1)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    # A normalised patch has length √width; a unit fires where its cosine to the colour is > 0.9.
    fires = 0.9 * np.sqrt(width)

    on_colour, on_axes = np.diag(np.arange(width) < 8), np.diag(np.arange(width) >= 8)
    shared = np.zeros((width, 1))
    shared[6:8] = [[1], [-1]]
    mean_colour = np.zeros((16, 16, 3, width))
    mean_colour[..., :3], mean_colour[..., 3:6] = np.eye(3) / 16**2, -np.eye(3) / 16**2
    positions = np.zeros((1 + 7 * 7, width))
    positions[:, 6:8] = 1, -1
    tokens = np.zeros((size, width))
    for word in words:
        axis = axes[list(COLOURS).index(_SYNONYMS.get(word, word))]
        tokens[vocabulary[f"{word}</w>"]] = 5 * axis + shared[:, 0]
    by_hand = {
        "vision/patch_kernel": mean_colour,
        "vision/positions": positions,
        "vision/blocks_0/query/kernel": 2 * on_colour,
        "vision/blocks_0/key/kernel": 2 * on_colour,
        "vision/blocks_0/expand/kernel": 10 * np.pad(near.T, ((0, 2 * count), (0, 0))),
        "vision/blocks_0/expand/bias": np.full(count, -10 * fires),
        "vision/blocks_0/contract/kernel": axes,
        "vision/blocks_1/query/kernel": on_axes,
        "vision/blocks_1/key/kernel": on_axes,
        "text/tokens": tokens,
    }
    for tower in ("vision", "text"):
        by_hand[f"{tower}/blocks_1/value/kernel"] = np.diag(np.arange(width) >= 6)
        by_hand[f"{tower}/blocks_1/out/kernel"] = np.eye(width)
        by_hand[f"{tower}/projection/kernel"] = np.hstack([axes.T, 10 * shared])
    params = flatten(clip.init(config, jax.random.key(0)))
    params |= {path: np.zeros(x.shape) for path, x in params.items() if "norm" not in path}
    params = {path: np.asarray(x, np.float32) for path, x in (params | by_hand).items()}
    clip.save(folder, config, unflatten(params))
