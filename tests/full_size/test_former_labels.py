"""What version 0.1.0 labelled, and what each change of a formula since then moved.

python -m pytest tests/full_size/test_former_labels.py -m full_size -s

64 validation scenes of the miniature world. With 0.1.0's formulas put back, today's route gives
0.1.0's labels in every pixel; then each change is made alone, and what it does is printed.
"""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo
from dsolo_jax import images, metrics, pipeline, readings, stages, vocabulary
from dsolo_jax.datasets import miniature
from dsolo_jax.solver import discrepancy
from tests.oracles import former_formulas

pytestmark = pytest.mark.full_size

SCENES = 64

# Of 0.1.0's labels, one byte a pixel, scene after scene (its commit 5e0712d).
LABELS = {
    "kl": "de2cd21dd61bef4f4b7e3f27e6fd699f4fa9780bb07802d0c45276b3b02da0a5",
    "velocity": "b0d83f67a361cacedaa9b837bacc252d7e3c67dc880bcfa5017149eb079da649",
    "path": "30b10a4d47006efa5eb715705da6c9b7ee7cf79c4847dc309c47c3f4da6e559f",
}


def variants(name):
    """0.1.0's formula, each change of it alone, all changes."""
    changes = {"velocity": former_formulas.VELOCITY, "path": former_formulas.PATH}[name]
    return {"0.1.0": set(), **{change: {change} for change in changes}, "all": set(changes)}


@pytest.fixture(scope="module")
def world():
    dataset = miniature.load()
    return dataset.classes, [dataset[i] for i in range(SCENES)]


def rounded_as_numpy_does(config, patches):
    """0.1.0 normalised pixels on the host; XLA's quotients differ in their last bit."""
    values = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    table = images.normalise(values, config.clip.image_mean, config.clip.image_std)
    channels = np.tile(np.arange(3), patches.shape[-1] // 3)
    return jnp.asarray(table)[patches, channels]


@pytest.fixture(scope="module")
def labels(world):
    """Labels of all scenes by (method, change)."""
    own = {("kl", "0.1.0"): ("kl", "robust,temperature=0.25")}
    own |= {(name, "today"): (name, "robust") for name in ("velocity", "path")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "normalised", rounded_as_numpy_does)
        for name in ("velocity", "path"):
            make = getattr(former_formulas, name)
            for change, made in variants(name).items():
                method = discrepancy.Method(make(made), needs_graph=True)
                patch.setitem(discrepancy.METHODS, f"{name} {change}", method)
                own[name, change] = f"{name} {change}", "robust"
        model = dsolo.load("miniature")
        start = model.config.readings.start
        settings = [
            pipeline.Setting(method, readings.resolve(f"{text},start={start}"))
            for method, text in own.values()
        ]
        classes, examples = world
        pictures = (pipeline.prepare(model.config, example["image"]) for example in examples)
        words = vocabulary.parse(classes)
        found = dict(pipeline.run(model, pictures, words, settings))
    return {
        key: [found[scene][i].labels.astype(np.uint8) for scene in range(SCENES)]
        for i, key in enumerate(own)
    }


@pytest.mark.parametrize("name", LABELS)
def test_the_former_formula_gives_the_former_labels_in_every_pixel(labels, name):
    found = b"".join(one.tobytes() for one in labels[name, "0.1.0"])
    assert hashlib.sha256(found).hexdigest() == LABELS[name]


@pytest.mark.parametrize("name", ["velocity", "path"])
def test_all_changes_together_are_todays_formula(labels, name):
    for made, today in zip(labels[name, "all"], labels[name, "today"], strict=True):
        np.testing.assert_array_equal(made, today)


def test_what_each_change_moves(labels, world):
    classes, examples = world
    print("\n| | change | pixels that differ from 0.1.0's | mIoU |\n|---|---|---|---|")
    for (name, change), found in labels.items():
        if change == "today":
            continue
        former = labels[name, "0.1.0"]
        moved = np.mean([np.mean(a != b) for a, b in zip(found, former, strict=True)])
        assert (moved == 0) if change == "0.1.0" else (0 < moved < 0.1)
        matrix = sum(
            metrics.confusion_matrix(one, example["labels"], len(classes))
            for one, example in zip(found, examples, strict=True)
        )
        print(
            f"| {name} | {change} | {100 * moved:.2f} % | {100 * metrics.mean_iou(matrix)[0]:.1f} |"
        )
