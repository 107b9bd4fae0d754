"""segment, demo and benchmark from the command line."""

import numpy as np
import pytest
from PIL import Image
from running import run


def test_segment_draws_an_overlay_with_a_legend(demo, tmp_path):
    done = run(
        "segment",
        f"--image={demo}/images/scene_0.png",
        "--classes=sky; grass; lemon; tomato, cherry; snow; coal; plum; carrot",
        f"--clip={demo}/clip",
        "--attention=clip",
        "--method=kl",
        f"--output={tmp_path}/overlay.png",
    )
    assert done.returncode == 0, done.stderr
    *lines, stages, _ = done.stdout.splitlines()
    shares = dict(line.rsplit(maxsplit=1) for line in lines)
    assert all(stage in stages for stage in ("loading", "CLIP", "solver", "pixels"))
    truth = np.bincount(np.asarray(Image.open(demo / "labels" / "scene_0.png")).ravel())
    assert float(shares["sky"].rstrip("%")) / 100 == pytest.approx(truth[0] / truth.sum(), abs=0.05)
    overlay, picture = (
        Image.open(p) for p in (tmp_path / "overlay.png", demo / "images" / "scene_0.png")
    )
    assert overlay.height > picture.height  # the legend


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--classes=sky; sky"], "class 'sky' is given twice"),
        (["--classes="], "no classes given"),
        (["--classes=sky", "--image=nowhere.png"], "nowhere.png"),
        (["--classes=sky", "--attention=sd3"], "did you mean 'sd2'"),
        (["--classes=sky", "--layers=12"], "unknown layer of clip '12'"),
    ],
)
def test_segment_says_what_is_wrong(flags, message, demo, tmp_path):
    done = run(
        "segment",
        f"--image={demo}/images/scene_0.png",
        f"--clip={demo}/clip",
        "--attention=clip",
        f"--output={tmp_path}/overlay.png",
        *flags,
    )
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "overlay.png").exists()


def test_a_random_clip_without_a_tokenizer_is_refused(tmp_path):
    done = run("random_clip", "--tokenizer=nowhere", f"--output_dir={tmp_path}/clip")
    assert done.returncode == 1 and "nowhere holds none of tokenizer.json" in done.stderr
    assert not (tmp_path / "clip").exists()
