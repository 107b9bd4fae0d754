"""Questions about one picture: the first, which encodes it, beside those that follow."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import dsolo_jax as dsolo
from dsolo_jax.utils import fingerprint
from experiments.benchmarks import world
from experiments.benchmarks.networks import clip_b16
from experiments.benchmarks.running import Case

_TURNS = 5


def _miniature() -> tuple[dsolo.Model, np.ndarray]:
    return dsolo.load("miniature"), world.scenes(1)[0]


def _b16() -> tuple[dsolo.Model, np.ndarray]:
    """CLIP B/16 with random weights, and the miniature's tokenizer, as none of its own is here."""
    config, params = clip_b16("float32")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, eos_token_id=2))
    # The preset but for its CLIP.
    small = dsolo.load("miniature", attention_size=512, grid=32, short_side=336)
    own = {"clip": config, "text_weights": fingerprint.of_arrays(params["text"])}
    readings = dsolo.PRESETS["appearance_b16"].readings
    model = dataclasses.replace(
        small,
        config=dataclasses.replace(small.config, readings=readings, **own),
        params={"clip": params, "attention": small.params["attention"]},
    )
    [picture] = world.pictures(1, 480, 640)
    return model, picture


_MODELS: dict[str, Callable[[], tuple[dsolo.Model, np.ndarray]]] = {
    "miniature, 112x112": _miniature,
    "random B/16 and appearance, 480x640": _b16,
}


def ask(name: str) -> None:
    """Prints seconds, each the median of some turns when all is compiled: of a first question,
    which encodes the picture; of one with three new words; and of one with known words."""
    model, picture = _MODELS[name]()
    known = ["sky", "tree", "road, street", "house"]
    new = iter([f"{a}{b}" for a in "bcdfgklm" for b in ("ark", "ell", "ound")])
    asked = {
        "first": lambda: dsolo.segment(model, dsolo.encode(model, picture), known),
        "new": lambda: dsolo.segment(model, encoded, [next(new), next(new), next(new)]),
        "known": lambda: dsolo.segment(model, encoded, known[:3]),
    }
    encoded = dsolo.encode(model, picture)
    found = {kind: [_seconds(question) for _ in range(_TURNS)] for kind, question in asked.items()}
    print(json.dumps({kind: float(np.median(each[1:])) for kind, each in found.items()}))


def _seconds(question: Callable[[], object]) -> float:
    start = time.perf_counter()
    question()
    return time.perf_counter() - start


def run() -> Iterator[Case]:
    """A process each, with a cache of its own, so that new words are new."""
    for name in _MODELS:
        for kind in ("new", "known"):
            case = f"{name}, {kind} words"
            yield Case("questions", case, measure=partial(_measure, name, kind))


def _measure(name: str, kind: str) -> dict[str, object]:
    code = f"from experiments.benchmarks import questions; questions.ask({name!r})"
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"DSOLO_CACHE": cache},
        )
    found = json.loads(done.stdout.splitlines()[-1])
    first = {"seconds": found["first"], "ratio": found[kind] / found["first"]}
    return {"seconds": found[kind], "beside": {"the first question": first}}
