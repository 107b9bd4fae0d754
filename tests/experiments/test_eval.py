"""experiments.eval: its numbers recomputed, its interruptions survived, its errors clear."""

import csv
import dataclasses
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from running import MINIATURE, call, command, run, write_folder

import dsolo_jax as dsolo
from dsolo_jax import datasets, draw, images, metrics
from dsolo_jax.assets import bundled
from dsolo_jax.datasets import miniature
from dsolo_jax.readings import described
from dsolo_jax.utils import fingerprint
from experiments import evaluation
from experiments.evaluation import Run, evaluate, made_with

SCENES = 5
CONFIG = {"method": "velocity", "limit": SCENES, "save_predictions": True}


@pytest.fixture(scope="module")
def model():
    return dsolo.load("miniature")


@pytest.fixture(scope="module")
def dataset():
    return miniature.load()


@pytest.fixture(scope="module")
def whole(model, dataset, tmp_path_factory):
    """An uninterrupted run in this process."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(model, dataset, folder, CONFIG, batch_size=2)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run, for a test to change."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """An uninterrupted run from the command line."""
    folder = tmp_path_factory.mktemp("commanded")
    done = call("eval", *MINIATURE, f"--limit={SCENES}", f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def contents(folder):
    """Every file by its name, but config.json and what the clock and the flags say in results."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["config.json"]
    apart = ("seconds", "config")
    found["results.json"] = {k: v for k, v in results_of(folder).items() if k not in apart}
    return found


def nothing_runs(monkeypatch):
    def predictions(*args, **options):
        raise AssertionError("a picture is run")

    monkeypatch.setattr(evaluation, "predictions", predictions)


# ------------------------------------------------------------------------------- results


