import os

import numpy as np
import pytest
from PIL import Image
from running import call, run


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for part in ("images", "annotations"):
        (root / part / "validation").mkdir(parents=True)
    for i in (1, 2):
        name = f"ADE_val_{i:08d}"
        Image.new("RGB", (8, 6)).save(root / "images" / "validation" / f"{name}.jpg")
        labels = np.full((6, 8), i, np.uint8)
        Image.fromarray(labels).save(root / "annotations" / "validation" / f"{name}.png")
    return root


def test_it_prepares_once_and_says_what_comes_next(source, tmp_path):
    flags = ("--dataset=ade20k", f"--source={source}", f"--data_dir={tmp_path}/data")
    first = run("prepare", *flags)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        f"ade20k prepared in {tmp_path}/data/ade20k/3.0.0",
        "  validation: 2 pictures (warning: the official set has 2000)",
        "Next:",
        f"  python -m experiments.eval --dataset=ade20k --data_dir={tmp_path}/data",
    ]
    # TFDS and absl stay silent; what is left is the progress.
    assert all(line.startswith("ade20k validation: ") for line in first.stderr.splitlines())

    again = call("prepare", *flags)
    assert again.returncode == 0
    assert "there already; --overwrite" in again.stdout


def test_errors_are_one_line_not_a_trace(tmp_path):
    failed = call("prepare", f"--source={tmp_path}/nowhere", f"--data_dir={tmp_path}/data")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no ADE20K at ")
    assert "Traceback" not in failed.stderr
    unknown = call("prepare", "--dataset=ade", f"--source={tmp_path}", f"--data_dir={tmp_path}")
    assert "unknown dataset 'ade'" in unknown.stderr and unknown.returncode == 1
    assert "needs --source too" in call("prepare", f"--data_dir={tmp_path}/data").stderr
    drawn = call("prepare", "--dataset=miniature", "--source=x", f"--data_dir={tmp_path}/data")
    assert "--source would do nothing with --dataset=miniature" in drawn.stderr
    seed = call("prepare", f"--source={tmp_path}", "--world_seed=1", f"--data_dir={tmp_path}/data")
    assert "--world_seed would do nothing with --dataset=ade20k" in seed.stderr
    assert not os.path.exists(tmp_path / "data")
