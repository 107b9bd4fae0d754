"""Where the time of a run goes."""

import time
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