def test_figures_are_those_of_the_saved_predictions(whole, dataset):
    truths = [dataset[i]["labels"] for i in range(SCENES)]
    files = [whole / "predictions" / f"{id_}.png" for id_ in dataset.ids[:SCENES]]
    labels = [np.asarray(Image.open(path)) for path in files]
    assert [one.shape for one in labels] == [truth.shape for truth in truths]
    counts = np.concatenate([truth.ravel() != dataset.ignore for truth in truths])
    truth, label = (np.concatenate([x.ravel() for x in xs])[counts] for xs in (truths, labels))
    classes = range(len(dataset.classes))
    both = np.array([((label == c) & (truth == c)).sum() for c in classes])
    union = np.array([((label == c) | (truth == c)).sum() for c in classes])
    of_class = np.array([(truth == c).sum() for c in classes])

    results = results_of(whole)
    iou = both[union > 0] / union[union > 0]
    assert results["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    assert results["accuracy"] == pytest.approx((label == truth).mean(), abs=1e-6)
    there = of_class > 0
    mean_accuracy = (both[there] / of_class[there]).mean()
    assert results["mean_accuracy"] == pytest.approx(mean_accuracy, abs=1e-6)
    reported = [value for value in results["per_class"].values() if value is not None]
    np.testing.assert_allclose(reported, iou, atol=1e-6)
    assert list(results["per_class"]) == list(dataset.names)
    assert results["num_images"] == SCENES and results["dataset"] == "miniature"
    assert results["miou"] > 0.3  # so that none of these is nothing


def test_figures_of_subsets_are_those_of_their_pixels(whole, dataset):
    for name in dataset.subsets:
        total = np.zeros((len(dataset.classes),) * 2, np.int64)
        for i in range(SCENES):
            example, path = dataset[i], whole / "predictions" / f"{dataset.ids[i]}.png"
            inside = example["subsets"][name]
            np.add.at(total, (example["labels"][inside], np.asarray(Image.open(path))[inside]), 1)
        iou = np.diagonal(total) / np.maximum(total.sum(0) + total.sum(1) - np.diagonal(total), 1)
        expected = iou[total.sum(1) > 0].mean()
        assert results_of(whole)[f"miou_{name}"] == pytest.approx(expected, abs=1e-6)


def test_per_image_rows_are_the_pictures_in_order(whole, dataset):
    with (whole / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(dataset.ids[:SCENES])
    assert all(0 < float(row["miou"]) <= 1 and 0 < float(row["accuracy"]) <= 1 for row in rows)


def test_the_confusion_matrix_is_written_below_the_classes(whole, dataset):
    with (whole / "confusion.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    assert names == list(dataset.names)
    matrix = np.array(rows, np.int64)
    _, iou = metrics.mean_iou(matrix)
    reported = results_of(whole)["per_class"].values()
    np.testing.assert_array_equal(iou, [np.nan if x is None else x for x in reported])
    labelled = sum((dataset[i]["labels"] != dataset.ignore).sum() for i in range(SCENES))
    assert matrix.sum() == labelled


def test_limit_takes_the_first_pictures(model, dataset, tmp_path):
    results = evaluate(model, dataset, tmp_path, CONFIG | {"limit": 2})
    assert results["num_images"] == 2
    saved = sorted(os.listdir(tmp_path / "predictions"))
    assert saved == ["validation_00000.png", "validation_00001.png"]


def test_predictions_show_the_classes_colours(whole, dataset):
    with Image.open(whole / "predictions" / f"{dataset.ids[0]}.png") as picture:
        colours = np.asarray(picture.convert("RGB"))
        indices = np.asarray(picture)
    np.testing.assert_array_equal(colours, draw.palette(len(dataset.classes))[indices])
    np.testing.assert_array_equal(
        images.read_labels(whole / "predictions" / f"{dataset.ids[0]}.png"), indices
    )


# ------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("cut", ["between rows", "inside a row", "inside a batch"])
def test_a_cut_off_run_resumes_to_the_same_result(cut, whole, copy, model, dataset):
    (copy / "results.json").unlink()
    table = copy / "per_image.csv"
    lines = table.read_bytes().splitlines(keepends=True)
    kept = {"between rows": lines[:3], "inside a row": [*lines[:3], lines[3][:9]]}
    table.write_bytes(b"".join(kept.get(cut, lines[:2])))
    evaluate(model, dataset, copy, CONFIG, batch_size=2)
    assert contents(copy) == contents(whole)


def test_killed_half_way_and_run_again_from_the_command_line(commanded, tmp_path):
    flags = (*MINIATURE, f"--limit={SCENES}", f"--output_dir={tmp_path}")
    table = tmp_path / "per_image.csv"
    process = subprocess.Popen(command("eval", *flags), stderr=subprocess.DEVNULL)
    while not (table.exists() and table.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = table.read_bytes().count(b"\n") - 1
    assert done < SCENES and not (tmp_path / "results.json").exists()

    again = run("eval", *flags)
    assert again.returncode == 0 and "mIoU" in again.stdout, again.stderr
    assert contents(tmp_path) == contents(commanded)
    assert (tmp_path / "config.json").read_bytes() == (commanded / "config.json").read_bytes()
    assert f"{SCENES - done}/{SCENES - done} images" in again.stderr  # only the missing ones


def test_a_run_goes_on_with_its_own_batch_size(model, tmp_path, monkeypatch):
    chosen = partial(evaluation.batch_size_of_run, model, tmp_path)
    monkeypatch.setattr(evaluation, "suitable_batch_size", lambda model: 16)
    assert chosen(overwrite=False) == 16
    (tmp_path / "config.json").write_text('{"batch_size": 2}')
    assert (chosen(overwrite=False), chosen(overwrite=True)) == (2, 16)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    of_first = SimpleNamespace(broadcast_one_to_all=lambda size: size + 2)
    monkeypatch.setattr(evaluation, "multihost_utils", of_first)
    assert chosen(overwrite=False) == 4
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        chosen(overwrite=False)


def test_devices_and_processes_change_no_bit(whole, tmp_path):
    """Two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    flags = (*MINIATURE, f"--limit={SCENES}", "--batch_size=2", f"--output_dir={tmp_path}/run")
    count = "--xla_force_host_platform_device_count=2"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["env"] = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}"}
    flags = (*flags, coordinator, "--num_processes=2")
    processes = [
        subprocess.Popen(command("eval", *flags, f"--process_id={i}"), **pipes) for i in range(2)
    ]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "3/3 images" in said[0][1] and "2/2 images" in said[1][1]
    assert "process 1: waiting for process 0 at 127.0.0.1" in said[1][1]
    assert "mIoU" in said[0][0] and "mIoU" not in said[1][0]
    assert contents(tmp_path / "run") == contents(whole)


def test_tables_of_processes_are_resumed_by_one(whole, copy, model, dataset):
    """What two processes left when they were killed: rows out of order, and a cut line each."""
    header, *rows = (copy / "per_image.csv").read_bytes().splitlines(keepends=True)
    (copy / "per_image.csv").write_bytes(header + rows[2] + rows[0] + rows[4][:7])
    (copy / "per_image.1.csv").write_bytes(header + rows[3] + rows[1][:30])
    for name in ("confusion.csv", "results.json"):
        (copy / name).unlink()
    (copy / "predictions" / f".{'0f' * 16}.png").touch()  # half a prediction
    evaluate(model, dataset, copy, CONFIG, batch_size=2)
    assert contents(copy) == contents(whole)


def test_a_disk_that_takes_no_more_is_named(model, dataset, whole, copy):
    """The system refuses to let the table grow; what it holds stays whole, and the run resumes."""
    (copy / "results.json").unlink()
    table = copy / "per_image.csv"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:-1]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (table.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write .*: File too large"):
            evaluate(model, dataset, copy, CONFIG, batch_size=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    evaluate(model, dataset, copy, CONFIG, batch_size=2)
    assert contents(copy) == contents(whole)


# ------------------------------------------------------------------------------- one folder


def test_a_finished_run_keeps_what_it_has(whole, copy, model, dataset, monkeypatch, capsys):
    results = results_of(copy)
    results |= {"seconds": 12.5, "versions": {"jax": "of another day"}}
    (copy / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    nothing_runs(monkeypatch)
    assert evaluate(model, dataset, copy, CONFIG, batch_size=2)["seconds"] == 12.5
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert f"{copy} was finished already" in capsys.readouterr().out

    (copy / "confusion.csv").unlink()  # what can be had from the table is made again
    evaluate(model, dataset, copy, CONFIG, batch_size=2)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_the_panel_is_of_the_saved_predictions(commanded, dataset, tmp_path):
    """Of a finished run, one of whose predictions has been painted over."""
    folder = shutil.copytree(commanded, tmp_path / "run")
    predictions = [folder / "predictions" / f"{id_}.png" for id_ in dataset.ids[:2]]
    images.write_png(predictions[0], np.full_like(dataset[0]["labels"], 3))
    flags = ("--dataset=miniature", "--panel=2", f"--limit={SCENES}", f"--output_dir={folder}")
    done = call("eval", *flags)
    assert done.returncode == 0, done.stderr
    assert "was finished already" in done.stdout and "images/s" not in done.stderr
    assert (folder / "results.json").read_bytes() == (commanded / "results.json").read_bytes()
    examples = [
        (dataset[i]["image"], dataset[i]["labels"], np.asarray(Image.open(path)))
        for i, path in enumerate(predictions)
    ]
    expected = draw.panel(examples, dataset.names, across=2)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "panel.png")), expected)


def test_a_folder_with_another_run_is_refused_until_overwritten(copy, model, dataset):
    other = CONFIG | {"method": "logits"}
    with pytest.raises(ValueError, match=r"\(method 'velocity' there, 'logits' now\).*--overwrite"):
        evaluate(model, dataset, copy, other)
    results = evaluate(model, dataset, copy, other, overwrite=True)
    assert results["method"] == "logits" and results["num_images"] == SCENES


@pytest.mark.parametrize("changed", ["classes.txt", "labels/two.png"])
def test_other_classes_or_labels_under_the_same_names_are_another_run(changed, dataset, tmp_path):
    """Old figures would go under new names, or new label maps be counted with old ones."""
    write_folder(tmp_path, dataset, ["one", "two"])
    places = (tmp_path / "images", tmp_path / "labels", tmp_path / "classes.txt")
    with Run(tmp_path / "run", datasets.load_folder(*places), CONFIG):
        pass
    with Run(tmp_path / "run", datasets.load_folder(*places), CONFIG):
        pass
    path = tmp_path / changed
    if path.suffix == ".txt":
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    else:
        images.write_png(path, images.read_labels(path)[::-1])
    with pytest.raises(ValueError, match=r"other settings \(classes_and_files '\w+' there"):
        Run(tmp_path / "run", datasets.load_folder(*places), CONFIG)


def test_of_nested_settings_those_are_named_that_differ(dataset, tmp_path):
    protocol = {"short_side": 336, "vocabulary": "plain"}
    with Run(tmp_path, dataset, CONFIG | {"protocol": protocol}):
        pass
    other = CONFIG | {"protocol": protocol | {"short_side": 448}}
    with pytest.raises(ValueError, match=r"settings \(protocol.short_side 336 there, 448 now\);"):
        Run(tmp_path, dataset, other)


def test_overwriting_leaves_nothing_old(whole, copy, model, dataset):
    for name in ("per_image.1.csv", "panel.png", "predictions/old.png"):
        (copy / name).write_bytes(b"old")
    run_ = Run(copy, dataset, CONFIG, overwrite=True)
    run_.close()
    assert len(run_.todo()) == SCENES
    left = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert left == {".lock", "config.json", "per_image.csv"}
    evaluate(model, dataset, copy, CONFIG, batch_size=2)
    assert contents(copy) == contents(whole)


def test_other_weights_and_other_code_are_refused(commanded, model, dataset, monkeypatch):
    config = json.loads((commanded / "config.json").read_text())
    made = made_with(model)
    assert {key: config[key] for key in made} == made and {"weights", "code"} < set(made)

    bias = model.params["clip"]["vision"]["blocks_0"]["query"]["bias"]
    params = jax.tree.map(lambda x: x + 1e-3 if x is bias else x, model.params)
    other = made_with(dsolo.Model(model.config, params))
    with pytest.raises(ValueError, match=r"other settings \(weights '\w+' there, '\w+' now\)"):
        evaluate(model, dataset, commanded, config | other)
    monkeypatch.setattr(fingerprint, "of_code", lambda: "changed")
    with pytest.raises(ValueError, match=r"other settings \(code '\w+' there, 'changed' now\)"):
        evaluate(model, dataset, commanded, config | made_with(model))


def test_two_runs_in_one_folder_at_once(copy, model, dataset):
    with Run(copy, dataset, CONFIG):
        with pytest.raises(OSError, match=f"another run is writing to {copy}; wait for it"):
            evaluate(model, dataset, copy, CONFIG, overwrite=True)
    evaluate(model, dataset, copy, CONFIG)


def test_a_refused_run_lets_the_folder_go(copy, model, dataset):
    with pytest.raises(ValueError, match="holds a run with other settings") as refused:
        Run(copy, dataset, CONFIG | {"method": "kl"})
    evaluate(model, dataset, copy, CONFIG)
    assert refused  # its traceback still holds the run


def test_a_file_system_without_locks_is_a_warning(copy, model, dataset, monkeypatch):
    def flock(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked .*Function not implemented"):
        evaluate(model, dataset, copy, CONFIG)


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", [b"", b'{"method": ', b"[]", b"\xff\xfe"])
def test_damaged_records_are_one_message(name, content, copy, model, dataset):
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*\); choose .*--overwrite it"):
        evaluate(model, dataset, copy, CONFIG)


# ------------------------------------------------------------------------------- other pictures


def test_names_of_any_kind_survive(model, dataset, tmp_path):
    names = ['e "f", g', "h;i", "\u00e4\u6c34"]
    write_folder(tmp_path, dataset, names)
    mine = datasets.load_folder(tmp_path / "images", tmp_path / "labels", tmp_path / "classes.txt")
    config = CONFIG | {"limit": None}
    evaluate(model, mine, tmp_path / "run", config)
    with (tmp_path / "run" / "per_image.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)] == sorted(names)
    before = contents(tmp_path / "run")
    assert {f"predictions/{name}.png" for name in names} < before.keys()

    table = tmp_path / "run" / "per_image.csv"
    table.write_bytes(table.read_bytes()[:-9])
    evaluate(model, mine, tmp_path / "run", config)
    assert contents(tmp_path / "run") == before


def test_masks_of_0_and_255_are_told_of(tmp_path):
    """The second class stands as 255, the value that does not count."""
    labels = np.zeros((20, 30), np.uint8)
    labels[:, :12] = 255
    images.write_png(tmp_path / "images" / "a.png", np.zeros((20, 30, 3), np.uint8))
    images.write_png(tmp_path / "labels" / "a.png", labels)
    (tmp_path / "classes.txt").write_text("sky\ngrass\n")
    flags = (f"--images={tmp_path}/images", f"--labels={tmp_path}/labels", "--method=logits")
    flags = (*flags, f"--classes={tmp_path}/classes.txt", "--preset=miniature")
    done = call("eval", "--dataset=folder", *flags, f"--output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "  no label map holds grass; 40.0% of the pixels are ignored" in done.stdout
    results = results_of(tmp_path / "run")
    assert results["absent"] == ["grass"] and results["ignored"] == pytest.approx(0.4)


def test_four_hundred_classes_finish(model, tmp_path, monkeypatch):
    classes, size = 400, 401
    truth = np.arange(size * size).reshape(size, size) % classes
    images.write_png(tmp_path / "images" / "a.png", np.zeros((size, size, 3), np.uint8))
    images.write_png(tmp_path / "labels" / "a.png", truth.astype(np.uint16))
    (tmp_path / "classes.txt").write_text("\n".join(f"class {c}" for c in range(classes)))
    mine = datasets.load_folder(
        tmp_path / "images", tmp_path / "labels", tmp_path / "classes.txt", ignore=65535
    )
    answer = np.random.default_rng(0).integers(0, classes, truth.shape)
    monkeypatch.setattr(evaluation, "predictions", lambda *_, **__: iter([(mine[0], [answer])]))
    results = evaluate(model, mine, tmp_path / "run", CONFIG | {"limit": None})
    expected, _ = metrics.mean_iou(metrics.confusion_matrix(answer, truth, classes, mine.ignore))
    assert len((tmp_path / "run" / "per_image.csv").read_text()) > 131_072
    assert results["miou"] == pytest.approx(expected)
    np.testing.assert_array_equal(
        images.read_labels(tmp_path / "run" / "predictions" / "a.png"), answer
    )


def test_a_damaged_picture_is_named(model, dataset, tmp_path):
    write_folder(tmp_path, dataset, ["one", "two"])
    (tmp_path / "images" / "two.png").write_bytes(b"")
    damaged = datasets.load_folder(
        tmp_path / "images", tmp_path / "labels", tmp_path / "classes.txt"
    )
    with pytest.raises(ValueError, match="two.png"):
        evaluate(model, damaged, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run" / "results.json").exists()


# ------------------------------------------------------------------------------- the command


def test_readings_change_the_result_and_are_recorded(commanded, tmp_path):
    usual = dsolo.model.PRESETS["miniature"].readings
    said, changed = described(usual), described(dataclasses.replace(usual, tau=0.6))
    flags = (*MINIATURE, f"--limit={SCENES}", f"--readings={changed.replace(',', ', ')}")
    done = call("eval", *flags, f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    results, before = results_of(tmp_path), results_of(commanded)
    assert results["config"]["readings"] == changed
    assert results["config"] | {"readings": said} == before["config"]
    assert results["miou"] != before["miou"]

    done = call("eval", *flags, f"--output_dir={commanded}")
    assert done.returncode == 1
    told = f"holds a run with other settings (readings '{said}' there, '{changed}' now)"
    assert told in done.stderr


@pytest.mark.parametrize("method", ["kl", "logits"])
def test_methods_without_a_graph_need_no_weights_of_its_source(method, dataset, tmp_path):
    bundle = bundled("miniature", "stable_diffusion")
    source = tmp_path / "source"
    shutil.copytree(bundle, source, ignore=shutil.ignore_patterns("*.safetensors"))
    flags = (*MINIATURE, f"--attention={source}", "--limit=2", f"--output_dir={tmp_path}/run")
    done = call("eval", *flags, f"--method={method}")
    assert done.returncode == 0, done.stderr
    with_graph = dsolo.load("miniature", attention=bundle)
    assert with_graph.params["attention"] is not None
    config = CONFIG | {"method": method, "limit": 2}
    evaluate(with_graph, dataset, tmp_path / "with_graph", config)
    assert contents(tmp_path / "run") == contents(tmp_path / "with_graph")


@pytest.fixture(scope="module")
def folder_flags(dataset, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), dataset, ["one", "two"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--clip=nowhere"], "'nowhere' is neither a folder nor a hub id"),
        (["--labels=nowhere"], "no folder of labels at nowhere"),
        (["--classes=nowhere"], "no class file at nowhere"),
        (["--output_dir=/proc/nowhere"], "cannot write /proc/nowhere"),
        (["--readings=robust,taw=1"], "unknown reading 'taw' (did you mean 'tau'?)"),
        (["--num_processes=2"], "wanted the same HOST:PORT for all processes"),
        (["--num_processes=2", "--coordinator=localhost"], "=localhost: wanted HOST:PORT of"),
        (["--num_processes=2", "--coordinator=localhost:0"], "=localhost:0: wanted HOST:PORT of"),
        (["--coordinator=localhost:1"], "--coordinator would do nothing without --num_processes"),
        (["--split=train"], "--split would do nothing with --dataset=folder, which has no splits"),
        (["--vocabulary=plain"], "--vocabulary would do nothing with --dataset=folder"),
        (["--background_words=sky, wall"], "--background_words would do nothing with"),
        (["--reduce_zero_label"], "--reduce_zero_label would do nothing with --dataset=folder"),
        (["--data_dir=x", "--world_seed=1"], "would do nothing with --dataset=folder, it is for"),
        (["--logit_scale=50"], "--logit_scale would do nothing with --dataset=folder, where no"),
        (
            ["--timestep=50", "--attention=appearance"],
            "timestep is 50 for appearance; wanted",
        ),
        (["--layers=0", "--method=kl"], "--layers would do nothing with --method=kl"),
    ],
)
def test_errors_are_one_message(flags, message, folder_flags, tmp_path):
    done = call("eval", *folder_flags, f"--output_dir={tmp_path}", *flags)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dataset=ade20"], "unknown dataset 'ade20' (did you mean 'ade20k'?)"),
        (["--dataset=ade20k"], "--dataset=ade20k needs --data_dir too"),
        (["--dataset=ade20k", "--data_dir=nowhere"], "python -m experiments.prepare"),
        (["--dataset=ade20k", "--images=x"], "--images would do nothing with --dataset=ade20k"),
        (["--dataset=miniature", "--split=tuna"], "unknown split of miniature 'tuna'"),
        (["--dataset=miniature", "--vocabulary=plain"], "--vocabulary would do nothing with"),
    ],
)
def test_errors_of_datasets_are_one_message(flags, message, tmp_path):
    done = call("eval", f"--output_dir={tmp_path}", *flags)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_verbosity_shows_where_a_message_came_from(folder_flags, tmp_path):
    flags = (f"--output_dir={tmp_path}", "--readings=robust,taw=1", "--verbosity=1")
    done = call("eval", *folder_flags, *flags)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "error: unknown reading 'taw'" in done.stderr


def test_a_fault_of_ours_keeps_its_traceback(folder_flags, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "predictions", lambda *_, **__: np.zeros(6).reshape(5))
    with pytest.raises(ValueError, match="cannot reshape array"):
        call("eval", *folder_flags, f"--output_dir={tmp_path}")


def test_a_full_device_is_one_message(folder_flags, tmp_path, monkeypatch):
    def predictions(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nx")

    monkeypatch.setattr(evaluation, "predictions", predictions)
    done = call("eval", *folder_flags, f"--output_dir={tmp_path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "memory is full: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes." in done.stderr
    assert done.stderr.count("a smaller preset, picture, batch_size, attention_size, grid") == 1


_FLAGS_OF = """
import json, runpy, sys
sys.argv = ["COMMAND", "--help"]
runpy.run_module("experiments.COMMAND", run_name="__main__")
from absl import flags
ours = ("COMMAND", "experiments.")
found = flags.FLAGS.flags_by_module_dict().items()
names = [flag.name for module, of in found if module.startswith(ours) for flag in of]
print("every flag:", json.dumps(names))
"""


@pytest.mark.parametrize("name", ["eval", "ablate"])
def test_help_lists_every_flag_once_and_grouped(name):
    code = _FLAGS_OF.replace("COMMAND", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, _, names = done.stdout.partition("every flag:")
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert sorted(listed) == sorted(f"--{flag}" for flag in json.loads(names))
    assert len(listed) > 20 and "--readings" in listed
    groups = [line for line in text.splitlines() if line.endswith(":") and line[:1].isupper()]
    assert groups == [
        "This command:",
        "The dataset:",
        "How it is run (each benchmark has its own):",
        "The model:",
        "The run:",
    ]
