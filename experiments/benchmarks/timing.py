"""Ratios inside one run: interleaved wall times, and XLA's own account of flops and bytes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def compare(jobs: dict[str, Callable[[], Any]], *, repeats: int = 7) -> dict[str, float]:
    """Median seconds of each job, after one untimed call, the jobs taking turns.

    Turns make the ratios of the medians hold on a machine whose speed drifts. A job returns what
    must be waited for: jax arrays are, anything else is taken as finished.
    """
    for job in jobs.values():
        jax.block_until_ready(job())
    seconds = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            jax.block_until_ready(job())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def xla_account(function: Callable, *args: Any) -> dict[str, float]:
    """FLOPs, bytes touched and temporary bytes of jitted `function` on `args`, by XLA's analysis.

    XLA counts the body of a `while` loop once, whatever its trip count.
    """
    compiled = jax.jit(function).lower(*args).compile()
    cost = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops": cost.get("flops", float("nan")),
        "bytes": cost.get("bytes accessed", float("nan")),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", float("nan")),
    }
