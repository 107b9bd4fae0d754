"""Stable Diffusion 2 and 1 of the real sizes against diffusers in torch, random weights.

python -m pytest tests/full_size/test_stable_diffusion_parity.py -m full_size -s

Takes minutes and about 12 GB each. Prints the largest error of the latents of a picture of 512
pixels, and of A relative to its deviation from uniform, in float32 and in bfloat16 against torch's
float32.
"""

import gc

import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax.attention import stable_diffusion

pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = pytest.mark.full_size

SIZE, TIMESTEP = 512, 100
WANTED = {jnp.float32: (1e-5, 1e-4), jnp.bfloat16: (np.inf, 5e-2)}  # of latents and of A


@pytest.mark.parametrize("name", ["sd2", "sd1"])
def test_maps_are_diffusers(name, tiny_clip, tmp_path):
    from tests.oracles import stable_diffusion as oracle

    kind = oracle.KINDS[name]
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
    models = oracle.build(kind, tiny_clip, seed=0)
    oracle.save(models, tmp_path)
    last = f"up_blocks.{len(kind.config.unet.up_block_types) - 1}.attentions."
    expected = oracle.torch_maps(models, pixels, TIMESTEP, only=last)
    del models
    gc.collect()
    mean = (expected.maps[f"{last}0"] + expected.maps[f"{last}1"]) / 2
    spread = np.linalg.norm(mean - 1 / mean.shape[-1]) / np.linalg.norm(mean)
    print(f"\n{name}: A {mean.shape}, deviates from uniform by {spread:.2f} of its norm")
    assert spread > 0.1  # a flat one would agree with anything
    for dtype, wanted in WANTED.items():
        config, params = stable_diffusion.load(tmp_path, dtype)
        latents = stable_diffusion.encode(params, config, pixels)
        found = stable_diffusion.self_attention(params, config, pixels, timestep=TIMESTEP)
        errors = (
            float(np.abs(np.asarray(latents, np.float32) - expected.latents).max()),
            oracle.relative(np.asarray(found), mean),
        )
        print(f"{jnp.dtype(dtype).name:9} latents {errors[0]:.1e}, A {errors[1]:.1e}")
        assert errors[0] < wanted[0] and errors[1] < wanted[1], (name, dtype)
        del params
