"""Training of the miniature latent diffusion model: what it minimises, keeps and exports."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dsolo_jax.attention import stable_diffusion
from dsolo_jax.checkpoints import flatten, unflatten
from dsolo_jax.clip import encode_tokens, load_tokenizer
from dsolo_jax.datasets import miniature
from experiments.training import diffusion, loop
from experiments.training.attention_mass import majority, own_mass
from experiments.training.decoder import Decoder
from experiments.training.pipeline_folder import save
from experiments.training.tokenizer import write_tokenizer

SIDE = 16  # of pictures, pixels
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SENTENCES = ["a photo of a red star, sand and a ball.", "grass", "a blue heart and water"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, SENTENCES, size=560, max_length=24)
    return folder


@pytest.fixture(scope="module")
def config(tokenizer):
    """The miniature's own, narrower and less deep."""
    whole = diffusion.CONFIG
    vocabulary = len(json.loads((tokenizer / "vocab.json").read_text()))
    return dataclasses.replace(
        whole,
        unet=dataclasses.replace(
            whole.unet,
            block_out_channels=(8,),
            down_block_types=whole.unet.down_block_types[:1],
            up_block_types=whole.unet.up_block_types[-1:],
            num_heads=(2,),
            norm_num_groups=4,
            cross_attention_dim=16,
        ),
        vae=dataclasses.replace(whole.vae, block_out_channels=(8, 8), scaling_factor=0.5),
        text=dataclasses.replace(
            whole.text,
            vocab_size=vocabulary,
            eos_token_id=vocabulary - 1,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
        ),
    )


def _shaken(tree, seed):
    """Of float16's values, and none zero, so that every part matters."""
    rng = np.random.default_rng(seed)
    return unflatten(
        {
            path: (leaf + 0.1 * rng.standard_normal(leaf.shape))
            .astype(np.float16)
            .astype(np.float32)
            for path, leaf in flatten(tree).items()
        }
    )


@pytest.fixture(scope="module")
def networks(config):
    """Autoencoder and denoiser."""
    return (
        _shaken(diffusion.init_autoencoder(config.vae, 0), 0),
        _shaken(diffusion.init_denoiser(config, 0), 1),
    )


@pytest.fixture(scope="module")
def pixels():
    scenes = [miniature.draw(0, i, SIDE) for i in range(2)]
    return diffusion.as_pixels(np.stack([scene.image for scene in scenes]))


@pytest.fixture(scope="module")
def folder(config, networks, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stable_diffusion")
    save(folder, config, *networks, tokenizer)
    return folder


def test_a_tokenizer_is_a_function_of_its_texts(tmp_path):
    """A run that goes on after a kill makes it again, and has learned its tokens."""
    texts = [
        text
        for i in range(20)
        for text in miniature.captions(miniature.draw(0, i, 56), np.random.default_rng(i), 4)
    ]
    for i in range(6):
        write_tokenizer(tmp_path / str(i), texts, size=1200, max_length=24)
    merges = {(tmp_path / str(i) / "merges.txt").read_text() for i in range(6)}
    assert len(merges) == 1 and merges.pop().count("\n") > 50


# ------------------------------------------------------------------------------------- the export


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)


