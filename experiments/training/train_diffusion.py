"""Trains the miniature latent diffusion model, whose self-attentions are a patch graph.

python -m experiments.training.train_diffusion --output_dir=DIR [--seed=0]

Draws pictures and sentences of the miniature world, trains an autoencoder, then a denoiser with its
text encoder on the latents; pixel labels are only measured with. Interrupted, the same command goes
on where it was. DIR/stable_diffusion is what diffusers' StableDiffusionPipeline loads; the logs
autoencoder.jsonl and denoiser.jsonl say how the loss fell, and how much of each self-attention's
mass stays on a patch's own class.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jaxtyping import Float, Int, UInt8

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.attention.stable_diffusion import StableDiffusionConfig
from dsolo_jax.checkpoints import Params
from dsolo_jax.clip import encode_tokens, load_tokenizer
from dsolo_jax.datasets import miniature
from dsolo_jax.utils.files import atomic, write_json
from dsolo_jax.utils.progress import progress
from experiments import common
from experiments.training import diffusion, loop
from experiments.training.attention_mass import attention_mass
from experiments.training.pipeline_folder import save
from experiments.training.tokenizer import write_tokenizer

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the world, the weights and the batches.")
_SCENES = flags.DEFINE_integer("scenes", 4000, "Pictures to train on.", lower_bound=1)
_AUTOENCODER_STEPS = flags.DEFINE_integer("autoencoder_steps", 800, "Of 8 crops.", lower_bound=1)
_DENOISER_STEPS = flags.DEFINE_integer("denoiser_steps", 2000, "Of 8 crops.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 100, "Steps between checkpoints.", lower_bound=1)

_BATCH = 8
_AUTOENCODER_HORIZON, _DENOISER_HORIZON = 800, 2000  # steps at which nothing more would be learned
_PIXEL_CROP, _LATENT_CROP = 48, 16  # sides of what autoencoder and denoiser see of a picture
_LATENTS = 2000  # of the pictures the denoiser sees, at most
_CAPTIONS = 4  # of each scene
_DROPPED = 0.3  # of the captions: a graph is asked for without one
_VOCABULARY = 1024
_TUNE_SCENES = 40  # that attention is measured on
_LOGGED, _REPORTED = (100,), (100, 300)  # timesteps
_LOGS = ("autoencoder.jsonl", "denoiser.jsonl")

_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# A miniature latent diffusion model

In the layout of Stable Diffusion 2, for `diffusers.StableDiffusionPipeline` and for
`dsolo_jax.attention.stable_diffusion`. It is there to give a patch graph without a download, by the
same path as the real one; its pictures are of no use.

- Data: {scenes} drawn scenes of `dsolo_jax.datasets.miniature`, 112 x 112 pixels, split train, with
  their captions; no pixel label is trained on.
- Made by: `python -m experiments.training.train_diffusion --output_dir=DIR
  {flags}`
- Autoencoder: {autoencoder_steps} steps; mean squared error {squared_error:.4f} of pixels in -1..1,
  split tune.
- Denoiser with its text encoder: {denoiser_steps} steps, v-prediction; mean squared error
  {loss:.3f} at the end.
- Weights in float16. Licence: Apache-2.0, as dsolo_jax.

What its self-attentions look at, without noise and with the empty prompt, on {tune} scenes of the
split tune: the share of a row's mass on patches of the row's own class, and what a flat row would
have; over all rows, and over those of things. Keys start as queries, so a patch looks at its like
before anything is learned: the random start is the control.

| layer | weights | timestep | own class | flat | own class, things | flat, things |
|---|---|---|---|---|---|---|
{rows}
"""

Pictures = UInt8[np.ndarray, "n S S 3"]


class Tokens(NamedTuple):
    """Token ids of the sentences of each scene, and of the empty prompt."""

    sentences: Int[np.ndarray, "n c T"]
    empty: Int[np.ndarray, "T"]


