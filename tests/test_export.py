"""A model as a program of its own: the labels of `segment`, without this package."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import checkpoints, cli, export, images, pipeline, vocabulary
from dsolo_jax.assets import run
from dsolo_jax.datasets import miniature

CLASSES = ("water", "sand", "circle, disc", "heart")
LISTED = "; ".join(CLASSES)

# Runs a script where nothing of what the package is made of can be imported.
ALONE = """
import runpy, sys
for name in ("dsolo_jax", "flax", "jaxtyping", "optax", "torch", "transformers"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(*arguments, classes=LISTED):
    return cli.main(["export", *map(str, arguments), f"--classes={classes}", "--preset=miniature"])


@pytest.fixture(scope="module")
def miniature_model():
    return dsolo.load("miniature")


@pytest.fixture(scope="module")
def picture():
    return miniature.draw(3, 0).image


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an export by the command, for all platforms."""
    pytest.importorskip("flatbuffers")
    folder = tmp_path_factory.mktemp("export") / "made" / "export"
    assert command(folder, "--platforms=cpu,cuda,tpu") == 0
    return folder


def segmented(model, picture, **how):
    return dsolo.segment(model, picture, CLASSES, **how).labels


def assert_alike(model, picture, method, readings):
    """Asserts that `labels` as one program gives those of `segment`."""
    words = vocabulary.parse(CLASSES)
    how = {"config": model.config, "num_classes": 4, "method": method, "readings": readings}
    given = {"text": pipeline.embed(model, words), "query_class": np.array(words.query_class)}
    found = jax.jit(partial(export.labels, **how))(model.params, pixels=picture, **given)
    expected = segmented(model, picture, method=method, readings=readings)
    assert len(np.unique(expected)) > 1 and found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_in_a_process_without_the_package_the_labels_are_segments(
    exported, miniature_model, picture, tmp_path
):
    Image.fromarray(picture).save(tmp_path / "in.png")
    given = exported / "run.py", tmp_path / "in.png", tmp_path / "out.png"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = segmented(miniature_model, picture)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)
    shares = [float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(shares, [100 * (expected == c).mean() for c in range(4)], atol=0.06)


def test_what_it_says_of_itself_is_what_it_is(exported, miniature_model):
    assert sorted(path.name for path in exported.iterdir()) == sorted(export.FILES)
    assert os.listdir(exported.parent) == ["export"]
    content = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    assert content["classes"] == ["water", "sand", "circle", "heart"]
    assert content["queries"][2] == ["circle", "disc"]
    assert content["size"] == [112, 112] and content["method"] == "velocity"
    assert content["versions"]["dsolo_jax"] == dsolo.__version__
    program = jax.export.deserialize(bytearray((exported / "program.bin").read_bytes()))
    assert list(program.platforms) == content["platforms"] == ["cpu", "cuda", "tpu"]
    *weights, pixels = program.in_avals
    assert pixels.shape == (112, 112, 3) and pixels.dtype == np.uint8
    [labels] = program.out_avals
    assert labels.shape == (112, 112) and labels.dtype == np.int32
    assert [(list(x.shape), str(x.dtype)) for x in weights] == [
        (x["shape"], x["dtype"]) for x in content["weights"]
    ]
    # Nothing that the program does not look at: no text tower.
    assert len(program.module_kept_var_idx) == len(program.in_avals)
    parts = miniature_model.params
    params = {"clip": {"vision": parts["clip"]["vision"]}, "attention": parts["attention"]}
    assert {x["name"] for x in content["weights"]} <= {*checkpoints.flatten(params), "text"}
    size = sum(path.stat().st_size for path in exported.iterdir())
    assert size < 1.3 * 4 * sum(np.prod(x["shape"]) for x in content["weights"])


def test_scores_that_are_not_finite_give_no_labels(miniature_model, picture, monkeypatch):
    def scores(maps, *_, **__):
        return maps.reshape(1, 2, 2, 2)

    monkeypatch.setattr(pipeline, "scores", scores)
    monkeypatch.setattr(pipeline, "class_maps", lambda params, *_, **__: params)
    readings = dataclasses.replace(miniature_model.config.readings, upsample="bilinear")
    how = {"num_classes": 2, "method": "kl", "readings": readings}
    label = jax.jit(partial(export.labels, config=miniature_model.config, text=None, **how))
    good = np.arange(8, dtype=np.float32)
    assert (label(good, pixels=picture, query_class=np.zeros(2)) == 1).all()
    for bad in (np.nan, np.inf):
        found = label(np.where(good == 3, bad, good), pixels=picture, query_class=np.zeros(2))
        assert (found == -1).all()


def test_a_picture_of_another_size_is_refused_by_the_script(exported, tmp_path, monkeypatch):
    Image.new("RGB", (20, 30)).save(tmp_path / "in.png")
    monkeypatch.setattr(run, "load", partial(run.load, exported))
    with pytest.raises(SystemExit, match="is 20 x 30 pixels, wanted 112 x 112; resize it first"):
        run.main(tmp_path / "in.png", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_another_route_gives_the_labels_of_segment(miniature_model, picture):
    """Another size than the networks', and everything else that is not the preset's."""
    readings = dataclasses.replace(
        miniature_model.config.readings, start="vanilla", upsample="pamr", presence=0.0
    )
    assert_alike(miniature_model, images.resize(picture, (97, 150)), "kl", readings)


def test_strips_of_a_picture_make_the_whole(miniature_model, picture, monkeypatch):
    few = export.strips.limits()._replace(labels=(4096,))
    monkeypatch.setattr(export.strips, "limits", lambda: few)
    scores = np.random.default_rng(0).normal(size=(3, 14, 14)).astype(np.float32)
    readings = miniature_model.config.readings
    found = jax.jit(partial(export._to_pixels, readings=readings))(scores, picture)
    widths = {"spatial_sigma": readings.spatial_sigma, "range_sigma": readings.range_sigma}
    _, _, places = export.strips.cut(picture.shape[:2], scores.shape, None, 1.0)
    assert len(places) > 2
    np.testing.assert_array_equal(found, dsolo.upsample.labels(scores, picture, **widths)())


def test_a_tower_that_serves_twice_is_there_once(tiny_clip, tmp_path):
    pytest.importorskip("flatbuffers")
    sizes = {"short_side": 64, "attention_size": 64}
    model = dsolo.load("clip_b16", tiny_clip, **sizes)
    (tmp_path / "out").mkdir()  # empty, so it may be taken
    export.save(model, CLASSES, (70, 64), tmp_path / "out", platforms=["tpu", "tpu"])
    content = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    tower = checkpoints.flatten({"clip": {"vision": model.params["clip"]["vision"]}})
    assert {x["name"] for x in content["weights"]} == {*tower, "text"}
    assert content["platforms"] == ["tpu"] and content["size"] == [70, 64]


# ------------------------------------------------------------------------------- what is refused


def test_what_is_there_is_kept_unless_it_is_an_export_to_be_overwritten(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("flatbuffers")
    out = tmp_path / "out"
    assert command(out, "--method=logits", classes="sand") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command(out) == 1
    assert "holds an export already; overwrite it" in capsys.readouterr().err

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_tensors", broken)
    assert command(out, "--overwrite", "--method=kl") == 1
    assert f"cannot write {out}: No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert command(tmp_path / "new", "--method=kl") == 1 and os.listdir(tmp_path) == ["out"]
    monkeypatch.undo()

    assert command(out, "--overwrite", "--method=logits") == 0
    assert (out / "export.json").read_bytes() != before["export.json"]
    assert os.listdir(tmp_path) == ["out"] and len(os.listdir(out)) == 4
    (out / "notes.txt").touch()
    assert command(out, "--overwrite", "--method=logits") == 1
    assert "holds notes.txt, which is no part of an export" in capsys.readouterr().err
    assert command(out / "notes.txt") == 1
    assert "notes.txt is a file; wanted a folder" in capsys.readouterr().err


def test_mistakes_are_one_message_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    pytest.importorskip("flatbuffers")
    monkeypatch.setattr(dsolo, "load", None)  # would be called otherwise
    out = tmp_path / "out"
    for arguments, classes, message in (
        ([], ";", "no classes given"),
        (["--platforms=cpu,cuba"], LISTED, "unknown platform 'cuba' (did you mean 'cuda'?)"),
    ):
        assert command(out, *arguments, classes=classes) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and "Traceback" not in error
    for size in ("0x10", "12", "axb", "-1x5"):
        with pytest.raises(SystemExit):
            command(out, f"--size={size}")
        assert "no size; wanted HEIGHTxWIDTH in pixels" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert command(out) == 1
    assert 'pip install "dsolo-jax[export]"' in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_models_that_cannot_be_exported_are_refused(miniature_model, tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    model = miniature_model
    windows = dataclasses.replace(model.config, crop=64, stride=32)
    without = dataclasses.replace(model, params={**model.params, "attention": None})
    save = partial(export.save, classes=CLASSES, size=None, directory=tmp_path / "out")
    with pytest.raises(ValueError, match="windows of 64 pixels, an export takes them whole"):
        save(dataclasses.replace(model, config=windows))
    with pytest.raises(ValueError, match="'velocity' .* needs a patch graph.*graph=True"):
        save(without)
    with pytest.raises(ValueError, match=r"size is \(0, 5\); wanted"):
        save(model, size=(0, 5))
    with pytest.raises(ValueError, match="unknown method 'velocty'"):
        save(model, method="velocty")

    def no_kernel(*_, **__):
        raise NotImplementedError("no rule for platform cpu")

    monkeypatch.setattr(pipeline, "class_maps", no_kernel)
    with pytest.raises(ValueError, match="does not run on all of cpu, cuda .*in float32"):
        save(model, platforms=["cpu", "cuda"])
    assert os.listdir(tmp_path) == []


def test_help_has_every_option(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["export", "--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    options = "classes size background preset clip attention method readings dtype platforms"
    assert all(f"--{option}" in text for option in (*options.split(), "overwrite", "verbose"))
    assert "needs jax, flatbuffers, numpy, safetensors and Pillow" in text and "cuda" in text
