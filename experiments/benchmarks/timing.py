"""Ratios inside one run: interleaved wall times, and XLA's own account of flops and bytes."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsolo_jax.checkpoints import Params

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


def random_params(shapes: Params, dtype: DTypeLike = jnp.float32) -> Params:
    """Kernels of variance 1 / fan-in, which keep activations finite; norms and biases as at first.

    Args:
        shapes: nested dicts of `jax.ShapeDtypeStruct`s.
    """
    random = np.random.default_rng(0)

    def leaf(path: tuple, shape: tuple[int, ...]) -> jax.Array:
        if len(shape) == 1:
            return jnp.full(shape, float(path[-1].key == "scale"), dtype)
        values = random.standard_normal(shape, np.float32)
        return jnp.asarray(values / np.float32(math.sqrt(math.prod(shape[:-1]))), dtype)

    return jax.tree_util.tree_map_with_path(lambda path, x: leaf(path, x.shape), shapes)


def share_of_peak(flops: float, seconds: float) -> float | None:
    """Of the device's dense bfloat16 peak; None for a device that is not in the table."""
    peak = _PEAK.get(jax.devices()[0].device_kind)
    return peak and flops / seconds / peak


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

    Args:
        scale: what the seconds are multiplied by.
        columns: what else the rows say; of "flops" also the share of the device's peak.
    """
    seconds = {name: scale * s for name, s in compare(jobs, repeats=repeats).items()}
    ours = seconds.pop("ours")
    row = {"stage": stage, "case": case, "seconds": ours, **columns}
    if "flops" in columns:
        row["share_of_peak"] = share_of_peak(scale * columns["flops"], ours)
    return [row | beside(ours, name, theirs) for name, theirs in seconds.items()] or [row]


def beside(ours: float, baseline: str, theirs: float) -> dict[str, Any]:
    """The columns of a baseline; a ratio is ours over the baseline's seconds."""
    return {"baseline": baseline, "baseline_seconds": theirs, "ratio": ours / theirs}


def torch_jobs(name: str, *arguments: Any) -> dict[str, Callable[[], Any]]:
    """Makes the jobs of `tests.oracles.baselines` by that name; none, and it says so, where torch
    or another of their libraries is missing, or has no device like jax's."""
    try:
        from tests.oracles import baselines

        return getattr(baselines, name)(*arguments)
    except (ImportError, NotImplementedError) as error:
        print(f"{name} without its torch baseline: {error}", file=sys.stderr)
        return {}
