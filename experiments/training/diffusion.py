"""A latent diffusion model of the miniature world: its sizes, random starts and losses.

The networks are those of `dsolo_jax.attention.stable_diffusion` and `dsolo_jax.clip`. Letters: B
batch, S side of a picture in pixels, r side of its latent, L latent channels, T tokens of a prompt.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from dsolo_jax import checkpoints, clip
from dsolo_jax.attention.stable_diffusion import unet, vae
from dsolo_jax.attention.stable_diffusion.config import (
    ATTENDING_UP,
    StableDiffusionConfig,
    UNetConfig,
    VAEConfig,
)
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import TextConfig
from dsolo_jax.clip.towers import text_parameter_shapes
from experiments.training.decoder import Decoder

SIZE = 112  # of the pictures, pixels

CONFIG = StableDiffusionConfig(
    UNetConfig(
        block_out_channels=(48, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", ATTENDING_UP),
        layers_per_block=1,
        num_heads=(2, 2),
        cross_attention_dim=64,
        use_linear_projection=True,
        norm_num_groups=8,
        sample_size=28,
    ),
    VAEConfig(
        block_out_channels=(8, 16, 32), layers_per_block=1, norm_num_groups=4, use_quant_conv=False
    ),
    TextConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        hidden_act="gelu",
    ),
)

# How DDIMScheduler and its kin are told what the denoiser was trained for.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}


# --------------------------------------------------------------------------------------- weights


def random_params(shapes: Params, seed: int = 0) -> Params:
    """Draws kernels of variance 1 / fan-in, which keep activations finite; the rest small."""
    rng = np.random.default_rng(seed)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith(("bias", "scale")):
            return np.full(shape, float(path.endswith("scale")), np.float32)
        fan_in = math.prod(shape[:-1]) if path.endswith("kernel") else 50**2
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))

    flat = checkpoints.flatten(shapes)
    return checkpoints.unflatten({path: leaf(path, s.shape) for path, s in flat.items()})


def init_autoencoder(config: VAEConfig, seed: int) -> Params:
    """{"encoder": ..., "decoder": ...}."""
    latents = jnp.zeros((1, 8, 8, config.latent_channels))
    decoder = jax.eval_shape(Decoder(config).init, jax.random.key(0), latents)["params"]
    shapes = {"encoder": vae.parameter_shapes(config), "decoder": decoder}
    return random_params(shapes, seed)


def init_denoiser(config: StableDiffusionConfig, seed: int) -> Params:
    """{"unet": ..., "text": ...}.

    A self-attention starts with keys that are its queries, so that a patch looks at those with
    features like its own; from unlike ones it starts as a mean over the picture and stays one.
    """
    shapes = {
        "unet": unet.parameter_shapes(config.unet),
        "text": text_parameter_shapes(config.text),
    }
    flat = checkpoints.flatten(random_params(shapes, seed))
    for path in flat:
        if path.endswith("attn1/to_q/kernel"):
            flat[path] *= 1.5  # logits of variance 1.5⁴
            flat[path.replace("to_q", "to_k")] = flat[path].copy()
        elif path.endswith(("conv2/kernel", "proj_out/kernel")):
            flat[path] *= 0.5
        elif path == "unet/conv_out/kernel":
            flat[path] *= 0.0
    return checkpoints.unflatten(flat)


# ---------------------------------------------------------------------------------------- losses


def as_pixels(images: UInt8[Array, "B S S 3"]) -> Float[Array, "B S S 3"]:
    """In -1..1."""
    return images.astype(np.float32) / 127.5 - 1


_KL = 2e-4  # of each latent's divergence from a standard Gaussian, beside the pixels' squared error


def autoencoder_loss(config: VAEConfig, params: Params, batch) -> Float[Array, ""]:
    """|decode(z) − x|² + β · KL(z), z drawn from the encoder's posterior of x.

    Args:
        batch: pixels [B, S, S, 3] in -1..1, and standard noise of the latents' shape.
    """
    pixels, noise = batch
    mean, log_variance = vae.Encoder(config).apply({"params": params["encoder"]}, pixels)
    log_variance = jnp.clip(log_variance, -30, 20)  # diffusers' bounds
    latents = mean + jnp.exp(log_variance / 2) * noise
    decoded = Decoder(config).apply({"params": params["decoder"]}, latents)
    divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
    return jnp.mean((decoded - pixels) ** 2) + _KL * jnp.mean(divergence)


@partial(jax.jit, static_argnames="config")
def reconstruction_error(
    params: Params, config: VAEConfig, pixels: Float[Array, "B S S 3"]
) -> Float[Array, ""]:
    """Mean squared error of the pixels, without noise in the latents."""
    mean, _ = vae.Encoder(config).apply({"params": params["encoder"]}, pixels)
    return jnp.mean((Decoder(config).apply({"params": params["decoder"]}, mean) - pixels) ** 2)


def signal_and_noise() -> Float[np.ndarray, "2 1000"]:
    """√ᾱ and √(1 − ᾱ) of each timestep."""
    ends = np.sqrt([SCHEDULE["beta_start"], SCHEDULE["beta_end"]])
    kept = np.cumprod(1 - np.linspace(*ends, SCHEDULE["num_train_timesteps"]) ** 2)
    return np.sqrt([kept, 1 - kept]).astype(np.float32)


class Noised(NamedTuple):
    """A batch for the denoiser; latents are scaled, noise is standard."""

    latents: Float[Array, "B r r L"]
    noise: Float[Array, "B r r L"]
    timesteps: Int[Array, "B"]
    token_ids: Int[Array, "B T"]


def predict(
    config: StableDiffusionConfig,
    params: Params,
    noisy: Float[Array, "B r r L"],
    timesteps: Int[Array, "B"],
    token_ids: Int[Array, "B T"],
) -> Float[Array, "B r r L"]:
    """The denoiser's output at a timestep and a prompt for each."""
    prompts = clip.encode_tokens(params["text"], config.text, token_ids)

    def one(latents, timestep, prompt):
        return unet.denoise(params["unet"], config.unet, latents[None], prompt, timestep)[0][0]

    return jax.vmap(one)(noisy, timesteps, prompts)


def noised(batch: Noised) -> tuple[Float[Array, "B r r L"], Float[Array, "B r r L"]]:
    """√ᾱ·z + √(1−ᾱ)·n, and the velocity √ᾱ·n − √(1−ᾱ)·z (Salimans & Ho 2022)."""
    kept, added = jnp.asarray(signal_and_noise())[:, batch.timesteps, None, None, None]
    latents, noise = batch.latents, batch.noise
    return kept * latents + added * noise, kept * noise - added * latents


def denoising_loss(
    config: StableDiffusionConfig, params: Params, batch: Noised
) -> Float[Array, ""]:
    """Mean squared error of the velocity."""
    noisy, velocity = noised(batch)
    found = predict(config, params, noisy, batch.timesteps, batch.token_ids)
    return jnp.mean((found - velocity) ** 2)
