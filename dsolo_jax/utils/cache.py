"""Where things that can be made again are kept between runs: a private folder of the user's.

A cache may cost time, never a run or a result: what cannot be read is made again, what cannot be
written is one warning.
"""

import contextlib
import os
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsolo_jax.utils import fingerprint
from dsolo_jax.utils.files import atomic

# Bytes that must be free for JAX to keep programs: it warns of each that it cannot.
_ROOM = 1 << 26
_warned: list[str] = []


def directory() -> Path:
    """Gives `$DSOLO_CACHE`, or `~/.cache/dsolo_jax`; RuntimeError where there is no home."""
    chosen = os.environ.get("DSOLO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dsolo_jax"


def load(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The float32 array kept under `name`; None where none of that shape, whole and finite, is."""
    try:
        with open(directory() / name, "rb") as file:  # np.load would also open archives
            found = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, RuntimeError):
        return None
    whole = found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all()
    return found if whole else None


def save(name: str, array: np.ndarray) -> None:
    """Keeps an array under `name`, if that can be done."""
    try:
        path = _private(Path(name).parent.name) / Path(name).name
        with atomic(path) as temporary:
            np.save(temporary, array)
    except (OSError, RuntimeError) as error:
        _warn(str(error))


def keep_compilations() -> None:
    """Turns JAX's persistent compilation cache on, unless the user has set one or said no.

    Small programs are kept too: a process that starts with all of them waits for none.
    """
    config: Any = jax.config  # its fields have no types
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    try:
        folder = _private(f"xla-{_processor()}")
        if shutil.disk_usage(folder).free < _ROOM:
            raise OSError(f"less than {_ROOM >> 20} MiB are free at {folder}")
        for entry in folder.glob("*-cache"):  # JAX would keep, for good, what a full disk left
            if not entry.stat().st_size:
                entry.unlink(missing_ok=True)
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    except (OSError, RuntimeError) as error:
        _warn(str(error))


def _processor() -> str:
    """A short name of what the processor can: JAX's keys lack it, and XLA compiles for it."""
    found = [platform.machine()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found += sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    return fingerprint.of_strings(*found)[:12]


def _private(name: str) -> Path:
    """A folder in the cache, readable by the user alone, as JAX runs what it finds in its own."""
    path = directory() / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _warn(reason: str) -> None:
    """Warns once."""
    if not _warned:
        _warned.append(reason)
        warnings.warn(
            f"nothing can be kept between runs ({reason}); name a folder that can be written in "
            "the environment variable DSOLO_CACHE",
            stacklevel=4,
        )
