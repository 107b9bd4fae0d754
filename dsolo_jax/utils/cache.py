"""Where things that can be made again are kept between runs: a private folder of the user's."""

import os
from pathlib import Path

import jax


def directory(name: str) -> Path:
    """`$DSOLO_CACHE` or `~/.cache/dsolo_jax`, and `name` in it, readable by the user alone.

    Private, because JAX runs what it finds in its compilation cache.
    """
    root = Path(os.environ.get("DSOLO_CACHE") or Path.home() / ".cache" / "dsolo_jax")
    path = root.expanduser() / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def keep_compilations() -> None:
    """Turns JAX's persistent compilation cache on, unless the user has set one or said no."""
    if jax.config.jax_compilation_cache_dir is None and jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(directory("xla")))
