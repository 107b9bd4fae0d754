"""Wall times of jobs that take turns, programs that are compiled once, and a device's own time."""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import account

Jobs = Mapping[str, Callable[[], Any]]

# A job is called this often; less where that takes too long.
_LEAST, _MOST, _SECONDS = 3, 20, 1.0

_COMPILING = {
    "/jax/core/compile/jaxpr_trace_duration": "lower_s",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_s",
    "/jax/core/compile/backend_compile_duration": "compile_s",
}
_spent: Counter[str] = Counter()  # seconds of this process


def _listen(event: str, duration: float, **_: Any) -> None:
    if event in _COMPILING:
        _spent[_COMPILING[event]] += duration


jax.monitoring.register_event_duration_secs_listener(_listen)


class Program:
    """A function of arrays, lowered here and compiled once for all rows that run it; call it to run
    it on what it was given."""

    def __init__(self, function: Callable, *given: Any, rounds: Iterable[int] = (), **named: Any):
        """Lowers it: `result` are the shapes and types of what it gives.

        Args:
            rounds: see `account.account`.
        """
        self._arguments = given, named
        start = time.perf_counter()
        traced = jax.jit(function).trace(*given, **named)
        self.result = traced.out_info
        self._lowered = traced.lower()
        self._lower_s = time.perf_counter() - start
        self._account = account.account(traced.jaxpr, rounds)
        self._compiled: Any = None

    def __call__(self) -> Any:
        self.compile()
        given, named = self._arguments
        return self._compiled(*given, **named)

    def compile(self) -> None:
        """Compiles it, unless it is; in a thread, XLA lets go of Python meanwhile."""
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._lowered.compile()
            self._compile_s = time.perf_counter() - start

    def columns(self) -> dict[str, Any]:
        """Says what a row has of it: seconds to lower and compile, FLOPs, and bytes.

        bytes_accessed: XLA's own count, in which a loop runs once.
        least_bytes: arguments, results, and what loops are given, once a round.
        """
        self.compile()
        memory = self._compiled.memory_analysis()
        cost = self._compiled.cost_analysis() or {}
        arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
        return {
            "lower_s": self._lower_s,
            "compile_s": self._compile_s,
            "flops_by_peak": dict(self._account.flops),
            "bytes_accessed": cost.get("bytes accessed"),
            "least_bytes": arguments + results + self._account.reread,
            "argument_bytes": arguments,
            "result_bytes": results,
            "temporary_bytes": memory.temp_size_in_bytes,
            "peak_bytes": arguments + results + memory.temp_size_in_bytes,
        }


def turns(name: str, jobs: Jobs, scale: float = 1.0) -> dict[str, dict[str, Any]]:
    """Times jobs that take turns, so that ratios hold on a machine whose speed drifts.

    Each is called once before, untimed. One beside "ours" that fails, for want of memory, is told
    and left out.

    Args:
        name: of the row.
        jobs: each returns what must be waited for: jax arrays are, anything else is taken as
            finished.
        scale: what the seconds are multiplied by.

    Returns:
        Of each job all seconds in their order, and the 10th, 50th and 90th percentile.
    """
    timings: dict[str, list[float]] = {}
    for who, job in jobs.items():
        try:
            jax.block_until_ready(job())
            timings[who] = []
        except RuntimeError as error:
            if who == "ours":
                raise
            print(f"{name} without {who}: {error}", file=sys.stderr)
    begin = time.perf_counter()
    for turn in range(_MOST):
        if turn >= _LEAST and time.perf_counter() - begin > _SECONDS * len(timings):
            break
        for who, times in timings.items():
            start = time.perf_counter()
            jax.block_until_ready(jobs[who]())
            times.append(scale * (time.perf_counter() - start))
    return {who: percentiles(times) for who, times in timings.items()}


def percentiles(timings: list[float]) -> dict[str, Any]:
    """Gives the columns of timings; `seconds` is their median."""
    p10, p50, p90 = np.percentile(timings, (10, 50, 90)).tolist()
    return {"seconds": p50, "p10": p10, "p90": p90, "timings": timings}


def first_call(job: Callable[[], Any]) -> dict[str, float]:
    """Runs a job that compiles what it needs, and gives the seconds spent on that.

    What programs inside others took to trace counts with each.
    """
    before = _spent.copy()
    jax.block_until_ready(job())
    return {column: _spent[column] - before[column] for column in ("lower_s", "compile_s")}


def device_seconds(job: Callable[[], Any], folder: str | Path | None = None) -> float | None:
    """Runs a job under JAX's profiler: the time of its kernels and copies, which may overlap.

    Args:
        folder: where the trace is left, for TensorBoard or Perfetto; nowhere if None.

    Returns:
        None where the profiler does not tell, as of a CPU.
    """
    if folder is None and jax.default_backend() == "cpu":
        return None
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary if folder is None else folder)
        try:
            with jax.profiler.trace(place):
                jax.block_until_ready(job())
            files = sorted(place.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
            planes = jax.profiler.ProfileData.from_file(str(files[-1])).planes
            return _kernels(planes) / 1e9 or None
        except (RuntimeError, IndexError) as error:
            print(f"the profiler tells nothing: {error}", file=sys.stderr)
            return None


def _kernels(planes: Iterable[Any]) -> float:
    """Nanoseconds of the kernels of all devices: of a GPU by its streams, of a TPU by XLA's ops."""
    kinds = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops"}
    total = 0.0
    for plane in planes:
        kind = kinds.get(plane.name.rsplit(":", 1)[0])
        lines = [line for line in plane.lines if kind and line.name.startswith(kind)]
        total += sum(event.duration_ns for line in lines for event in line.events)
    return total


def torch_jobs(name: str, *arguments: Any) -> dict[str, Callable[[], Any]]:
    """Makes the jobs of `tests.oracles.baselines` by that name; none, and a line says so, without
    their libraries, a device for torch like jax's, or the memory."""
    try:
        from tests.oracles import baselines

        return getattr(baselines, name)(*arguments)
    except (ImportError, RuntimeError) as error:
        print(f"{name} without its torch baseline: {error}", file=sys.stderr)
        return {}
