"""CLIP's two towers and the sources of patch graphs, beside the same in torch."""

import functools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax import attention, clip, images
from dsolo_jax.attention import Source, dino, stable_diffusion
from dsolo_jax.attention.dino.tower import parameter_shapes as dino_shapes
from dsolo_jax.attention.stable_diffusion import SD2, StableDiffusionConfig, unet, vae
from dsolo_jax.checkpoints import Params, cast
from experiments.benchmarks import world
from experiments.benchmarks.running import Case, Work
from experiments.benchmarks.timing import Program, torch_jobs
from experiments.training.diffusion import random_params

TIMESTEP = 100
SD2_SOURCE = Source("sd2", "stable_diffusion", SD2, stable_diffusion.LAYERS, None, 512)

# A prompt of 150 classes x 80 templates has 8 to 16 tokens; a batch of them stands for all 12000.
_PROMPTS, _ALL, _TOKENS = 128, 150 * 80, 16


def pictures() -> Iterator[Case]:
    """CLIP's image tower, B/16, on one picture of each of two sizes."""
    for size in ((336, 336), (336, 448)):
        yield Case("clip", f"ViT-B/16 {size[0]}x{size[1]}", partial(_picture, size))


def _picture(size: tuple[int, int]) -> Work:
    config, params = clip_b16("float32")
    pixels = images.normalise(world.pictures(1, *size)[0], config.image_mean, config.image_std)[
        None
    ]
    encode = lambda params, pixels: clip.encode_image(params, config, pixels)  # noqa: E731
    program = Program(encode, params, pixels)
    beside = partial(torch_jobs, "clip", config, pixels)
    return Work(program, (program,), theirs=beside, pictures=1)


def texts() -> Iterator[Case]:
    """CLIP's text tower, B/16, on prompts cut to their length; beside it all 77 positions."""
    case = f"{_ALL} prompts at length {_TOKENS}, from {_PROMPTS}"
    yield Case("text", case, _prompts)


def _prompts() -> Work:
    config, params = clip_b16("float32")
    length, end = config.text.max_position_embeddings, config.text.eos_token_id
    token_ids = np.full((_PROMPTS, length), end, np.int32)
    token_ids[:, : _TOKENS - 1] = 0
    encode = lambda params, token_ids: clip.encode_text(params, config, token_ids)  # noqa: E731
    ours, whole = (Program(encode, params, ids) for ids in (token_ids[:, :_TOKENS], token_ids))
    beside = {f"length {length}": whole}
    return Work(ours, (ours,), (whole,), lambda: beside, scale=_ALL / _PROMPTS)


def graphs() -> Iterator[Case]:
    """The sources, from the square of a picture to its graph; a wave each, as they are large."""
    dtype = jnp.dtype(encoder_dtype()).name
    of_dino = {
        "DINOv2 B/14": ("dinov2", dino.DINOV2_B14, 518),
        "DINO B/16": ("dino", dino.DINO_B16, 512),
    }
    appearance = Source("appearance", "appearance", None, ("colour",), None, 512)
    sources = {
        f"Stable Diffusion 2, {dtype}": (SD2_SOURCE, lambda: sd_params(SD2, dtype)),
        **{
            name: (Source(kind, "dino", config, dino.LAYERS, None, size), partial(_dino, config))
            for name, (kind, config, size) in of_dino.items()
        },
        "appearance": (appearance, dict),
    }
    for wave, (name, given) in enumerate(sources.items()):
        case = f"{name}, {given[0].size}x{given[0].size}"
        yield Case("graph", case, partial(_graph, *given), wave=wave)


def _graph(source: Source, params: Callable[[], Params]) -> Work:
    squares = world.pictures(1, source.size, source.size)
    program = Program(partial(attention.graph, source=source), params(), squares=squares)
    beside = partial(torch_jobs, "graph", source, squares, TIMESTEP, encoder_dtype())
    return Work(program, (program,), theirs=beside, pictures=1)


def _dino(config: dino.DinoConfig) -> Params:
    return cast(random_params(dino_shapes(config)), jnp.float32)


@functools.cache
def clip_b16(dtype: str) -> tuple[clip.ClipConfig, Params]:
    """Draws parameters of CLIP, B/16."""
    return clip.VIT_B16, cast(clip.init(clip.VIT_B16, jax.random.key(0)), dtype)


def encoder_dtype() -> DTypeLike:
    """Names what the encoders are meant to run in on the device."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


@functools.lru_cache(1)
def sd_params(config: StableDiffusionConfig, dtype: str) -> Params:
    """Draws parameters of Stable Diffusion, as `stable_diffusion.load` gives them."""
    shapes = {"vae": vae.parameter_shapes(config.vae), "unet": unet.parameter_shapes(config.unet)}
    shape = config.text.max_position_embeddings, config.unet.cross_attention_dim
    prompt = jax.random.normal(jax.random.key(0), shape)
    return cast(random_params(shapes), dtype) | {"prompt": prompt}
