"""CLIP's text tower, B/16: prompts cut to their bucket of length against all 77 positions."""

import os
import tempfile
import time
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np

from dsolo_jax import clip, vocabulary
from experiments.benchmarks.timing import compare, xla_account

# A prompt of 150 classes x 80 templates has 8 to 16 tokens; a batch of them stands for all 12000.
_PROMPTS, _ALL = 128, 150 * 80
_BUCKET = 16


def run() -> Iterator[dict]:
    """150 classes in 80 templates: the first time, from one batch of prompts, and the second."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))
    first = _first_time(params, config)
    yield first
    yield _second_time(params, config, first["seconds"])


def _first_time(params: clip.Params, config: clip.ClipConfig) -> dict:
    token_ids = _token_ids(config, _PROMPTS)

    def encode(params, token_ids):
        return clip.encode_text(params, config, token_ids)

    jitted = jax.jit(encode)
    cut = token_ids[:, :_BUCKET]
    seconds = compare(
        {"cut": lambda: jitted(params, cut), "full": lambda: jitted(params, token_ids)}, repeats=5
    )
    scale = _ALL / _PROMPTS
    return {
        "stage": "text",
        "case": f"{_ALL} prompts at length {_BUCKET}, from {_PROMPTS}",
        "seconds": seconds["cut"] * scale,
        "baseline": f"length {token_ids.shape[1]}",
        "baseline_seconds": seconds["full"] * scale,
        "ratio": seconds["cut"] / seconds["full"],
        **xla_account(encode, params, cut),
    }


def _second_time(params: clip.Params, config: clip.ClipConfig, first_seconds: float) -> dict:
    """Reading from disk costs the weights' fingerprint, whatever the number of prompts."""

    def embed():
        def tokenize(texts):
            return _token_ids(config, len(texts))[:, :_BUCKET]

        return vocabulary.embed(["cat"], params, config, tokenize)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"DSOLO_CACHE": folder}),
    ):
        embed()
        start = time.perf_counter()
        embed()
        seconds = time.perf_counter() - start
    return {
        "stage": "text",
        "case": "the same the second time, from disk",
        "seconds": seconds,
        "baseline": "the first time",
        "baseline_seconds": first_seconds,
        "ratio": seconds / first_seconds,
    }


def _token_ids(config: clip.ClipConfig, count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    end = config.text.eos_token_id
    token_ids = np.full((count, config.text.max_position_embeddings), end, np.int32)
    for row, length in zip(token_ids, random.integers(8, _BUCKET + 1, count), strict=True):
        row[: length - 1] = random.integers(0, end - 1, length - 1)
    return token_ids
