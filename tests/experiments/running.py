"""The drivers as a user starts them."""

import importlib
import subprocess
import sys

from absl import flags


def command(module, *flags):
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def run(module, *flags):
    return subprocess.run(command(module, *flags), capture_output=True, text=True)


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


def demo_flags(demo):
    """The demo's pictures as a dataset, and its CLIP."""
    return (
        "--dataset=folder",
        f"--images={demo}/images",
        f"--labels={demo}/labels",
        f"--classes={demo}/classes.txt",
        f"--clip={demo}/clip",
        "--attention=clip",
    )
