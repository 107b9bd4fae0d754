"""Times the stages of the method beside what they are measured against, in the same run.

python -m experiments.benchmark --stage=all --output=benchmark.json
python -m experiments.benchmark --stage=pipeline --seconds=480 --output=gpu.json

A ratio is ours over the baseline's. Shared machines drift: trust ratios, not seconds. Baselines in
torch need what the extra `test` installs; without it a line says so, and there are none.
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from dsolo_jax.utils.files import write_json
from experiments import common
from experiments.benchmarks import (
    earlier,
    memory,
    networks,
    peers,
    pipeline,
    questions,
    running,
    solver,
    upsample,
)
from experiments.benchmarks.environment import environment
from experiments.benchmarks.reading import line, summary

# Each gives its cases; `pipeline` takes a sweep too.
STAGES: dict[str, Callable[..., Iterator[running.Case]]] = {
    "solver": solver.run,
    "upsample": upsample.run,
    "clip": networks.pictures,
    "text": networks.texts,
    "graph": networks.graphs,
    "peers": peers.run,
    "pipeline": pipeline.run,
    "memory": memory.run,
    "questions": questions.run,
}

_STAGE = flags.DEFINE_enum("stage", "all", ["all", *STAGES], "What to time.")
_FILTER = flags.DEFINE_string(
    "filter",
    "",
    "Regular expression: rows whose 'stage case' it is found in; no other is compiled.",
)
_SWEEP = {
    name: flags.DEFINE_list(name, None, f"pipeline: {what}; a few for the device by default.")
    for name, what in {
        "batches": "numbers of pictures, such as 1,8,16,32",
        "classes": "numbers of classes, such as 21,150",
        "sizes": "pixels of the side of the square that Stable Diffusion sees, such as 512,1024",
    }.items()
}
_LARGEST = flags.DEFINE_bool(
    "largest", None, "pipeline: look for the largest batch; on accelerators by default."
)
_SECONDS = flags.DEFINE_float(
    "seconds", None, "No new row is started after so many; all by default.", lower_bound=0
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write, anew after each row.")
_TRACE_DIR = flags.DEFINE_string("trace_dir", None, "Folder for a profiler trace of each row.")
_BASELINE = flags.DEFINE_string(
    "baseline", None, "JSON of an earlier run: prints ratios, exit code 1 if a row is slower."
)
_SLOWER = flags.DEFINE_float("slower", 1.1, "A row is, above this ratio.", lower_bound=0)


def main() -> None:
    begin = time.monotonic()
    late = lambda: _SECONDS.value is not None and time.monotonic() - begin > _SECONDS.value  # noqa: E731
    if _STAGE.value not in ("all", "pipeline"):
        common.refuse(f"with --stage={_STAGE.value}", *_SWEEP, "largest")
    if _BASELINE.value is None:
        common.refuse("without --baseline", "slower")
    stages = dict(STAGES) if _STAGE.value == "all" else {_STAGE.value: STAGES[_STAGE.value]}
    if "pipeline" in stages:
        stages["pipeline"] = partial(stages["pipeline"], _sweep(), late)
    wanted, made_in = _pattern(), environment()
    old = _BASELINE.value and earlier.read(_BASELINE.value, made_in)

    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    cases = (case for run in stages.values() for case in run() if wanted.search(case.name))

    def write(complete: bool) -> None:
        if _OUTPUT.value:
            found = {"environment": made_in, "complete": complete, "left_out": left_out}
            write_json(_OUTPUT.value, found | {"rows": rows})

    with _compiling_anew():
        for row in running.rows(cases, left_out, late=late, trace_dir=_TRACE_DIR.value):
            print(line(row), flush=True)
            rows.append(row)
            write(complete=False)  # where a run is killed, this is left
    if not rows and not left_out:
        raise ValueError(
            f"--filter={_FILTER.value} matches no row; leave it out to see their names"
        )
    write(complete=True)
    print(summary(rows), end="")
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    if old is not None:
        asked = {
            name: seconds
            for name, seconds in old.items()
            if name.split(" ", 1)[0] in stages and wanted.search(name)
        }
        found = earlier.compare(asked, rows, _SLOWER.value)
        print(found.table, end="")
        if found.slower:
            sys.exit(f"slower by more than {_SLOWER.value:g}: {'; '.join(found.slower)}")


def _pattern() -> re.Pattern[str]:
    try:
        return re.compile(_FILTER.value)
    except re.error as error:
        raise ValueError(
            f"--filter={_FILTER.value} is no regular expression ({error}); wanted one such as "
            "'graph.*batch 8'"
        ) from None


def _sweep() -> pipeline.Sweep:
    """The device's usual sweep, but for what the flags say.

    Raises:
        ValueError: a flag that is no list of numbers, or of sizes that Stable Diffusion cannot see.
    """
    usual = pipeline.Sweep.usual(jax.default_backend())
    given = {name: _numbers(name, flag.value) for name, flag in _SWEEP.items() if flag.value}
    if _LARGEST.value is not None:
        given["largest"] = _LARGEST.value
    return usual._replace(**given)


def _numbers(name: str, values: list[str]) -> tuple[int, ...]:
    multiple = pipeline.MULTIPLE if name == "sizes" else 1
    numbers = [int(value) if value.isdecimal() else 0 for value in values]
    if any(number < 1 or number % multiple for number in numbers):
        such = f"multiples of {multiple}, such as 512,1024" if multiple > 1 else "such as 1,8"
        raise ValueError(f"--{name} is {','.join(values)}; wanted whole numbers from 1, {such}")
    return tuple(dict.fromkeys(numbers))


@contextlib.contextmanager
def _compiling_anew() -> Iterator[None]:
    """Seconds to compile are XLA's, not those of finding what an earlier run compiled."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it asks once whether it is used
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


if __name__ == "__main__":
    common.run(main)
