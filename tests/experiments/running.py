"""The drivers as a user starts them."""

import importlib
import subprocess
import sys

from absl import flags

# The bundled world and its CLIP, every class of it on pictures of 112 pixels.
MINIATURE = ("--dataset=miniature", "--panel=0", "--save_predictions")


def command(module, *flags):
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def run(module, *flags, env=None):
    return subprocess.run(command(module, *flags), capture_output=True, text=True, env=env)


def driver(module):
    """A driver for its functions; its flags are let go, as other drivers have some of that name."""
    _forget_flags()
    loaded = importlib.import_module(f"experiments.{module}")
    _forget_flags()
    return loaded


def _forget_flags():
    for module in list(flags.FLAGS.flags_by_module_dict()):
        if module.startswith("experiments."):
            for flag in flags.FLAGS.get_flags_for_module(module):
                delattr(flags.FLAGS, flag.name)


def write_folder(folder, dataset, names):
    """The first pictures of a dataset as a folder of one's own, by other names.

    Returns:
        The flags that name it.
    """
    from dsolo_jax import images

    for index, name in enumerate(names):
        images.write_png(folder / "images" / f"{name}.png", dataset[index]["image"])
        images.write_png(folder / "labels" / f"{name}.png", dataset[index]["labels"])
    (folder / "classes.txt").write_text("\n".join(dataset.classes) + "\n", encoding="utf-8")
    return (
        "--dataset=folder",
        f"--images={folder}/images",
        f"--labels={folder}/labels",
        f"--classes={folder}/classes.txt",
        "--preset=miniature",
    )
