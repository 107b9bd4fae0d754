"""Cases to rows: what is wanted is lowered, compiled in threads, and timed, while there is time."""

import contextlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dsolo_jax.utils import memory
from experiments.benchmarks.account import DEVICES, roofline
from experiments.benchmarks.timing import Jobs, Program, device_seconds, first_call, turns

# XLA takes several threads for one program, and a GPU is asked which kernels are best.
THREADS = min(8, os.cpu_count() or 1)


class Work(NamedTuple):
    """What a row times, and what it says besides.

    job: returns what must be waited for.
    programs: what it runs; the row's account is theirs.
    needs: what it needs compiled besides.
    theirs: makes the jobs beside it.
    scale: what a call's seconds, FLOPs and bytes are multiplied by.
    calls: of each program in a call of the job.
    pictures: whose part or whole of the way is done in the row's seconds.
    flops, least_bytes: of what a job does outside `programs`, see `Program.columns`.
    columns: what else the row says.
    """

    job: Callable[[], Any]
    programs: tuple[Program, ...] = ()
    needs: tuple[Program, ...] = ()
    theirs: Callable[[], Jobs] = dict
    scale: float = 1.0
    calls: int = 1
    pictures: int | None = None
    flops: dict[str, int] = {}  # noqa: RUF012
    least_bytes: int = 0
    columns: dict[str, Any] = {}  # noqa: RUF012


class Case(NamedTuple):
    """A row to be.

    prepare: makes its arrays and lowers its programs; or `measure` gives the row's columns itself.
    wave: cases of a stage that are next to each other and have one wave are compiled together.
    """

    stage: str
    case: str
    prepare: Callable[[], Work] | None = None
    measure: Callable[[], dict[str, Any]] | None = None
    wave: Hashable = 0

    @property
    def name(self) -> str:
        return f"{self.stage} {self.case}"


def rows(
    cases: Iterable[Case],
    left_out: dict[str, str],
    *,
    late: Callable[[], bool] = lambda: False,
    trace_dir: str | Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of cases as they are done.

    Args:
        left_out: gets the names of the cases without a row, and why: no time, or no memory.
        late: says that no new row may be started.
        trace_dir: gets a folder for each row, with its trace.
    """
    for _, wave in groupby(cases, key=lambda case: (case.stage, case.wave)):
        works: deque[tuple[Case, Work | None]] = deque()
        for case in wave:
            with _kept(case, left_out, late) as kept:
                if kept:
                    works.append((case, case.prepare() if case.prepare else None))
        compile_all(p for _, work in works if work for p in (*work.programs, *work.needs))
        while works:  # what is done is let go, with its arrays
            case, work = works.popleft()
            row: dict[str, Any] = {}
            with _kept(case, left_out, late) as kept:
                if kept:
                    named = {"stage": case.stage, "case": case.case}
                    row = named | (_row(case, work, trace_dir) if work else case.measure())
            case = work = None
            if row:
                yield row


@contextlib.contextmanager
def _kept(case: Case, left_out: dict[str, str], late: Callable[[], bool]) -> Iterator[bool]:
    """Names a case that comes too late, or that the memory is too small for: the others go on."""
    if late():
        left_out.setdefault(case.name, "no time left")
    try:
        yield case.name not in left_out
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if (said := memory.message(error)) is None:
            raise
        left_out[case.name] = said


def compile_all(programs: Iterable[Program]) -> None:
    """Compiles programs in threads, each once. One that does not fit says so when it is run."""

    def one(program: Program) -> None:
        try:
            program.compile()
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if memory.message(error) is None:
                raise

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, dict.fromkeys(programs)))


def _row(case: Case, work: Work, trace_dir: str | Path | None) -> dict[str, Any]:
    for program in (*work.programs, *work.needs):
        program.compile()  # here, where an error is the case's own
    compiling = {} if work.programs else first_call(work.job)
    timed = turns(case.name, {"ours": work.job} | dict(work.theirs()), work.scale)
    ours = timed.pop("ours")
    folder = trace_dir and Path(trace_dir) / re.sub(r"[^\w.=-]+", "-", case.name).strip("-")
    spent = device_seconds(work.job, folder)
    account = compiling | _account(work)
    kinds = account.pop("flops_by_peak")
    kind = jax.devices()[0].device_kind
    bounds = roofline(kinds, account["least_bytes"], ours["seconds"], DEVICES.get(kind))
    stats = jax.local_devices()[0].memory_stats() or {}
    row = {
        **ours,
        "device_seconds": spent and spent * work.scale,
        "flops": sum(kinds.values()) or None,
        "flops_by_peak": kinds,
        **account,
        **bounds,
        "device_peak_bytes": stats.get("peak_bytes_in_use"),  # of the process so far
        **work.columns,
    }
    if work.pictures:
        row["pictures_per_second"] = work.pictures / ours["seconds"]
    beside = {
        name: found | {"ratio": ours["seconds"] / found["seconds"]} for name, found in timed.items()
    }
    return row | ({"beside": beside} if beside else {})


_SUMMED = "lower_s", "compile_s"
_SCALED = "bytes_accessed", "least_bytes"
_LARGEST = "argument_bytes", "result_bytes", "temporary_bytes", "peak_bytes"


def _account(work: Work) -> dict[str, Any]:
    """The account of all programs together; of memory that of the largest."""
    each = [program.columns() for program in work.programs]
    flops: Counter[str] = Counter(work.flops)
    for columns in each:
        flops.update(columns["flops_by_peak"])
    times = work.scale * work.calls
    found: dict[str, Any] = {
        "flops_by_peak": {kind: times * n for kind, n in flops.items()},
        "least_bytes": times * work.least_bytes or None,
    }
    for columns in each:
        for name in _SUMMED:
            found[name] = found.get(name, 0.0) + columns[name]
        for name in _SCALED:
            found[name] = (found.get(name) or 0) + times * (columns[name] or 0)
        for name in _LARGEST:
            found[name] = max(found.get(name, 0), columns[name])
    return found
