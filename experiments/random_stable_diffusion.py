"""Writes a Stable Diffusion of random weights in diffusers' format, to try the real path offline.

python -m experiments.random_stable_diffusion --tokenizer=DIR --output_dir=DIR [--model=sd2]

Its maps mean nothing; time, memory and file formats are those of the real checkpoint. Needs torch,
diffusers and transformers, which the extra `test` installs.
"""

from pathlib import Path

from absl import flags

from dsolo_jax.clip.tokenizer import read_tokenizer
from experiments import common

_MODEL = flags.DEFINE_enum("model", "sd2", ["sd2", "sd1", "tiny"], "Whose sizes.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder with CLIP's tokenizer files.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder to write.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the weights.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Of the weights.")


def main() -> None:
    try:
        from experiments import torch_stable_diffusion
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install 'dsolo-jax[test]'") from error
    source, folder = (Path(flag.value).expanduser() for flag in (_TOKENIZER, _OUTPUT_DIR))
    read_tokenizer(source)  # whose errors say what is wrong
    kind = torch_stable_diffusion.KINDS[_MODEL.value]
    models = torch_stable_diffusion.build(kind, source, _SEED.value)
    half = _DTYPE.value == "float16"
    if half:
        for network in (models.unet, models.vae, models.text_encoder):
            network.half()
    torch_stable_diffusion.save(models, folder, "fp16" if half else None)
    print(f"random {_MODEL.value} written to {folder}")


if __name__ == "__main__":
    common.run(main, required=["tokenizer", "output_dir"])
