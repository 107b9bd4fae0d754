"""Times the stages of the method beside what they are measured against, in the same run.

python -m experiments.benchmark --stage=all --output=benchmark.json

A ratio is ours over the baseline's. Shared machines drift: trust ratios, not seconds.
"""

import importlib
import os
import platform

import jax
from absl import flags

import dsolo_jax as dsolo
from dsolo_jax.utils.files import write_json
from experiments import common

STAGES = (
    "solver",
    "upsample",
    "clip",
    "text",
    "convolution",
    "vae",
    "unet",
    "dino",
    "pipeline",
    "memory",
    "shapes",
    "host",
)

_STAGE = flags.DEFINE_enum("stage", "all", ["all", *STAGES], "What to time.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write.")


def main() -> None:
    rows = []
    for stage in STAGES if _STAGE.value == "all" else (_STAGE.value,):
        for row in importlib.import_module(f"experiments.benchmarks.{stage}").run():
            print(line(row), flush=True)
            rows.append(row)
    if _OUTPUT.value:
        write_json(_OUTPUT.value, {"machine": machine(), "rows": rows})


def line(row: dict) -> str:
    """A row as text; a baseline whose library is not installed leaves its columns empty."""
    text = f"{row['stage']:11} {row['case']:44} {row['seconds']:10.5f} s"
    if row.get("baseline_seconds"):
        text += f"  {row['ratio']:6.3f} x {row['baseline']} ({row['baseline_seconds']:.5f} s)"
    if row.get("flops"):
        text += f"  {row['flops'] / 1e9:.2f} GFLOP"
    if row.get("temporary_bytes"):
        text += f"  {row['temporary_bytes'] / 2**20:.0f} MiB"
    if row.get("share_of_peak"):
        text += f"  {row['share_of_peak']:.1%} of peak"
    if row.get("pictures_per_second"):
        text += f"  {row['pictures_per_second']:.3f} pictures/s"
    if row.get("squares"):
        text += f"  {row['squares']:.2f} N^2 floats (XLA: {row['xla_squares']:.2f})"
    if row.get("programs"):
        text += f"  {row['programs']} programs"
    if "padding" in row:
        text += f"  {row['padding']:+.1%} work"
    return text


def machine() -> dict:
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "dsolo_jax": dsolo.__version__,
    }


if __name__ == "__main__":
    common.run(main)
