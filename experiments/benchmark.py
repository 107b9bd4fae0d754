"""Times the stages of the method beside what they are measured against, in the same run.

python -m experiments.benchmark --stage=all --output=benchmark.json

A ratio is ours over the baseline's. Shared machines drift: trust ratios, not seconds. Baselines in
torch need what the extra `test` installs; without it a line says so, and there are none.
"""

import os
import platform

import jax
from absl import flags

import dsolo_jax as dsolo
from dsolo_jax.utils.files import write_json
from experiments import common
from experiments.benchmarks import memory, networks, peers, pipeline, solver, upsample

STAGES = {
    "solver": solver.run,
    "upsample": upsample.run,
    "clip": networks.pictures,
    "text": networks.texts,
    "graph": networks.graphs,
    "peers": peers.run,
    "pipeline": pipeline.run,
    "memory": memory.run,
}

# What a row says after its seconds, of the columns that it has.
_COLUMNS = {
    "baseline": "{ratio:6.3f} x {baseline} ({baseline_seconds:.5f} s)",
    "flops": "{flops:.3g} FLOP",
    "temporary_bytes": "{temporary_bytes:.3g} temporary bytes",
    "resident_bytes": "{resident_bytes:.3g} bytes above the loaded model",
    "share_of_peak": "{share_of_peak:.1%} of peak",
    "pictures_per_second": "{pictures_per_second:.3f} pictures/s",
    "squares": "{squares:.2f} N^2 floats",
}

_STAGE = flags.DEFINE_enum("stage", "all", ["all", *STAGES], "What to time.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write.")


def main() -> None:
    rows = []
    for stage in STAGES if _STAGE.value == "all" else (_STAGE.value,):
        for row in STAGES[stage]():
            print(line(row), flush=True)
            rows.append(row)
    if _OUTPUT.value:
        machine = {
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "dsolo_jax": dsolo.__version__,
        }
        write_json(_OUTPUT.value, {"machine": machine, "rows": rows})


def line(row: dict) -> str:
    """Writes a row as text; what it does not know is left out."""
    known = [text.format_map(row) for name, text in _COLUMNS.items() if row.get(name) is not None]
    return "  ".join([f"{row['stage']:11} {row['case']:44} {row['seconds']:10.5f} s", *known])


if __name__ == "__main__":
    common.run(main)
