"""2,000 pictures of ADE20K's shapes: programs compiled, and the work that padding adds."""

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import clip, images, pipeline, upsample
from dsolo_jax.clip.towers import parameter_shapes
from dsolo_jax.upsample.strips import TILE, cut
from experiments.benchmarks.timing import product_flops
from experiments.profiling import Compilations, Stopwatch

_PICTURES, _CLASSES = 2000, 150
# Of the solver with Stable Diffusion 2 at 512 pixels.
_GRID = 64


def shapes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Random (height, width), as in ADE20K's SceneParsing release.

    There the short side is brought to 512 pixels unless it is smaller. Six in ten have it here, the
    others log-uniformly from 96 to 1600; proportions are those of cameras, or log-normal around
    4 : 3, up to 4 : 1; three in four lie.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        short = 512 if random.random() < 0.6 else np.exp(random.uniform(np.log(96), np.log(1600)))
        camera = random.choice([1, 5 / 4, 4 / 3, 3 / 2, 16 / 9], p=[0.1, 0.05, 0.5, 0.25, 0.1])
        drawn = np.exp(np.abs(random.normal(np.log(4 / 3), 0.3)))
        aspect = min(camera if random.random() < 0.8 else drawn, 4)
        size = round(short), round(short * aspect)
        found.append(size if random.random() < 0.75 else size[::-1])
    return found


def run() -> list[dict]:
    """Counts the programs of the two stages whose shapes depend on the picture's.

    Every shape that could need its own is run once: through an encoder that is narrow, but has
    B/16's patches and so as many programs, and through the upsampling. Work is counted for B/16:
    FLOPs of its products at the padded and at the true number of patches, and pixels of the tiles
    against those of the pictures.
    """
    sizes = shapes(_PICTURES)
    grids = [
        tuple(side // 16 for side in sides)
        for sides in (
            images.resized_size(*size, short_side=336, long_side=2048, multiple=16)
            for size in sizes
        )
    ]
    lengths = [height * width for height, width in grids]
    padded = [pipeline.bucket(length) for length in lengths]
    watch = Stopwatch()
    programs = _programs(sizes, dict(zip(padded, grids, strict=True)))
    watch("programs")
    flops = {n: _clip_flops(n) for n in {*lengths, *padded}}
    encoder = sum(flops[n] for n in padded) / sum(flops[n] for n in lengths) - 1
    tiles = sum(map(_tile_pixels, sizes)) / sum(height * width for height, width in sizes) - 1
    about = f"{len(sizes)} pictures of {len(set(sizes))} shapes"
    row = {"stage": "shapes", "seconds": watch.seconds["programs"]}
    return [
        row | {"case": f"{about}: programs", "programs": programs},
        row | {"case": f"{about}: CLIP, FLOPs", "padding": encoder},
        row | {"case": f"{about}: upsampling, pixels", "padding": tiles},
    ]


def _tile_pixels(size: tuple[int, int]) -> int:
    """Of all tiles of a picture, those included that fill up a cell's last."""
    group, _, places = cut(size, (_CLASSES, _GRID, _GRID))
    *_, first, last, tiles = places.T
    return int(((last - first) * tiles).sum()) * group * _GRID * TILE


def _programs(sizes: list[tuple[int, int]], grids: dict[int, tuple[int, int]]) -> int:
    """Programs of CLIP over all lengths, one grid each, and of the upsampling over all sizes."""
    compilations = Compilations()
    vision = clip.VisionConfig(16, 16, 1, 1, image_size=224, patch_size=16)
    config = clip.ClipConfig(vision, clip.TextConfig(8, 16, 16, 1, 1, eos_token_id=1), 8)
    params = clip.init(config, jax.random.key(0))
    scores = jnp.zeros((4, 16, 16), jnp.float32)
    jax.block_until_ready((params, scores))
    before = compilations.programs.total()
    encode = jax.jit(clip.encode_patches, static_argnames=("config", "start"))
    for length, grid in grids.items():
        patches = np.zeros((1, length, 3 * 16**2), np.float32)
        encode(params, config, patches, np.array([grid], np.int32), start="naclip")
    for size in {cut(size, scores.shape)[:2]: size for size in sizes}.values():
        upsample.labels(scores, np.zeros((*size, 3), np.uint8))()
    return compilations.programs.total() - before


def _clip_flops(length: int) -> int:
    """Of B/16's image tower on that many patches."""
    config = clip.VIT_B16
    arguments = (
        parameter_shapes(config),
        jax.ShapeDtypeStruct((1, length, 3 * config.vision.patch_size**2), np.float32),
        jax.ShapeDtypeStruct((1, 2), np.int32),
    )
    return product_flops(
        lambda params, *pictures: (
            clip.encode_patches(params, config, *pictures, start="naclip").patches
        ),
        *arguments,
    )
