"""Segments one picture and draws the result over it, with a legend.

python -m experiments.segment --image=IN.jpg --classes="cat; sofa, couch; remote control" \
    --output=OUT.png
"""

import numpy as np
from absl import flags

import dsolo_jax as dsolo
from dsolo_jax import draw, images, pipeline, vocabulary
from experiments import common
from experiments.stopwatch import Stopwatch

_IMAGE = flags.DEFINE_string("image", None, "The picture.")
_CLASSES = flags.DEFINE_string("classes", None, "Classes, separated by ';', synonyms by ','.")
_BACKGROUND = flags.DEFINE_bool("background", False, "Add a class for everything else.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG to write.")
_MODEL = common.define_model()
_METHOD = common.define_method()


def main() -> None:
    words = vocabulary.parse([c for c in _CLASSES.value.split(";") if c.strip()])
    if _BACKGROUND.value:
        words = vocabulary.with_background(words)
    pixels = images.read_image(_IMAGE.value)
    watch = Stopwatch()
    model = _MODEL.load()
    watch("loading")
    watch("text", pipeline.embed_classes(model, words))
    picture = dsolo.prepare(model, pixels)
    watch("reading")
    [result] = dsolo.segment_batch(model, [picture], words, _METHOD.value, watch=watch)
    images.write_png(_OUTPUT.value, draw.overlay(pixels, result.labels, words.classes))
    shares = np.bincount(result.labels.ravel(), minlength=len(words.classes)) / result.labels.size
    for c in np.argsort(-shares, kind="stable"):
        if shares[c]:
            print(f"{words.classes[c]:30} {shares[c]:6.1%}")
    print(watch)
    print(f"written to {_OUTPUT.value}")


if __name__ == "__main__":
    common.run(main, required=["image", "classes", "output"])
