"""segment, readings, demo and benchmark from the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from running import demo_flags, run

from experiments import ladder


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
        (["--classes=sky", "--image=nowhere.png"], "nowhere.png"),
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


def test_readings_measures_the_ladder_and_the_uprightness(demo, tmp_path):
    done = run(
        "readings",
        *demo_flags(demo),
        "--short_side=112",
        "--limit=2",
        "--batch_size=2",
        "--variants=robust, tau=0.2",
        f"--output={tmp_path}/readings.json",
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "readings.json").read_text())
    assert set(content["miou"]) == set(ladder.LADDER)
    assert content["miou"]["II KL"]["robust, tau=0.2"] > 50  # of 7 x 9 patches
    assert content["rank_correlation"]["naclip"] == pytest.approx(1)
    assert content["rank_correlation"]["kk"] > 0.5 and "upright" in done.stdout
    assert "67.8" in done.stdout  # the paper's row VI


def test_variants_are_bundles_with_changes():
    chosen = ladder.variant("paper, tau=0.5, start=kk, ipf_iters=3")
    assert (chosen.tau, chosen.start, chosen.ipf_iters) == (0.5, "kk", 3)
    assert chosen.kl_sign == "divergence"
    for text, message in (
        ("papre", "did you mean 'paper'"),
        ("robust,taw=1", "unknown reading 'taw'"),
        ("robust,tau=soon", "tau is 'soon', wanted one float"),
    ):
        with pytest.raises(ValueError, match=message):
            ladder.variant(text)


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).normal(size=(2, 3, 50))
    expected = np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert ladder.rank_correlation(a, b) == pytest.approx(expected)