def main() -> None:
    folder, seed = Path(_OUTPUT_DIR.value).expanduser(), _SEED.value
    pictures, sentences = _world(folder, seed, _SCENES.value)
    tune = [miniature.draw(seed, i, split="tune") for i in range(_TUNE_SCENES)]
    autoencoder = _train_autoencoder(folder, seed, pictures, np.stack([s.image for s in tune]))
    latents = _latents(folder / "latents.npy", autoencoder, pictures[:_LATENTS])
    tokens = _tokens(folder / "tokenizer", sentences)
    config = _fitted(diffusion.CONFIG, latents, tokens)

    def measure(denoiser: Params, timesteps: Sequence[int]) -> dict:
        return _attention(config, autoencoder, denoiser, tokens, tune, timesteps)

    denoiser = _train_denoiser(folder, seed, config, latents, tokens, measure)
    target = folder / "stable_diffusion"
    save(target, config, autoencoder, denoiser, folder / "tokenizer")
    for log in _LOGS:
        shutil.copyfile(folder / log, target / log)
    trained = measure(denoiser, _REPORTED)
    start = measure(diffusion.init_denoiser(config, seed), _LOGGED)
    with atomic(target / "README.md") as temporary:
        temporary.write_text(_card(folder, trained, start), encoding="utf-8")
    print((target / "README.md").read_text(encoding="utf-8"))


def _card(folder: Path, trained: dict, start: dict) -> str:
    """The model card.

    Args:
        trained, start: what `_attention` found of the trained and of the random denoiser.
    """
    given = (_SEED, _SCENES, _AUTOENCODER_STEPS, _DENOISER_STEPS)
    autoencoder, denoiser = (
        json.loads((folder / log).read_text(encoding="utf-8").splitlines()[-1]) for log in _LOGS
    )
    rows = [
        f"| {layer} | {which} | {timestep} | {m['own']:.2f} | {m['base']:.2f} "
        f"| {m['own_things']:.2f} | {m['base_things']:.2f} |"
        for which, found in (("trained", trained), ("random start", start))
        for timestep, layers in found.items()
        for layer, m in layers.items()
    ]
    return _CARD.format(
        flags=" ".join(f"--{flag.name}={flag.value}" for flag in given),
        scenes=_SCENES.value,
        squared_error=autoencoder["tune_squared_error"],
        autoencoder_steps=autoencoder["step"],
        denoiser_steps=denoiser["step"],
        loss=denoiser["loss"],
        tune=_TUNE_SCENES,
        rows="\n".join(rows),
    )


# ------------------------------------------------------------------------------------------- data


def _world(folder: Path, seed: int, count: int) -> tuple[Pictures, list[list[str]]]:
    """Pictures and their sentences, drawn once."""
    kept, words = folder / "pictures.npy", folder / "sentences.json"
    if not words.is_file():
        pictures, sentences = [], []
        for i in progress(range(count), count, "scenes", unit="scenes"):
            scene = miniature.draw(seed, i)
            pictures.append(scene.image)
            sentences.append(miniature.captions(scene, np.random.default_rng((seed, i)), _CAPTIONS))
        with atomic(kept) as temporary:
            np.save(temporary, np.stack(pictures))
        write_json(words, sentences)
    return np.load(kept, mmap_mode="r"), json.loads(words.read_text(encoding="utf-8"))


def _tokens(folder: Path, sentences: list[list[str]]) -> Tokens:
    length = diffusion.CONFIG.text.max_position_embeddings
    texts = [sentence for of_scene in sentences for sentence in of_scene]
    write_tokenizer(folder, texts, _VOCABULARY, length)
    found = load_tokenizer(folder, length)(["", *texts])
    padding = ((0, 0), (0, length - found.shape[1]))
    token_ids = np.pad(found, padding, constant_values=found.max())  # the end token
    return Tokens(token_ids[1:].reshape(len(sentences), -1, length), token_ids[0])


def _latents(path: Path, autoencoder: Params, pictures: Pictures) -> Float[np.ndarray, "n r r L"]:
    """Of all pictures, unscaled, made once."""
    if not path.is_file():
        config = dataclasses.replace(diffusion.CONFIG.vae, scaling_factor=1.0)
        whole = dataclasses.replace(diffusion.CONFIG, vae=config)
        starts = range(0, len(pictures), 50)
        parts = [
            stable_diffusion.encode(
                {"vae": autoencoder["encoder"]}, whole, diffusion.as_pixels(pictures[i : i + 50])
            )
            for i in progress(starts, len(starts), "latents", unit="batches")
        ]
        with atomic(path) as temporary:
            np.save(temporary, np.concatenate(parts))
    return np.load(path)


def _fitted(
    config: StableDiffusionConfig, latents: Float[np.ndarray, "n r r L"], tokens: Tokens
) -> StableDiffusionConfig:
    """With the latents scaled to variance 1, and the vocabulary's size."""
    end = int(tokens.empty.max())
    return dataclasses.replace(
        config,
        vae=dataclasses.replace(config.vae, scaling_factor=float(1 / latents.std())),
        text=dataclasses.replace(config.text, vocab_size=end + 1, eos_token_id=end),
    )


