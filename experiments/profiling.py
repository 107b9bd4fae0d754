"""Where the time of a run goes, and how many programs were compiled."""

import time
from collections import Counter
from typing import Any

import jax

# JAX reports it for each program that is handed to XLA, or taken from the cache of earlier runs.
_EVENT = "/jax/core/compile/backend_compile_duration"


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


class Compilations:
    """Counts XLA's programs from now on, those of earlier runs' cache included."""

    def __init__(self):
        self.programs: Counter[str] = Counter()
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, seconds: float, **about: Any) -> None:
        if event == _EVENT:
            self.programs[about.get("fun_name", "unnamed")] += 1

    def __str__(self) -> str:
        named = ", ".join(f"{name} {number}" for name, number in self.programs.most_common())
        return f"{self.programs.total()} programs compiled or taken from the cache: {named}"
