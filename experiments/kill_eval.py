"""Kills an evaluation (kill -9) at random moments, resumes it, and compares what it leaves.

python -m experiments.kill_eval [--kills=20] [--pictures=60] [--output_dir=DIR]

On made-up pictures and the demo's CLIP. One run is left alone; another is killed again and again,
some time after it has written a random number of pictures, and started anew, until it ends. Their
results.json (but for the seconds), per_image.csv, confusion.csv and predictions must be the same,
byte for byte.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import common

_KILLS = flags.DEFINE_integer("kills", 20, "How often.", lower_bound=1)
_PICTURES = flags.DEFINE_integer("pictures", 60, "How many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "outputs/kill_eval", "Folder to work in.")


def main() -> None:
    folder = Path(_OUTPUT_DIR.value).expanduser()
    if (folder / "killed").exists():
        raise ValueError(f"{folder} holds an earlier trial; remove it, or choose --output_dir")
    made = [f"--output_dir={folder}/demo", f"--pictures={_PICTURES.value}"]
    subprocess.run([sys.executable, "-m", "experiments.demo", *made], check=True)
    left_alone, killed = folder / "left_alone", folder / "killed"
    start = time.monotonic()
    _run(folder, left_alone)
    seconds = time.monotonic() - start
    print(f"left alone: {_rows(left_alone)} pictures in {seconds:.0f} s", flush=True)

    moments = random.Random(_SEED.value)
    for number in range(1, _KILLS.value + 1):
        before = _rows(killed)
        more = moments.randint(0, 2 * _PICTURES.value // _KILLS.value - 1)
        until = min(before + more, _PICTURES.value - 1)
        pause = moments.uniform(0, seconds / 4 if until <= before else seconds / _PICTURES.value)
        ended = _run(folder, killed, until=until, pause=pause)
        state = "it had ended" if ended else f"after {pause:.2f} s more"
        print(f"kill {number}: {before} pictures, then {_rows(killed)}, {state}", flush=True)
        if ended:
            break
    _run(folder, killed)
    differing = _differing(left_alone, killed)
    print(f"resumed after {number} kills: {_rows(killed)} pictures")
    if differing:
        sys.exit(f"error: these differ: {', '.join(differing)}")
    print("results.json, per_image.csv, confusion.csv and all predictions are the same")


def _run(folder: Path, output_dir: Path, until: int | None = None, pause: float = 0) -> bool:
    """An evaluation, killed `pause` seconds after it holds `until` pictures; whether it ended."""
    made = folder / "demo"
    command = [sys.executable, "-m", "experiments.eval", "--dataset=folder"]
    command += [f"--images={made}/images", f"--labels={made}/labels"]
    command += [f"--classes={made}/classes.txt", f"--clip={made}/clip", "--attention=clip"]
    command += ["--short_side=112", "--save_predictions", f"--output_dir={output_dir}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if until is not None:
        while _rows(output_dir) < until and process.poll() is None:
            time.sleep(0.002)
        time.sleep(pause)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise ValueError(f"the evaluation failed:\n{said.decode()}")
    return process.returncode == 0


def _rows(output_dir: Path) -> int:
    """Pictures that a run holds."""
    table = output_dir / "per_image.csv"
    return max(table.read_bytes().count(b"\n") - 1, 0) if table.is_file() else 0


def _differing(one: Path, other: Path) -> list[str]:
    """Files of which the two folders do not hold the same."""
    names = {str(p.relative_to(d)) for d in (one, other) for p in d.rglob("*") if p.is_file()}
    return [name for name in sorted(names) if _content(one / name) != _content(other / name)]


def _content(path: Path) -> bytes | dict | None:
    if not path.is_file():
        return None
    if path.name != "results.json":
        return path.read_bytes()
    return {k: v for k, v in json.loads(path.read_bytes()).items() if k != "seconds"}


if __name__ == "__main__":
    common.run(main)
