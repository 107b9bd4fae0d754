"""Ratios inside one run: wall times of jobs that take turns, FLOPs, and XLA's own bytes."""

import math
import statistics
import sys
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


def program(function: Callable, *given: Any, **named: Any) -> tuple[Callable[[], Any], dict]:
    """Compiles a function of arrays.

    Returns:
        The job that runs it on what is given, and what a row says of it: the FLOPs of its products,
        and XLA's count of temporary bytes.
    """
    compiled = jax.jit(function).lower(*given, **named).compile()
    account = {
        "flops": product_flops(function, *given, **named),
        "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
    }
    return lambda: compiled(*given, **named), account


def product_flops(function: Callable, *given: Any, **named: Any) -> int:
    """Counts the FLOPs of the products and convolutions of a function, two a multiplication.

    Loops count as often as they run, a `while` once; every branch counts.
    """
    return _flops(jax.make_jaxpr(function)(*given, **named).jaxpr)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes, name = [x.aval.shape for x in equation.invars], equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            outputs_axis = equation.params["dimension_numbers"].rhs_spec[0]
            terms = math.prod(shapes[1]) // shapes[1][outputs_axis]
        elif name == "dot_product_attention_fwd_wrapper":  # cuDNN's: keys [B, tokens, K, d]
            terms = 2 * shapes[1][1]
        else:  # the programs inside, those in tuples (branches) too
            terms = 0
            trips = equation.params["length"] if name == "scan" else 1
            for value in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(value, "jaxpr", value)
                total += trips * _flops(inner) if hasattr(inner, "eqns") else 0
        total += 2 * terms * math.prod(equation.outvars[0].aval.shape) if terms else 0
    return total


def rows(
    stage: str,
    case: str,
    jobs: dict[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    scale: float = 1.0,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Times the job "ours" beside each other one: a row for each, or one alone if there is none.

    Seconds are medians after one untimed call. The jobs take turns, so that the ratios hold on a
    machine whose speed drifts.

    Args:
        jobs: each returns what must be waited for: jax arrays are, anything else is taken as
            finished. One beside ours that fails, for want of memory, is told and left out.
        scale: what the seconds are multiplied by.
        columns: what else the rows say; of "flops" also the share of the peak of a known device.
    """
    seconds: dict[str, list[float]] = {}
    for name, job in jobs.items():
        try:
            jax.block_until_ready(job())
            seconds[name] = []
        except RuntimeError as error:
            if name == "ours":
                raise
            print(f"{stage}, {case}, without {name}: {error}", file=sys.stderr)
    for _ in range(repeats):
        for name, times in seconds.items():
            start = time.perf_counter()
            jax.block_until_ready(jobs[name]())
            times.append(scale * (time.perf_counter() - start))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = medians.pop("ours")
    row = {"stage": stage, "case": case, "seconds": ours, **columns}
    peak = _PEAK.get(jax.devices()[0].device_kind)
    if "flops" in columns and peak:
        row["share_of_peak"] = scale * columns["flops"] / ours / peak
    return [row | beside(ours, name, theirs) for name, theirs in medians.items()] or [row]


def beside(ours: float, baseline: str, theirs: float) -> dict[str, Any]:
    """Gives the columns of a baseline; a ratio is ours over the baseline's seconds."""
    return {"baseline": baseline, "baseline_seconds": theirs, "ratio": ours / theirs}


def torch_jobs(name: str, *arguments: Any) -> dict[str, Callable[[], Any]]:
    """Makes the jobs of `tests.oracles.baselines` by that name; none, and a line says so, without
    their libraries, a device for torch like jax's, or the memory."""
    try:
        from tests.oracles import baselines

        return getattr(baselines, name)(*arguments)
    except (ImportError, RuntimeError) as error:
        print(f"{name} without its torch baseline: {error}", file=sys.stderr)
        return {}
