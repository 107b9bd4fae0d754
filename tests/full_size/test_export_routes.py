"""Exports of other sources and routes than the quick suite's: the labels of `segment`, too."""

import dataclasses

import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import images
from dsolo_jax.assets import run
from dsolo_jax.datasets import miniature
from tests.oracles.random_checkpoint import write_stable_diffusion
from tests.test_export import CLASSES, assert_alike, segmented

pytestmark = pytest.mark.full_size


@pytest.mark.parametrize(
    "size, method, readings",
    [
        ((97, 150), "velocity", {}),
        ((600, 700), "path", {"start": "clearclip"}),
        ((48, 230), "logits", {"start": "proxyclip", "upsample": "dense"}),
        ((112, 112), "label_propagation", {"upsample": "bilinear"}),
        ((112, 112), "optimise", {}),
    ],
)
def test_every_route_gives_the_labels_of_segment(size, method, readings):
    model, picture = dsolo.load("miniature"), miniature.draw(3, 0).image
    readings = dataclasses.replace(model.config.readings, **readings)
    assert_alike(model, images.resize(picture, size), method, readings)


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_stable_diffusions_graph_goes_along(tiny_clip, tmp_path, dtype):
    pytest.importorskip("flatbuffers")
    source, out = tmp_path / "sd", tmp_path / "out"
    write_stable_diffusion(source, "tiny", tiny_clip)
    sizes = {"short_side": 64, "attention_size": 64}
    model = dsolo.load("dslo_b16", tiny_clip, source, dtype, **sizes)
    dsolo.export.save(model, CLASSES, (60, 90), out)
    label, settings = run.load(out)
    picture = images.resize(miniature.draw(3, 0).image, (60, 90))
    np.testing.assert_array_equal(label(picture), segmented(model, picture))
    names = {x["name"] for x in settings["weights"]}
    assert any(name.startswith("attention/vae") for name in names)
    # Behind the last layer that is looked at nothing is taken along.
    assert not any(name.startswith("attention/unet/conv_out") for name in names)
    halves = sum(x["dtype"] == "bfloat16" for x in settings["weights"])
    assert (halves > 10) == (dtype == "bf16")
