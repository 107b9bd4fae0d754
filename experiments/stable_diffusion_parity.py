"""Stable Diffusion at full size against diffusers in torch, random weights.

python -m experiments.stable_diffusion_parity --tokenizer=DIR [--model=sd2]

Prints the error of the latents (wanted 1e-5) and of A relative to its deviation from uniform, in
float32 (wanted 1e-4) and bfloat16 (wanted 5e-2, against float32 torch), for 64 x 64 latents.
"""

import gc
import tempfile

import jax.numpy as jnp
import numpy as np
from absl import flags

from dsolo_jax.attention import stable_diffusion
from experiments import common, torch_stable_diffusion

_MODEL = flags.DEFINE_enum("model", "sd2", list(torch_stable_diffusion.KINDS), "Of which size.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder with CLIP's tokenizer files.")
_SIZE = flags.DEFINE_integer("size", 512, "Of the picture, pixels.")

_TIMESTEP = 100


def main() -> None:
    kind = torch_stable_diffusion.KINDS[_MODEL.value]
    size = _SIZE.value
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        models = torch_stable_diffusion.build(kind, _TOKENIZER.value, seed=0)
        torch_stable_diffusion.save(models, folder)
        last = f"up_blocks.{len(kind.config.unet.up_block_types) - 1}.attentions."
        expected = torch_stable_diffusion.torch_maps(models, pixels, _TIMESTEP, only=last)
        del models
        gc.collect()
        mean = (expected.maps[f"{last}0"] + expected.maps[f"{last}1"]) / 2
        spread = np.linalg.norm(mean - 1 / mean.shape[-1]) / np.linalg.norm(mean)
        print(f"{_MODEL.value}: A {mean.shape}, deviates from uniform by {spread:.2f} of its norm")
        print(f"{'dtype':9} {'latents, largest':>17} {'A, relative':>12}")
        for dtype in (jnp.float32, jnp.bfloat16):
            config, params = stable_diffusion.load(folder, dtype)
            latents = stable_diffusion.encode(params, config, pixels)
            error = np.abs(np.asarray(latents, np.float32) - expected.latents).max()
            found = stable_diffusion.self_attention(params, config, pixels, timestep=_TIMESTEP)
            print(
                f"{jnp.dtype(dtype).name:9} {error:17.1e} "
                f"{torch_stable_diffusion.relative(np.asarray(found), mean):12.1e}",
                flush=True,
            )
            del params


if __name__ == "__main__":
    common.run(main, required=["tokenizer"])
