"""experiments.eval: its numbers recomputed, its interruptions survived, its errors clear."""

import csv
import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from running import command, demo_flags, run

from dsolo_jax import datasets, metrics
from experiments.evaluation import evaluate


def flags_of(demo, output_dir):
    return (*demo_flags(demo), "--short_side=224", f"--output_dir={output_dir}")


def without_times(path):
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}


@pytest.fixture(scope="module")
def dataset(demo):
    return datasets.load_folder(demo / "images", demo / "labels", demo / "classes.txt")


CONFIG = {"method": "kl", "limit": None, "save_predictions": True}
TEMPERATURE = {"temperature": 0.1, "temperature_unit": "cosine"}  # fits the demo's CLIP


@pytest.fixture(scope="module")
def model(model):
    return dataclasses.replace(model, readings=dataclasses.replace(model.readings, **TEMPERATURE))


@pytest.fixture(scope="module")
def whole(model, dataset, tmp_path_factory):
    """An uninterrupted run in this process."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(model, dataset, folder, CONFIG, batch_size=2)
    return folder


def test_miou_is_that_of_the_saved_predictions(whole, demo):
    classes = len((demo / "classes.txt").read_text().splitlines())
    intersection, union = np.zeros(classes), np.zeros(classes)
    for path in sorted((demo / "labels").iterdir()):
        truth = np.asarray(Image.open(path))
        prediction = np.asarray(Image.open(whole / "predictions" / path.name))
        assert prediction.shape == truth.shape
        for c in range(classes):
            intersection[c] += ((prediction == c) & (truth == c) & (truth != 255)).sum()
            union[c] += (((prediction == c) | (truth == c)) & (truth != 255)).sum()
    results = json.loads((whole / "results.json").read_text())
    iou = intersection[union > 0] / union[union > 0]
    assert results["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    assert results["miou"] > 0.8  # the demo's CLIP knows these colours
    reported = [value for value in results["per_class"].values() if value is not None]
    np.testing.assert_allclose(reported, iou, atol=1e-6)
    assert results["num_images"] == 5 and results["dataset"] == "folder"


def test_check_miou_says_so_too(whole, demo):
    flags = (f"--run={whole}", f"--labels={demo}/labels")
    done = run("check_miou", *flags)
    found, recomputed, difference = (line.split()[-1] for line in done.stdout.splitlines())
    assert found == recomputed and float(difference) <= 1e-6, done.stderr


def test_per_image_rows_are_the_pictures_in_order(whole, dataset):
    with (whole / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(dataset.ids)
    assert all(0 < float(row["miou"]) <= 1 and 0 < float(row["accuracy"]) <= 1 for row in rows)


@pytest.mark.parametrize("cut", ["between rows", "inside a row", "inside a batch"])
def test_a_cut_off_run_resumes_to_the_same_result(cut, whole, model, dataset, tmp_path):
    evaluate(model, dataset, tmp_path, CONFIG, batch_size=2)
    (tmp_path / "results.json").unlink()
    lines = (tmp_path / "per_image.csv").read_bytes().splitlines(keepends=True)
    kept = {"between rows": lines[:3], "inside a row": [*lines[:3], lines[3][:9]]}
    (tmp_path / "per_image.csv").write_bytes(b"".join(kept.get(cut, lines[:2])))
    evaluate(model, dataset, tmp_path, CONFIG, batch_size=2)
    assert without_times(tmp_path / "results.json") == without_times(whole / "results.json")
    assert (tmp_path / "per_image.csv").read_bytes() == (whole / "per_image.csv").read_bytes()


def test_killed_half_way_and_run_again_from_the_command_line(demo, tmp_path):
    assert run("eval", *flags_of(demo, tmp_path / "whole"), "--save_predictions").returncode == 0
    killed = (*flags_of(demo, tmp_path / "killed"), "--save_predictions")
    table = tmp_path / "killed" / "per_image.csv"
    process = subprocess.Popen(command("eval", *killed), stderr=subprocess.DEVNULL)
    while not (table.exists() and len(table.read_text().splitlines()) >= 3):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(table.read_text().splitlines()) - 1
    assert done < 5 and not (tmp_path / "killed" / "results.json").exists()

    again = run("eval", *killed)
    assert again.returncode == 0 and "mIoU" in again.stdout
    ours, theirs = (without_times(tmp_path / k / "results.json") for k in ("killed", "whole"))
    assert ours == theirs
    assert f"{5 - done}/{5 - done} images" in again.stderr  # only the missing ones


def test_devices_and_processes_change_no_bit(whole, demo, tmp_path):
    """Eight devices in one process, and two processes that end and are resumed as one."""
    flags = [*flags_of(demo, tmp_path / "devices"), "--method=kl", "--save_predictions"]
    flags[:0] = [f"--{name}={value}" for name, value in TEMPERATURE.items()]
    count = "--xla_force_host_platform_device_count=8"
    eight = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}"}
    done = subprocess.run(command("eval", *flags), env=eight, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "devices", whole)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    flags[-3] = f"--output_dir={tmp_path}/processes"
    processes = [
        subprocess.Popen(
            command("eval", *flags, coordinator, "--num_processes=2", f"--process_id={i}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "3/3 images" in said[0][1] and "2/2 images" in said[1][1]
    assert "mIoU" in said[0][0] and "mIoU" not in said[1][0]
    assert_same_run(tmp_path / "processes", whole)


def assert_same_run(ours, theirs):
    names = {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()}
    assert {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()} == names
    for name in names - {
        "config.json",
        "results.json",
    }:  # flags are in the one, seconds in the other
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for key in ("miou", "per_class", "num_images"):
        results = [json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)]
        assert results[0][key] == results[1][key]


def test_tables_of_processes_are_resumed_by_one(whole, model, dataset, tmp_path):
    """What two processes left when they were killed: rows out of order, and a cut line each."""
    evaluate(model, dataset, tmp_path, CONFIG)
    header, *rows = (tmp_path / "per_image.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "per_image.csv").write_bytes(header + rows[2] + rows[0] + rows[4][:7])
    (tmp_path / "per_image.1.csv").write_bytes(header + rows[3] + rows[1][:30])
    (tmp_path / "confusion.csv").unlink()
    (tmp_path / "predictions" / f".{'0f' * 16}.png").touch()  # half a prediction
    evaluate(model, dataset, tmp_path, CONFIG)
    assert_same_run(tmp_path, whole)


def test_the_confusion_matrix_is_written(whole, dataset):
    matrix = np.loadtxt(whole / "confusion.csv", delimiter=",", dtype=np.int64)
    _, iou = metrics.mean_iou(matrix)
    reported = json.loads((whole / "results.json").read_text())["per_class"]
    np.testing.assert_array_equal(iou, [np.nan if x is None else x for x in reported.values()])
    labelled = sum((dataset[i]["labels"] != dataset.ignore).sum() for i in range(len(dataset)))
    assert matrix.sum() == labelled


def test_a_folder_with_another_run_is_refused_until_overwritten(whole, model, dataset, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    other = CONFIG | {"method": "logits"}
    with pytest.raises(ValueError, match="method 'kl' there, 'logits' now.*--overwrite"):
        evaluate(model, dataset, tmp_path / "run", other)
    results = evaluate(model, dataset, tmp_path / "run", other, overwrite=True)
    assert results["method"] == "logits" and results["num_images"] == 5


def test_limit_takes_the_first_pictures(model, dataset, tmp_path):
    results = evaluate(model, dataset, tmp_path, CONFIG | {"limit": 2})
    assert results["num_images"] == 2
    assert sorted(os.listdir(tmp_path / "predictions")) == ["scene_0.png", "scene_1.png"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dataset=ade20"], "unknown dataset 'ade20' (did you mean 'ade20k'?)"),
        (["--dataset=ade20k"], "--dataset=ade20k needs --data_dir too"),
        (["--dataset=ade20k", "--data_dir=nowhere"], "python -m experiments.prepare"),
        (["--clip=nowhere"], "'nowhere' is neither a folder nor a hub id"),
        (["--labels=nowhere"], "no folder of labels at nowhere"),
        (["--classes=nowhere"], "no class file at nowhere"),
        (["--output_dir=/proc/nowhere"], "cannot write /proc/nowhere"),
    ],
)
def test_errors_are_one_message(flags, message, demo, tmp_path):
    done = run("eval", *flags_of(demo, tmp_path), *flags)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_picture_is_named(model, demo, tmp_path):
    shutil.copytree(demo / "images", tmp_path / "images")
    (tmp_path / "images" / "scene_3.png").write_bytes(b"")
    damaged = datasets.load_folder(tmp_path / "images", demo / "labels", demo / "classes.txt")
    with pytest.raises(ValueError, match="scene_3.png"):
        evaluate(model, damaged, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_disk_that_takes_no_more_is_named(model, dataset, whole, tmp_path):
    """The system refuses to let the table grow; what it holds stays whole, and the run resumes."""
    config = CONFIG | {"save_predictions": False}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    evaluate(model, dataset, tmp_path, config)
    table = tmp_path / "per_image.csv"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:2]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (table.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write .*per_image.csv: File too large"):
            evaluate(model, dataset, tmp_path, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resumed = evaluate(model, dataset, tmp_path, config)
    assert resumed["per_class"] == json.loads((whole / "results.json").read_text())["per_class"]
