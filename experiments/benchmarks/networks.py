"""CLIP's two towers and the sources of patch graphs, beside the same in torch."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax import attention, clip
from dsolo_jax.attention import Source, dino, stable_diffusion
from dsolo_jax.attention.dino.tower import parameter_shapes as dino_shapes
from dsolo_jax.attention.stable_diffusion import SD2, StableDiffusionConfig, unet, vae
from dsolo_jax.checkpoints import Params, cast
from experiments.benchmarks.timing import program, rows, torch_jobs
from experiments.training.diffusion import random_params

TIMESTEP = 100
SD2_SOURCE = Source("sd2", "stable_diffusion", SD2, stable_diffusion.LAYERS, None, 512)

# A prompt of 150 classes x 80 templates has 8 to 16 tokens; a batch of them stands for all 12000.
_PROMPTS, _ALL, _TOKENS = 128, 150 * 80, 16


def pictures() -> Iterator[dict]:
    """Times CLIP's image tower, B/16: a row for each size and baseline, seconds a picture."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))
    for height, width in ((336, 336), (336, 448)):
        pixels = np.random.default_rng(0).standard_normal((1, height, width, 3), np.float32)
        encode = lambda params, pixels: clip.encode_image(params, config, pixels)  # noqa: E731
        job, account = program(encode, params, pixels)
        jobs = {"ours": job} | torch_jobs("clip", config, pixels)
        yield from rows("clip", f"ViT-B/16 {height}x{width}", jobs, **account)


def texts() -> list[dict]:
    """Times CLIP's text tower, B/16, on prompts cut to their length; beside it all 77 positions."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))
    length, end = config.text.max_position_embeddings, config.text.eos_token_id
    token_ids = np.full((_PROMPTS, length), end, np.int32)
    token_ids[:, : _TOKENS - 1] = 0
    encode = lambda params, token_ids: clip.encode_text(params, config, token_ids)  # noqa: E731
    ours, account = program(encode, params, token_ids[:, :_TOKENS])
    jobs = {"ours": ours, f"length {length}": program(encode, params, token_ids)[0]}
    case = f"{_ALL} prompts at length {_TOKENS}, from {_PROMPTS}"
    return rows("text", case, jobs, repeats=5, scale=_ALL / _PROMPTS, **account)


def graphs() -> Iterator[dict]:
    """Times the sources, from a square of pixels to the graph: seconds a picture."""
    dtype = encoder_dtype()
    sources = {
        f"Stable Diffusion 2, {jnp.dtype(dtype).name}": (SD2_SOURCE, sd_params(SD2, dtype)),
        "DINOv2 B/14": _dino("dinov2", dino.DINOV2_B14, 518),
        "DINO B/16": _dino("dino", dino.DINO_B16, 512),
        "appearance": (Source("appearance", "appearance", None, ("colour",), None, 512), {}),
    }
    for name, (source, params) in sources.items():
        squares = np.random.default_rng(0).integers(
            0, 256, (1, source.size, source.size, 3), np.uint8
        )
        job, account = program(partial(attention.graph, source=source), params, squares=squares)
        jobs = {"ours": job} | torch_jobs("graph", source, squares, TIMESTEP, dtype)
        case = f"{name}, {source.size}x{source.size}"
        yield from rows("graph", case, jobs, repeats=3, **account)


def _dino(name: str, config: dino.DinoConfig, size: int) -> tuple[Source, Params]:
    params = cast(random_params(dino_shapes(config)), jnp.float32)
    return Source(name, "dino", config, dino.LAYERS, None, size), params


def encoder_dtype() -> DTypeLike:
    """Names what the encoders are meant to run in on the device."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def sd_params(config: StableDiffusionConfig, dtype: DTypeLike) -> Params:
    """Draws parameters of Stable Diffusion, as `stable_diffusion.load` gives them."""
    shapes = {"vae": vae.parameter_shapes(config.vae), "unet": unet.parameter_shapes(config.unet)}
    shape = config.text.max_position_embeddings, config.unet.cross_attention_dim
    prompt = jax.random.normal(jax.random.key(0), shape)
    return cast(random_params(shapes), dtype) | {"prompt": prompt}
