"""Trains the miniature latent diffusion model, whose self-attentions are a patch graph.

python -m experiments.training.train_diffusion --output_dir=DIR [--seed=0]

First an autoencoder of drawn pictures, then a denoiser with its text encoder on the latents; pixel
labels are only measured with. Interrupted, the same command goes on where it was.
DIR/stable_diffusion is what diffusers' StableDiffusionPipeline loads, with a model card and logs.
"""

import dataclasses
import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import optax
from jaxtyping import Float, Int, UInt8

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import StableDiffusionConfig
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import encode_tokens, load_tokenizer
from dsolo_jax.datasets import miniature
from dsolo_jax.utils.files import read_text, write_text
from dsolo_jax.utils.progress import progress
from experiments.training import captioned, diffusion, loop
from experiments.training.attention_mass import own_mass
from experiments.training.pipeline_folder import save
from experiments.training.tokenizer import write_tokenizer

loop.define_flags()

_SCENES, _AUTOENCODER_STEPS, _DENOISER_STEPS = 8000, 3000, 10000  # times the share
_BATCH = 8
_PIXEL_CROP, _LATENT_CROP = 48, 16  # sides of what autoencoder and denoiser see of a picture
_CAPTIONS = 4  # of each scene
_DROPPED = 0.3  # of the captions: a graph is asked for without one
_VOCABULARY = 1024
_TUNE_SCENES = 40  # that attention is measured on

_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# A miniature latent diffusion model

In the layout of Stable Diffusion 2, for `diffusers.StableDiffusionPipeline` and for
`dsolo_jax.attention.stable_diffusion`. It gives a patch graph; its pictures are of no use.

- Data: {scenes} drawn scenes of `dsolo_jax.datasets.miniature`, 112 x 112 pixels, split train, with
  their captions; no pixel label is trained on.
- Made by: `python -m experiments.training.train_diffusion --output_dir=DIR {flags}`
- Autoencoder: {autoencoder_steps} steps; mean squared error {squared_error:.4f}, pixels in -1..1.
- Denoiser and text encoder: {denoiser_steps} steps, v-prediction; mean squared error {loss:.3f}.
- Weights in float16. Licence: Apache-2.0, as dsolo_jax.

The share of a row's mass on patches of the row's own class, and what a flat row would have, on
{tune} scenes of the split tune, without noise and with the empty prompt. Keys start as queries, so
a patch looks at its like before anything is learned: the random start is the control.

