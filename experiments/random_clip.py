"""Writes a full-size CLIP of random weights in the hub's format, to try the real path offline.

python -m experiments.random_clip --tokenizer=DIR --output_dir=DIR

Its labels mean nothing; time, memory and file formats are those of the real checkpoint.
"""

import shutil
from pathlib import Path

import jax
from absl import flags

from dsolo_jax import clip
from dsolo_jax.clip.tokenizer import FILES
from experiments import common

_CONFIGS = {"b16": clip.VIT_B16, "l14": clip.VIT_L14}

_MODEL = flags.DEFINE_enum("model", "b16", list(_CONFIGS), "ViT-B/16 or ViT-L/14.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder with CLIP's tokenizer files.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder to write.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the weights.")


def main() -> None:
    folder = Path(_OUTPUT_DIR.value).expanduser()
    source = Path(_TOKENIZER.value).expanduser()
    found = [source / name for name in FILES if (source / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{source} holds none of {', '.join(FILES)}; give CLIP's")
    config = _CONFIGS[_MODEL.value]
    clip.save(folder, config, clip.init(config, jax.random.key(_SEED.value)))
    for path in found:
        shutil.copyfile(path, folder / path.name)
    print(f"random {_MODEL.value} written to {folder}")


if __name__ == "__main__":
    common.run(main, required=["tokenizer", "output_dir"])
