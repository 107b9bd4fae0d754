"""2,000 pictures of ADE20K's shapes: programs compiled, and the work that padding adds."""

import jax
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import clip, images, pipeline, readings, upsample, vocabulary
from dsolo_jax.clip.towers import parameter_shapes
from experiments.benchmarks.timing import product_flops
from experiments.compilations import Compilations
from experiments.stopwatch import Stopwatch

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
    """Counts programs on a run over one picture of every shape that could need its own.

    The encoder is a narrow one of B/16's patches, whose programs are as many. Work is counted for
    B/16: FLOPs of its products at the padded and at the true number of patches, and pixels of the
    tiles against those of the pictures.
    """
    sizes = shapes(_PICTURES)
    watch = Stopwatch()
    programs = _programs(sizes)
    watch("programs")
    grids = [
        images.resized_size(*size, short_side=336, long_side=2048, multiple=16) for size in sizes
    ]
    lengths = np.array([height * width // 256 for height, width in grids])
    padded = np.array([pipeline.bucket(int(length)) for length in lengths])
    flops = {n: _clip_flops(int(n)) for n in np.unique([*lengths, *padded])}
    encoder = _added([flops[n] for n in padded], [flops[n] for n in lengths])
    shape = (_CLASSES, _GRID, _GRID)
    tiles = _added([upsample.tile_pixels(size, shape) for size in sizes], [h * w for h, w in sizes])
    return [
        {
            "stage": "shapes",
            "case": f"{len(sizes)} pictures of {len(set(sizes))} shapes: {case}",
            "seconds": watch.seconds["programs"],
            **row,
        }
        for case, row in {
            "programs": {"programs": programs},
            "CLIP, FLOPs": {"padding": encoder},
            "upsampling, pixels": {"padding": tiles},
        }.items()
    ]


def _added(done: list[float], needed: list[float]) -> float:
    return sum(done) / sum(needed) - 1


def _programs(sizes: list[tuple[int, int]]) -> int:
    """Programs of graph, CLIP, solver and upsampling over all of the shapes."""
    vision = clip.VisionConfig(16, 16, 1, 1, image_size=224, patch_size=16)
    config = clip.ClipConfig(vision, clip.TextConfig(8, 16, 16, 1, 1, eos_token_id=1), 8)
    model = pipeline.spread(
        dsolo.Model(
            config,
            clip.init(config, jax.random.key(0)),
            None,
            "clip",
            ("0",),
            readings.Readings(),
            grid=16,
        )
    )
    words = vocabulary.parse([str(c) for c in range(4)])
    model.embeddings[words] = np.eye(4, 8, dtype=np.float32)
    compilations = Compilations()
    seen = set()
    for size in sizes:
        picture = dsolo.prepare(model, np.zeros((*size, 3), np.uint8))
        length = upsample.strip_length(size, (4, 16, 16))
        needs = pipeline.bucket(len(picture.patches)), length
        if needs in seen:  # no shape of an argument would be a new one
            continue
        seen.add(needs)
        encoded = pipeline.encode(model, [picture], words, "naclip", None)
        scores = pipeline.solve(encoded, words, "velocity", model.readings, model.mesh)
        truth = np.zeros((1, *size), np.int32)
        pipeline.compare(
            model, [picture], [truth], scores, model.readings, ignore=255, keep_labels=False
        )
    return compilations.programs.total()


def _clip_flops(length: int) -> int:
    """Of B/16's image tower on that many patches."""
    config = clip.VIT_B16
    size = 3 * config.vision.patch_size**2
    params = parameter_shapes(config)
    patches = jax.ShapeDtypeStruct((1, length, size), np.float32)
    grid = jax.ShapeDtypeStruct((1, 2), np.int32)
    return product_flops(
        lambda params, patches, grid: (
            clip.encode_patches(params, config, patches, grid, start="naclip").patches
        ),
        params,
        patches,
        grid,
    )