| weights | timestep | own class | flat | own class, things | flat, things |
|---|---|---|---|---|---|
{rows}
"""


def train(folder: Path, seed: int, share: float, every: int) -> str:
    """Trains, or goes on; writes folder/stable_diffusion and returns its model card.

    Raises:
        ValueError: the folder holds a run of another seed or share.
    """
    given = loop.claim(folder, seed, share)
    scenes, autoencoder_steps, denoiser_steps = (
        max(1, round(share * count)) for count in (_SCENES, _AUTOENCODER_STEPS, _DENOISER_STEPS)
    )
    pictures, sentences = captioned.drawn(folder, scenes, partial(_scene, seed))
    tune = [miniature.draw(seed, i, split="tune") for i in range(_TUNE_SCENES)]
    tune_pixels = diffusion.as_pixels(np.stack([scene.image for scene in tune]))
    tune_labels = np.stack([scene.labels for scene in tune])
    token_ids, empty = _tokens(folder / "tokenizer", sentences)

    error = partial(diffusion.reconstruction_error, config=diffusion.CONFIG.vae)
    autoencoder = loop.train(
        partial(diffusion.autoencoder_loss, diffusion.CONFIG.vae),
        diffusion.init_autoencoder(diffusion.CONFIG.vae, seed),
        _optimizer(3e-3, _AUTOENCODER_STEPS),
        partial(_pixels, seed=seed, pictures=pictures),
        autoencoder_steps,
        folder / "autoencoder.safetensors",
        every=every,
        report=lambda params: {"tune_squared_error": float(error(params, pixels=tune_pixels[:16]))},
    )
    config, latents = _scaled(autoencoder, pictures, int(empty.max()))

    def shares(params: Params, timestep: int = 100) -> list[float]:
        """How much a patch looks at its own class: own, flat, own of things, flat of things."""
        prompt = encode_tokens(params["text"], config.text, empty[None])[0]
        whole = {"unet": params["unet"], "vae": autoencoder["encoder"], "prompt": prompt}
        graph = stable_diffusion.self_attention(whole, config, tune_pixels, timestep=timestep)
        return own_mass(np.asarray(graph), tune_labels, miniature.NUM_STUFF)

    def row(weights: str, params: Params, timestep: int) -> str:
        values = " | ".join(f"{x:.2f}" for x in shares(params, timestep))
        return f"| {weights} | {timestep} | {values} |"

    start = diffusion.init_denoiser(config, seed)
    denoiser = loop.train(
        partial(diffusion.denoising_loss, config),
        start,
        _optimizer(2e-3, _DENOISER_STEPS),
        partial(_noised, seed=seed, latents=latents, token_ids=token_ids, empty=empty),
        denoiser_steps,
        folder / "denoiser.safetensors",
        every=every,
        report=lambda params: dict(zip(("own", "own_things"), shares(params)[::2], strict=True)),
    )
    target = folder / "stable_diffusion"
    save(target, config, autoencoder, denoiser, folder / "tokenizer")
    last = []
    for log in ("autoencoder.jsonl", "denoiser.jsonl"):
        shutil.copyfile(folder / log, target / log)
        last.append(json.loads(read_text(folder / log).splitlines()[-1]))
    rows = ("trained", denoiser, 100), ("trained", denoiser, 300), ("random start", start, 100)
    card = _CARD.format(
        flags=given,
        scenes=scenes,
        squared_error=last[0]["tune_squared_error"],
        autoencoder_steps=autoencoder_steps,
        denoiser_steps=denoiser_steps,
        loss=last[1]["loss"],
        tune=_TUNE_SCENES,
        rows="\n".join(row(*each) for each in rows),
    )
    write_text(target / "README.md", card)
    return card


def _scene(seed: int, index: int) -> tuple[np.ndarray, list[str]]:
    scene, rng = miniature.draw(seed, index), np.random.default_rng((seed, index))
    return scene.image, miniature.captions(scene, rng, _CAPTIONS)


def _tokens(
    folder: Path, sentences: list[list[str]]
) -> tuple[Int[np.ndarray, "n c T"], Int[np.ndarray, "T"]]:
    """Of the sentences of each scene, and of the empty prompt."""
    length = diffusion.CONFIG.text.max_position_embeddings
    texts = list(itertools.chain(*sentences))
    write_tokenizer(folder, texts, _VOCABULARY, length)
    found = load_tokenizer(folder, length)(["", *texts])
    token_ids = np.pad(found, ((0, 0), (0, length - found.shape[1])), mode="edge")  # the end token
    return token_ids[1:].reshape(len(sentences), -1, length), token_ids[0]


def _scaled(
    autoencoder: Params, pictures: UInt8[np.ndarray, "n S S 3"], end: int
) -> tuple[StableDiffusionConfig, Float[np.ndarray, "n r r L"]]:
    """The config with the scale that gives latents variance 1, and latents of that scale.

    end: the last token of the vocabulary.
    """

    def scaled(by: float) -> StableDiffusionConfig:
        vae = dataclasses.replace(diffusion.CONFIG.vae, scaling_factor=by)
        text = dataclasses.replace(diffusion.CONFIG.text, vocab_size=end + 1, eos_token_id=end)
        return dataclasses.replace(diffusion.CONFIG, vae=vae, text=text)

    params, starts = {"vae": autoencoder["encoder"]}, range(0, len(pictures), 50)
    parts = [
        stable_diffusion.encode(params, scaled(1.0), diffusion.as_pixels(pictures[i : i + 50]))
        for i in progress(starts, len(starts), "latents", unit="batches")
    ]
    latents = np.concatenate(parts)
    config = scaled(float(1 / latents.std()))
    return config, latents * np.float32(config.vae.scaling_factor)


def _optimizer(peak: float, horizon: int) -> optax.GradientTransformation:
    """AdamW, whose rate would be 0 at `horizon`."""
    rate = optax.warmup_cosine_decay_schedule(0, peak, 50, horizon)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-3))


def _pixels(step: int, seed: int, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the autoencoder sees in a step."""
    rng, config = np.random.default_rng((seed, 1, step)), diffusion.CONFIG.vae
    chosen = rng.integers(len(pictures), size=_BATCH)
    corners = rng.integers(pictures.shape[1] - _PIXEL_CROP + 1, size=(2, _BATCH))
    crops = captioned.squares(pictures, chosen, corners, _PIXEL_CROP)
    side = _PIXEL_CROP // 2 ** (len(config.block_out_channels) - 1)
    noise = rng.standard_normal((_BATCH, side, side, config.latent_channels), np.float32)
    return diffusion.as_pixels(crops), noise


def _noised(
    step: int, seed: int, latents: np.ndarray, token_ids: np.ndarray, empty: np.ndarray
) -> diffusion.Noised:
    """What the denoiser sees in a step."""
    rng = np.random.default_rng((seed, 2, step))
    chosen = rng.integers(len(latents), size=_BATCH)
    corners = rng.integers(latents.shape[1] - _LATENT_CROP + 1, size=(2, _BATCH))
    crops = captioned.squares(latents, chosen, corners, _LATENT_CROP)
    noise = rng.standard_normal(crops.shape, np.float32)
    # The square: half of them below 250, where there is something to be seen.
    timesteps = (1000 * rng.random(_BATCH) ** 2).astype(np.int32)
    captions = token_ids[chosen, rng.integers(_CAPTIONS, size=_BATCH)]
    dropped = rng.random(_BATCH) < _DROPPED
    return diffusion.Noised(crops, noise, timesteps, np.where(dropped[:, None], empty, captions))


if __name__ == "__main__":
    loop.run(train)
