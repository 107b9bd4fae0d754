"""Where the time of a run goes, and what memory it has needed."""

import re
import resource
import time
from pathlib import Path
from typing import Any

import jax


class Stopwatch:
    """Adds up the seconds of stages that follow each other; give it as `watch`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, value: Any = None) -> None:
        """The time since the last call belongs to `stage`, which ends when `value` is there."""
        jax.block_until_ready(value)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        stages = (f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        return f"stages, compilation included: {', '.join(stages)}"


_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Gives the largest number of resident bytes that this process has had.

    On Linux not by getrusage, whose peak a process inherits from the one that started it.
    """
    if _STATUS.is_file():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on a Mac


def resident_bytes() -> int:
    """Gives the bytes that are resident now; on Linux."""
    return _status("VmRSS")


def _status(field: str) -> int:
    [kibibytes] = re.findall(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return 1024 * int(kibibytes)
