"""Kills an evaluation (kill -9) at random moments, resumes it, and compares what it leaves.

python -m pytest tests/full_size/test_kills.py -m full_size -s

Takes some minutes: 20 kills of runs of 60 scenes of the miniature world. One run is left
alone; another is killed again and again, some time after it has written a random number of
pictures, and resumed until it ends, and then a further one, until there were so many kills. Every
file they leave must be the same, byte for byte, but for the seconds in results.json.
"""

import json
import multiprocessing
import random
import time

import pytest

pytestmark = pytest.mark.full_size

KILLS, PICTURES = 20, 60

# Each run is a process of its own, forked from one that has imported everything, started nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["experiments.evaluation", "grain"])


def evaluate(output_dir, pictures):
    """What is killed."""
    import dsolo_jax as dsolo
    from dsolo_jax.datasets import miniature
    from experiments import evaluation

    model = dsolo.load("miniature")
    config = {"method": "velocity", "limit": pictures, "save_predictions": True}
    config |= evaluation.made_with(model)
    evaluation.evaluate(model, miniature.load(), output_dir, config)


def run(output_dir, *, until=None, pause=0.0):
    """Evaluates, or kills it `pause` seconds after it holds `until` pictures; whether it ended."""
    process = PROCESSES.Process(target=evaluate, args=(output_dir, PICTURES))
    process.start()
    if until is not None:
        while rows(output_dir) < until and process.is_alive():
            time.sleep(0.002)
        process.join(pause)
        process.kill()
    process.join()
    assert process.exitcode <= 0, "the evaluation failed, see above"
    return process.exitcode == 0


def rows(output_dir):
    """Pictures that a run holds."""
    table = output_dir / "per_image.csv"
    return max(table.read_bytes().count(b"\n") - 1, 0) if table.is_file() else 0


def contents(folder):
    """Every file by its name, results.json without what the clock says."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    results = json.loads(found["results.json"])
    return found | {"results.json": {k: v for k, v in results.items() if k != "seconds"}}


def test_killed_runs_leave_what_one_left_alone_does(tmp_path):
    left_alone = tmp_path / "left_alone"
    start = time.monotonic()
    assert run(left_alone)
    seconds = time.monotonic() - start
    print(f"\nleft alone: {rows(left_alone)} pictures in {seconds:.0f} s", flush=True)

    moments, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        killed, ended = tmp_path / f"killed_{runs}", False
        while not ended and kills < KILLS:
            before = rows(killed)
            until = min(before + moments.randint(0, 2 * PICTURES // KILLS - 1), PICTURES - 1)
            # Before its first picture it has much to start; between two there is little time.
            pause = moments.uniform(0, seconds / 2 if until == before else 0.03)
            ended = run(killed, until=until, pause=pause)
            kills += not ended
            what = "it had ended" if ended else f"kill {kills}"
            print(f"run {runs}, {what}: {before} pictures, then {rows(killed)}", flush=True)
        assert run(killed)
        assert contents(killed) == contents(left_alone)
    print(f"{kills} kills in {runs} runs of {PICTURES} pictures left the same")