def _crops(
    rng: np.random.Generator, fields: np.ndarray, chosen: np.ndarray, side: int
) -> np.ndarray:
    """Of each field chosen a square at a place of its own."""
    top, left = rng.integers(0, fields.shape[1] - side, (2, len(chosen)), endpoint=True)
    return np.stack(
        [fields[n, y : y + side, x : x + side] for n, y, x in zip(chosen, top, left, strict=True)]
    )


# --------------------------------------------------------------------------------------- training


def _optimizer(peak: float, horizon: int) -> optax.GradientTransformation:
    """AdamW, whose rate would be 0 at `horizon`, however many steps are taken: a run can be made
    longer, and goes on as if it had been longer from the start.
    """
    rate = optax.warmup_cosine_decay_schedule(0, peak, 50, horizon)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-3))


def _train_autoencoder(folder: Path, seed: int, pictures: Pictures, tune: Pictures) -> Params:
    config, steps = diffusion.CONFIG.vae, _AUTOENCODER_STEPS.value
    side = _PIXEL_CROP // 2 ** (len(config.block_out_channels) - 1)

    def batch(step: int):
        rng = np.random.default_rng((seed, 1, step))
        crops = _crops(rng, pictures, rng.integers(len(pictures), size=_BATCH), _PIXEL_CROP)
        noise = rng.standard_normal((_BATCH, side, side, config.latent_channels), np.float32)
        return diffusion.as_pixels(crops), noise

    def report(params: Params) -> dict:
        error = diffusion.reconstruction_error(params, config, diffusion.as_pixels(tune[:16]))
        return {"tune_squared_error": float(error)}

    return loop.train(
        partial(diffusion.autoencoder_loss, config),
        diffusion.init_autoencoder(config, seed),
        _optimizer(3e-3, _AUTOENCODER_HORIZON),
        batch,
        steps,
        folder / "autoencoder.safetensors",
        every=_EVERY.value,
        report=report,
    )


def _train_denoiser(folder, seed, config, latents, tokens, measure) -> Params:
    steps = _DENOISER_STEPS.value

    def batch(step: int) -> diffusion.Noised:
        rng = np.random.default_rng((seed, 2, step))
        chosen = rng.integers(len(latents), size=_BATCH)
        crops = _crops(rng, latents, chosen, _LATENT_CROP) * np.float32(config.vae.scaling_factor)
        noise = rng.standard_normal(crops.shape, np.float32)
        # The square: half of them below 250, where there is something to be seen.
        timesteps = (1000 * rng.random(_BATCH) ** 2).astype(np.int32)
        token_ids = tokens.sentences[chosen, rng.integers(_CAPTIONS, size=_BATCH)]
        dropped = rng.random(_BATCH) < _DROPPED
        token_ids = np.where(dropped[:, None], tokens.empty, token_ids)
        return diffusion.Noised(crops, noise, timesteps, token_ids)

    return loop.train(
        partial(diffusion.denoising_loss, config),
        diffusion.init_denoiser(config, seed),
        _optimizer(2e-3, _DENOISER_HORIZON),
        batch,
        steps,
        folder / "denoiser.safetensors",
        every=_EVERY.value,
        report=lambda params: {"attention": measure(params, _LOGGED)},
    )


def _attention(config, autoencoder, denoiser, tokens, tune, timesteps) -> dict:
    """Of each timestep and layer the shares of `attention_mass.Mass`."""
    prompt = encode_tokens(denoiser["text"], config.text, tokens.empty[None])[0]
    params = {"unet": denoiser["unet"], "vae": autoencoder["encoder"], "prompt": prompt}
    pixels = diffusion.as_pixels(np.stack([scene.image for scene in tune]))
    labels = np.stack([scene.labels for scene in tune])
    latents = stable_diffusion.encode(params, config, jnp.asarray(pixels))
    found = {}
    for timestep in timesteps:
        masses = attention_mass(
            params, config, latents, labels, timestep, first_thing=miniature.NUM_STUFF
        )
        found[str(timestep)] = {
            layer: {name: round(value, 3) for name, value in mass._asdict().items()}
            for layer, mass in masses.items()
        }
    return found


if __name__ == "__main__":
    common.run(main, required=["output_dir"])
