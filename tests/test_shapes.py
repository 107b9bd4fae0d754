"""The shapes in signatures are those that arrays have, on every route through the package."""

import os
import subprocess
import sys

from PIL import Image

from tests.oracles import stable_diffusion

ROUTES = """
import dataclasses
import os
import sys
from functools import partial

from tests.oracles import shapes

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import background, images, metrics, pipeline, upsample, vocabulary
from dsolo_jax.datasets import miniature
from dsolo_jax.web import answer, view

labels, clip, *folders = sys.argv[1:]
random = np.random.default_rng(0)
pictures = [random.integers(0, 256, size, np.uint8) for size in ((90, 130, 3), (64, 48, 3))]
words = vocabulary.parse(["grass", "sky, cloud", "cat"])
of = np.array(words.query_class)

for attention in ("clip", "appearance", *folders):
    size = {} if attention == "clip" else {"attention_size": 64}
    model = dsolo.load("dslo_b16", clip=clip, attention=attention, short_side=64, **size)
    batch = pipeline.batch([pipeline.prepare(model.config, picture) for picture in pictures])
    text = pipeline.embed(model, words)
    forward = partial(pipeline.forward, config=model.config, num_classes=3)
    jax.eval_shape(forward, model.params, pictures=batch, text=text, query_class=of)
graph = jnp.zeros((2, model.config.grid**2, model.config.grid**2))
for start in dsolo.clip.STARTS:
    maps = partial(pipeline.class_maps, config=model.config, start=start)
    jax.eval_shape(maps, model.params, pictures=batch, text=text, graph=graph)
others = [(m, r) for m in ("velocity", "path") for r in ("paper", "robust,suppress=range")]
for method, readings in [*((method, "robust") for method in dsolo.METHODS), *others]:
    jax.eval_shape(
        partial(dsolo.discrepancy, method=method, readings=readings),
        jnp.zeros((3, 16)), jnp.zeros((16, 16)), jnp.zeros(3),
    )
jax.eval_shape(dsolo.solver.doubly_stochastic, jnp.zeros((16, 16)))
dsolo.segment(model, pictures, words)
dsolo.segment(model, dsolo.encode(model, pictures[0], tile=48), words)
result = dsolo.segment(model, dsolo.encode(model, pictures[0]), words)
result.save(os.path.dirname(labels), what=["overlay", "mask", "json", "labelme"])
result.masks(), result._repr_png_()
ring = np.pad(np.zeros((1, 1), np.int32), 1, constant_values=1)
dataclasses.replace(result, labels=ring, pixels=np.zeros((3, 3, 3), np.uint8)).to_labelme()
answer.shrunk(answer.read_picture(images.encode_png(pictures[0]), answer.Limits()))
view.view_of(answer.Answer(result, np.zeros((3, 4, 5), np.float32), (90, 130), 0.1, True))
labels_of = partial(dsolo.export.labels, config=model.config, num_classes=3)
jax.eval_shape(labels_of, model.params, pixels=pictures[0], text=text, query_class=of)
windows = {"short_side": 64, "crop": 48, "stride": 32}
dsolo.segment(dsolo.load("naclip_b16", clip, grid=8, **windows), pictures[0], words)
threshold = background.Threshold(0.5, 40.0, area=0.1)
setting = pipeline.Setting("velocity", model.config.readings, threshold)
list(pipeline.run(model, map(partial(pipeline.prepare, model.config), pictures), words, [setting]))
dsolo.segment(model, pictures, words, return_scores=True)
upsample.takes = lambda pictures, form: True  # as on an accelerator
dsolo.segment(model, pictures, words)

config, params = dsolo.clip.load(clip)
pixels = jnp.zeros((2, 64, 48, 3))
jax.eval_shape(partial(dsolo.clip.encode_image, params, config), pixels)
jax.eval_shape(partial(dsolo.clip.encode_text, params, config), jnp.ones((3, 77), jnp.int32))
config, params = dsolo.attention.stable_diffusion.load(folders[0])
pixels = jnp.zeros((1, 64, 64, 3))
attend = dsolo.attention.stable_diffusion.self_attention
jax.eval_shape(partial(attend, params, config, layers=("up.0", "cliper")), pixels)
config, params = dsolo.attention.dino.load(folders[1])
attend = dsolo.attention.dino.self_attention
jax.eval_shape(partial(attend, params, config, layers=("affinity", "neighbours")), pixels)
example = miniature.load()[0]
metrics.mean_iou(metrics.confusion_matrix(example["labels"], example["labels"], 19))
for form in upsample.FORMS:
    joint = partial(upsample.joint_bilateral, form=form)
    jax.eval_shape(joint, jnp.zeros((2, 3, 4)), jnp.zeros((6, 8, 3)))

images.read_labels(labels)
images.read_image(labels)

try:
    upsample.joint_bilateral(jnp.zeros((2, 3, 4)), jnp.zeros((6, 8, 4)))
    sys.exit("a guide of four channels went through")
except jaxtyping.TypeCheckError:
    pass
print(*sorted(shapes.found - shapes.called))
"""


def test_shapes_are_what_signatures_say(tiny_clip, tmp_path):
    import transformers

    folders = [tmp_path / name for name in ("diffusion", "dino")]
    kind = stable_diffusion.KINDS["tiny"]
    stable_diffusion.save(stable_diffusion.build(kind, tiny_clip, seed=0), folders[0])
    dino = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, patch_size=16
    )
    transformers.Dinov2Model(dino).save_pretrained(folders[1])
    labels = tmp_path / "labels.png"
    Image.new("L", (8, 6)).save(labels)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ROUTES, labels, tiny_clip, *folders],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # A route of its own: a graph on another grid, a GPU's convolution, some DINOv2's feed-forward.
    assert set(done.stdout.split()) == {
        "dsolo_jax.attention.stable_diffusion.convolution.winograd",
        "dsolo_jax.resample.resample_attention",
        "dsolo_jax.transformer._swiglu",
    }
