"""The drivers as a user starts them."""

import subprocess
import sys


def command(module, *flags):
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def run(module, *flags):
    return subprocess.run(command(module, *flags), capture_output=True, text=True)


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
