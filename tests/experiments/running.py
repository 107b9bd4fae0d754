"""The drivers as a user starts them."""

import contextlib
import importlib
import io
import runpy
import subprocess
import sys
from unittest import mock

from absl import flags

# The bundled world and its CLIP, every class of it on pictures of 112 pixels.
MINIATURE = ("--dataset=miniature", "--panel=0", "--save_predictions")


def command(module, *flags):
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def run(module, *flags, env=None):
    """The command in a process of its own."""
    return subprocess.run(command(module, *flags), capture_output=True, text=True, env=env)


def call(module, *flags):
    """The same in this process, which has imported and compiled what it needs."""
    said, errors, code = io.StringIO(), io.StringIO(), 0
    _forget_flags()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            with mock.patch.object(sys, "argv", [module, *flags]):
                runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):  # as Python does at the end of a process
                print(code, file=errors)
                code = 1
        finally:
            _forget_flags()
    return subprocess.CompletedProcess(flags, code, said.getvalue(), errors.getvalue())


def driver(module):
    """A driver for its functions; its flags are let go, as other drivers have some of that name."""
    _forget_flags()
    loaded = importlib.import_module(f"experiments.{module}")
    _forget_flags()
    return loaded


def _forget_flags():
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        if module.startswith("experiments.") or "/experiments/" in module:
            for flag in list(defined):
                delattr(flags.FLAGS, flag.name)
    flags.FLAGS.unparse_flags()


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
