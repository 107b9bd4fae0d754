"""The miniature world from the command line, with the network refused, and from the wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax.assets import bundled
from dsolo_jax.datasets import miniature
from experiments.evaluation import evaluate, sentence

ROOT = Path(__file__).parents[2]
SEED, LIMIT = 24, 4

_REFUSE = """
import socket

def refuse(*args, **kwargs):
    raise OSError("the test refuses the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def clip_flags(tiny_clip):
    """None: the preset's own CLIP; a random one as long as it is not there."""
    bundle = Path(bundled("miniature", "clip"))
    return () if (bundle / "model.safetensors").is_file() else (f"--clip={tiny_clip}",)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Starts a module that cannot reach the network, compiled as it is for users, see conftest."""
    folder = tmp_path_factory.mktemp("refuse")
    (folder / "sitecustomize.py").write_text(_REFUSE)
    paths = (str(folder), str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XLA_"))}
    environment["PYTHONPATH"] = os.pathsep.join(paths)

    def start(module, *flags):
        command = [sys.executable, "-m", module, *flags]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return start


@pytest.fixture(scope="module")
def evaluated(offline, clip_flags, tmp_path_factory):
    """Output folder and standard output of a run on a fresh world."""
    folder = tmp_path_factory.mktemp("run")
    done = offline(
        "experiments.eval",
        "--dataset=miniature",
        f"--world_seed={SEED}",
        f"--limit={LIMIT}",
        "--save_predictions",
        f"--output_dir={folder}",
        *clip_flags,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def iou_of(pairs, classes):
    """By definition, over pairs of predicted and true labels."""
    said, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return [
        ((said == c) & (true == c)).sum() / max(((said == c) | (true == c)).sum(), 1)
        for c in classes
    ]


def test_results_are_those_of_the_saved_predictions(evaluated):
    folder, printed = evaluated
    results = json.loads((folder / "results.json").read_text())
    parts = {"": [], "seen": [], "unseen": []}
    for index in range(LIMIT):
        scene = miniature.draw(SEED, index, split="validation")
        path = folder / "predictions" / f"validation_{index:05d}.png"
        prediction = np.asarray(Image.open(path))
        parts[""].append((prediction.ravel(), scene.labels.ravel()))
        for item in scene.items:
            if item.index >= miniature.NUM_STUFF:
                pixels = scene.labels == item.index
                part = parts["seen" if item.seen else "unseen"]
                part.append((prediction[pixels], scene.labels[pixels]))
    said, true = (np.concatenate(part) for part in zip(*parts[""], strict=True))
    everywhere = sorted(set(said) | set(true))
    assert results["miou"] == pytest.approx(np.mean(iou_of(parts[""], everywhere)), abs=1e-9)
    for name in ("seen", "unseen"):
        held = sorted(set(np.concatenate([true for _, true in parts[name]])))
        wanted = np.mean(iou_of(parts[name], held))
        assert results[f"miou_{name}"] == pytest.approx(wanted, abs=1e-9)
        assert f"{name} {wanted:.2%}" in printed
    assert results["num_images"] == LIMIT and results["config"]["preset"] == "miniature"
    assert set(results["per_class"]) == set(miniature.CLASSES)


def test_how_the_suite_compiles_changes_no_label(evaluated, clip_flags):
    clip = [flag.removeprefix("--clip=") for flag in clip_flags]
    model = dsolo.load("miniature", *clip)
    for index in range(LIMIT):
        scene = miniature.draw(SEED, index, split="validation")
        labels = dsolo.segment(model, scene.image, miniature.CLASSES).labels
        path = evaluated[0] / "predictions" / f"validation_{index:05d}.png"
        assert (labels == np.asarray(Image.open(path))).mean() > 0.999


def test_the_sentence_says_what_is_missing():
    results = {"dataset": "miniature", "method": "kl", "miou": None, "num_images": 3}
    results |= {"absent": [], "ignored": 0.0, "config": {"pictures": {"prepared": 3}}}
    assert sentence(results) == "miniature, kl: no labelled pixel, 3 pictures"
    results |= {"miou": 0.5, "miou_seen": 0.25, "miou_unseen": None, "num_images": 2}
    said = "miniature, kl: mIoU 50.00%, seen 25.00%, unseen none, the first 2 of 3 pictures"
    assert sentence(results) == said
    results |= {"absent": ["cat", "dog"], "ignored": 0.123}
    assert sentence(results).splitlines() == [
        said, "  no label map holds cat, dog; 12.3% of the pixels are ignored"
    ]  # fmt: skip


def test_the_panel_shows_the_scenes(evaluated):
    folder, _ = evaluated
    panel = np.asarray(Image.open(folder / "panel.png").convert("RGB"))
    scene = miniature.draw(SEED, 0, split="validation")
    shown = np.kron(scene.image[:20, :10], np.ones((2, 2, 1), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(panel[:80, :40], (40, 20), axis=(0, 1))
    assert (windows == shown.transpose(2, 0, 1)).all((-3, -2, -1)).sum() == 1


def test_segment_runs_on_a_picture_of_another_size(offline, clip_flags, evaluated, tmp_path):
    scene = miniature.draw(0, 0)
    Image.fromarray(scene.image).resize((224, 224)).save(tmp_path / "in.jpg")
    done = offline(
        "dsolo_jax",
        "segment",
        f"{tmp_path}/in.jpg",
        "--preset=miniature",
        f"--classes={'; '.join(miniature.CLASSES)}",  # as many as `evaluated`, which has compiled
        f"--output={tmp_path}/out.png",
        *clip_flags,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").height > 224


def test_the_presets_sizes_are_defaults(tiny_clip):
    model = dsolo.load("miniature", clip=tiny_clip)
    assert (model.config.short_side, model.config.grid) == (112, 14)
    other = dsolo.load("miniature", clip=tiny_clip, short_side=96, grid=12)
    assert (other.config.short_side, other.config.grid) == (96, 12)
    assert dsolo.load("clip_b16", clip=tiny_clip).config.short_side == 336


def test_a_cut_off_run_resumes_its_subsets_too(tiny_clip, evaluated, tmp_path):
    model = dsolo.load("miniature", clip=tiny_clip)
    dataset = miniature.load()
    config = {"method": "velocity", "limit": 4, "save_predictions": False}
    whole = evaluate(model, dataset, tmp_path, config)
    table = (tmp_path / "per_image.csv").read_bytes()
    (tmp_path / "per_image.csv").write_bytes(b"".join(table.splitlines(keepends=True)[:3]))
    again = evaluate(model, dataset, tmp_path, config)
    assert (tmp_path / "per_image.csv").read_bytes() == table
    for name in ("miou", "miou_seen", "miou_unseen"):
        assert again[name] == whole[name]


def test_only_its_own_names_are_bundled(tmp_path):
    assert Path(bundled("miniature", "clip")).parent.name == "miniature"
    assert Path(bundled("miniature_dense", "clip")).is_dir()
    assert bundled("miniature_dense", "stable_diffusion") == "miniature_dense"
    assert bundled(tmp_path, "clip") == tmp_path and bundled("openai/x", "clip") == "openai/x"


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dsolo_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= set(zipfile.ZipFile(wheel).namelist())
