"""Ratios inside one run: interleaved wall times, and XLA's own account of flops and bytes."""

import math
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
    """FLOPs of jitted `function` on `args`; bytes touched and temporary bytes by XLA's analysis.

    XLA counts the body of a loop once, whatever its trip count; the FLOPs here do not.
    """
    compiled = jax.jit(function).lower(*args).compile()
    cost = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops": product_flops(function, *args),
        "bytes": cost.get("bytes accessed", float("nan")),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", float("nan")),
    }


def product_flops(function: Callable, *args: Any) -> int:
    """FLOPs of the products and convolutions that `function` does on `args`, two a multiplication.

    Loops count as often as they run, a `while`, whose trips depend on data, once; every branch
    counts.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes, name = [x.aval.shape for x in equation.invars], equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            outputs_axis = equation.params["dimension_numbers"].rhs_spec[0]
            terms = math.prod(shapes[1]) // shapes[1][outputs_axis]
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        else:
            inner = (getattr(x, "jaxpr", x) for x in _leaves(equation.params))
            trips = equation.params["length"] if name == "scan" else 1
            total += trips * sum(_flops(x) for x in inner if hasattr(x, "eqns"))
    return total


def _leaves(params: dict[str, Any]) -> list[Any]:
    """The values of an equation's parameters, those in tuples (branches) too."""
    values = ((x if isinstance(x, tuple) else (x,)) for x in params.values())
    return [leaf for group in values for leaf in group]


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
