"""Kills an evaluation (kill -9) at random moments, resumes it, and compares what it leaves.

python -m experiments.kill_eval [--kills=20] [--scenes=60] [--folder=DIR]

On made-up pictures and the demo's CLIP. One run is left alone; another is killed again and again,
some time after it has written a random number of pictures, and resumed until it ends, and then a
further one, until there were so many kills. Their results.json (but for the seconds),
per_image.csv, confusion.csv and predictions must be the same, byte for byte.
"""

import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from experiments import common

_KILLS = flags.DEFINE_integer("kills", 20, "How often.", lower_bound=1)
_SCENES = flags.DEFINE_integer("scenes", 60, "How many pictures.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_FOLDER = flags.DEFINE_string("folder", "outputs/kill_eval", "Folder to work in.")

# Each run is a process of its own, forked from one that has imported everything, started nothing.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["experiments.evaluation", "experiments.demo", "grain"])


def main() -> None:
    folder, scenes = Path(_FOLDER.value).expanduser(), _SCENES.value
    if folder.exists():
        raise ValueError(f"{folder} holds an earlier trial; remove it, or choose another --folder")
    _run(_draw, folder / "demo", scenes)
    left_alone = folder / "left_alone"
    start = time.monotonic()
    _run(_evaluate, folder / "demo", left_alone)
    seconds = time.monotonic() - start
    print(f"left alone: {_rows(left_alone)} pictures in {seconds:.0f} s", flush=True)

    moments, kills, runs = random.Random(_SEED.value), 0, 0
    while kills < _KILLS.value:
        runs += 1
        killed, ended = folder / f"killed_{runs}", False
        while not ended and kills < _KILLS.value:
            before = _rows(killed)
            until = min(before + moments.randint(0, 2 * scenes // _KILLS.value - 1), scenes - 1)
            # Before its first picture it has much to start; between two there is little time.
            pause = moments.uniform(0, seconds / 4 if until == before else seconds / scenes)
            ended = _run(_evaluate, folder / "demo", killed, until=until, pause=pause)
            kills += not ended
            what = "it had ended" if ended else f"kill {kills}"
            print(f"run {runs}, {what}: {before} pictures, then {_rows(killed)}", flush=True)
        _run(_evaluate, folder / "demo", killed)
        if differing := _differing(left_alone, killed):
            sys.exit(f"error: in run {runs} these differ: {', '.join(differing)}")
    print(f"{kills} kills in {runs} runs of {scenes} pictures")
    print("results.json, per_image.csv, confusion.csv and all predictions are the same")


def _draw(folder: Path, scenes: int) -> None:
    from experiments import demo  # whose flags are not this driver's

    demo.write(folder, scenes)


def _evaluate(made: Path, output_dir: Path) -> None:
    import dsolo_jax as dsolo
    from dsolo_jax import datasets
    from experiments import evaluation

    model = dsolo.load(clip=made / "clip", attention="clip", short_side=112, grid=14)
    dataset = datasets.load_folder(made / "images", made / "labels", made / "classes.txt")
    config = {"method": "velocity", "limit": None, "save_predictions": True}
    evaluation.evaluate(model, dataset, output_dir, config)


def _run(job: Callable, *arguments, until: int | None = None, pause: float = 0) -> bool:
    """Runs a job, or kills it `pause` seconds after it holds `until` pictures; whether it ended."""
    process = _PROCESSES.Process(target=job, args=arguments)
    process.start()
    if until is not None:
        while _rows(arguments[-1]) < until and process.is_alive():
            time.sleep(0.002)
        process.join(pause)
        process.kill()
    process.join()
    if process.exitcode > 0:
        raise ValueError(f"{job.__name__} failed, see above")
    return process.exitcode == 0


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