def _torch(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@torch.inference_mode()
def test_diffusers_denoises_alike(config, networks, pipeline, tokenizer):
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 8, 8, 4), np.float32)
    texts, timesteps = ["a red star", ""], np.array([30, 700])
    theirs = pipeline.tokenizer(
        texts, padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    ours = load_tokenizer(tokenizer, 24)(texts)
    np.testing.assert_array_equal(theirs[:, : ours.shape[1]], ours)
    states = pipeline.text_encoder(theirs)[0]
    found = encode_tokens(networks[1]["text"], config.text, theirs.numpy())
    np.testing.assert_allclose(found, states, rtol=0, atol=1e-4)
    expected = pipeline.unet(_torch(latents), torch.tensor(timesteps), states).sample
    found = diffusion.predict(config, networks[1], latents, timesteps, theirs.numpy())
    assert expected.std() > 0.1
    np.testing.assert_allclose(_torch(found), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_diffusers_decodes_alike(config, networks, pipeline, pixels):
    params, _ = networks
    expected = pipeline.vae.encode(_torch(pixels)).latent_dist.mode() * config.vae.scaling_factor
    latents = stable_diffusion.encode({"vae": params["encoder"]}, config, pixels)
    np.testing.assert_allclose(_torch(latents), expected, rtol=0, atol=1e-4)
    expected = pipeline.vae.decode(_torch(latents)).sample
    found = Decoder(config.vae).apply({"params": params["decoder"]}, latents)
    assert expected.std() > 0.1
    np.testing.assert_allclose(_torch(found), expected, rtol=0, atol=1e-4)


def test_the_loader_gives_back_what_was_saved(config, networks, folder):
    found_config, params = stable_diffusion.load(folder)
    assert found_config == config
    for name, expected in (("unet", networks[1]["unet"]), ("vae", networks[0]["encoder"])):
        found, expected = flatten(params[name]), flatten(expected)
        assert found.keys() == expected.keys()
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@torch.inference_mode()
def test_the_pipeline_draws(pipeline):
    images = pipeline("a red star", height=SIDE, width=SIDE, num_inference_steps=2).images
    assert images[0].size == (SIDE, SIDE)


# ----------------------------------------------------------------------------------- what it learns


def test_noise_and_target_are_the_schedulers(pipeline):
    scheduler = pipeline.scheduler
    kept, _ = diffusion.signal_and_noise()
    np.testing.assert_allclose(kept**2, scheduler.alphas_cumprod, rtol=1e-5)
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 3, 4, 4, 4), np.float32)
    timesteps = np.array([0, 400, 999])
    noisy, target = diffusion.noised(diffusion.Noised(latents, noise, timesteps, None))
    given = *map(torch.tensor, (latents, noise)), torch.tensor(timesteps)
    np.testing.assert_allclose(noisy, scheduler.add_noise(*given), rtol=0, atol=1e-5)
    np.testing.assert_allclose(target, scheduler.get_velocity(*given), rtol=0, atol=1e-5)
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("part", ["autoencoder", "denoiser"])
def test_a_step_lowers_the_loss(config, networks, pixels, part):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 8, 8, 4), np.float32)
    if part == "autoencoder":
        params, batch = networks[0], (pixels, noise)
        loss = lambda p: diffusion.autoencoder_loss(config.vae, p, batch)  # noqa: E731
    else:
        tokens = np.full((2, 24), config.text.eos_token_id)
        latents = rng.standard_normal((2, 8, 8, 4), np.float32)
        params, batch = networks[1], diffusion.Noised(latents, noise, np.array([9, 800]), tokens)
        loss = lambda p: diffusion.denoising_loss(config, p, batch)  # noqa: E731
    # Once is not worth optimising for: most of the time is LLVM's.
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile(_QUICKLY)
    before, gradient = compiled(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    norm = optax.global_norm(gradient)
    after, _ = compiled(jax.tree.map(lambda p, g: p - 1e-2 * g / norm, params, gradient))
    assert float(after) < float(before)


# -------------------------------------------------------------------------------------- the loop


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    def run(path, broken_at=None):
        def batch(step):
            if step == broken_at:
                raise KeyboardInterrupt
            return np.random.default_rng(step).standard_normal((4, 3)).astype(np.float32)

        return loop.train(
            lambda p, x: jnp.mean((x @ p["w"] - 1) ** 2),
            {"w": jnp.zeros(3)},
            optax.adamw(optax.linear_schedule(0.1, 0, 10)),
            batch,
            10,
            path,
            every=3,
        )

    whole = run(tmp_path / "whole.safetensors")
    for broken_at in (2, 8):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken.safetensors", broken_at)
    np.testing.assert_array_equal(run(tmp_path / "broken.safetensors")["w"], whole["w"])
    assert np.abs(whole["w"]).max() > 0.01

    def log(name):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]

    assert log("broken") == log("whole") and [x["step"] for x in log("whole")] == [3, 6, 9, 10]
    (tmp_path / "broken.jsonl").unlink()  # killed before it was written
    run(tmp_path / "broken.safetensors")
    assert log("broken") == log("whole")
    with pytest.raises(ValueError, match="is of another network"):
        loop.train(
            lambda p, x: jnp.sum(p["w"] ** 2),
            {"w": jnp.zeros(4)},
            optax.adamw(0.1),
            lambda step: 0,
            10,
            tmp_path / "whole.safetensors",
            every=3,
        )


# --------------------------------------------------------------------------------- the measurement


def test_own_mass_of_flat_and_of_perfect_attention():
    classes = np.array([[0, 0, 0], [1, 1, 5], [2, 3, 4]], np.uint8)
    labels = np.stack([classes, classes.T]).repeat(2, axis=1).repeat(2, axis=2)
    flat, of_things = (3 * 3 + 2 * 2 + 4) / 81, 1 / 9
    found = own_mass(np.full((2, 9, 9), 1 / 9), labels, first_thing=3)
    assert found == pytest.approx([flat, flat, of_things, of_things])
    found = own_mass(np.stack([np.eye(9)] * 2), labels, first_thing=3)
    assert found == pytest.approx([1, flat, 1, of_things])


def test_a_patch_is_of_the_class_of_most_of_its_pixels():
    labels = np.array([[[1, 1, 7, 3], [1, 2, 3, 3], [0, 0, 4, 4], [4, 0, 4, 4]]], np.uint8)
    np.testing.assert_array_equal(majority(labels, 2), [[[1, 3], [0, 4]]])
