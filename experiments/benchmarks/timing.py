"""Ratios inside one run: interleaved wall times, and XLA's own account of flops and bytes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

# Dense bfloat16 products, FLOP/s, of the makers' data sheets, by jax's device_kind.
_PEAK = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v6 lite": 918e12,
}


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


def share_of_peak(flops: float, seconds: float) -> float | None:
    """Of the device's dense bfloat16 peak; None for a device that is not in the table."""
    peak = _PEAK.get(jax.devices()[0].device_kind)
    return peak and flops / seconds / peak


def beside(row: dict[str, Any], seconds: dict[str, float]) -> list[dict[str, Any]]:
    """The row of "ours" once for each baseline in `seconds`; alone if there is none."""
    row = row | {"seconds": seconds["ours"]}
    baselines = [name for name in seconds if name != "ours"]
    return [
        row
        | {
            "baseline": name,
            "baseline_seconds": seconds[name],
            "ratio": seconds["ours"] / seconds[name],
        }
        for name in baselines
    ] or [row]
