"""What XLA compiles."""

from collections import Counter
from typing import Any

import jax

# JAX reports it for each program that is handed to XLA, or taken from the cache of earlier runs.
_EVENT = "/jax/core/compile/backend_compile_duration"


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
