"""Writes a checkpoint of random weights in the hub's format, to try the real path offline.

python -m tests.oracles.random_checkpoint --model=b16 --tokenizer=DIR --output_dir=DIR

--model: b16 or l14, CLIP's; sd2, sd1 or tiny, Stable Diffusion's, which need torch and diffusers.
Its labels mean nothing; time, memory and file formats are those of the real checkpoint.
"""

import argparse
import shutil
from pathlib import Path

import jax

from dsolo_jax import clip
from dsolo_jax.clip.tokenizer import FILES, read_tokenizer

CLIPS = {"b16": clip.VIT_B16, "l14": clip.VIT_L14}


def write_clip(folder: Path, config: clip.ClipConfig, tokenizer: Path, seed: int = 0) -> None:
    """CLIP's files, with the tokenizer of another folder."""
    read_tokenizer(tokenizer)  # whose errors say what is wrong
    clip.save(folder, config, clip.init(config, jax.random.key(seed)))
    for name in FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def write_stable_diffusion(folder: Path, kind: str, tokenizer: Path, half: bool = False) -> None:
    """diffusers' files, in float16 under the names they have on the hub if `half`."""
    from tests.oracles import stable_diffusion

    read_tokenizer(tokenizer)
    models = stable_diffusion.build(stable_diffusion.KINDS[kind], tokenizer, seed=0)
    if half:
        for network in (models.unet, models.vae, models.text_encoder):
            network.half()
    stable_diffusion.save(models, folder, "fp16" if half else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*CLIPS, "sd2", "sd1", "tiny"], default="b16")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with CLIP's files")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--half", action="store_true", help="Stable Diffusion in float16")
    given = parser.parse_args()
    if given.model in CLIPS:
        write_clip(given.output_dir, CLIPS[given.model], given.tokenizer)
    else:
        write_stable_diffusion(given.output_dir, given.model, given.tokenizer, given.half)
    print(f"random {given.model} written to {given.output_dir}")


if __name__ == "__main__":
    main()
