"""What the figures of a run depend on; no places, and no machine's name."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import dsolo_jax as dsolo
from dsolo_jax.utils import fingerprint
from experiments.benchmarks.networks import encoder_dtype
from experiments.benchmarks.running import THREADS

_LIBRARIES = "jax", "jaxlib", "numpy", "torch", "transformers", "diffusers"
_VARIABLES = "XLA_", "JAX_", "NVIDIA_TF32", "OMP_NUM_THREADS", "LIBTPU_INIT_ARGS"
# Settings that name a place or a machine, and what does in the value of another.
_PLACES = re.compile(r"DIR|PATH|ADDRESS|HOST|COORDINATOR|PROXY")
_PLACE = re.compile(r"(?:\w+:/|~|\.)?/[^\s,=]*")


def environment() -> dict[str, Any]:
    """Collects it for the JSON. What is not known is None: the commit outside a checkout, the
    version of a library that is not installed."""
    device = jax.devices()[0]
    return {
        **_commit(),
        "code": fingerprint.of_code(),
        "dsolo_jax": dsolo.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform_version": _PLACE.sub("…", str(device.client.platform_version)),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "compile_threads": THREADS,
        "dtype": jnp.dtype(encoder_dtype()).name,
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "x64": jax.config.jax_enable_x64,
        "variables": {
            name: _PLACE.sub("…", value)
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES) and not _PLACES.search(name)
        },
    }


def _commit() -> dict[str, Any]:
    """The commit of this checkout, and whether no tracked file differs from it."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    if commit is None or changed is None:
        return {"commit": None, "clean": None}
    return {"commit": commit.strip(), "clean": not changed.strip()}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
