"""CLIP's text tower, B/16: prompts cut to their bucket of length against all 77 positions."""

import os
import tempfile
import time
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np

from dsolo_jax import clip, vocabulary
from dsolo_jax.utils import fingerprint
from experiments.benchmarks.timing import beside, rows, xla_account

# A prompt of 150 classes x 80 templates has 8 to 16 tokens; a batch of them stands for all 12000.
_PROMPTS, _ALL = 128, 150 * 80
_BUCKET = 16


def run() -> Iterator[dict]:
    """150 classes in 80 templates: the first time, from one batch of prompts, and the second."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))
    [first] = _first_time(params, config)
    yield first
    yield _second_time(params, config, first["seconds"])


def _first_time(params: clip.Params, config: clip.ClipConfig) -> list[dict]:
    token_ids = _token_ids(config, _PROMPTS)
    cut = token_ids[:, :_BUCKET]
    encode = jax.jit(lambda params, token_ids: clip.encode_text(params, config, token_ids))
    jobs = {
        "ours": lambda: encode(params, cut),
        f"length {token_ids.shape[1]}": lambda: encode(params, token_ids),
    }
    account, case = xla_account(encode, params, cut), f"at length {_BUCKET}, from {_PROMPTS}"
    scale = _ALL / _PROMPTS
    return rows("text", f"{_ALL} prompts {case}", jobs, repeats=5, scale=scale, **account)


def _second_time(params: clip.Params, config: clip.ClipConfig, first_seconds: float) -> dict:
    """Reading from disk costs the weights' fingerprint, whatever the number of prompts."""

    def embed():
        weights = fingerprint.of_arrays(params["text"])
        vocabulary.embed(["cat"], params, config, "miniature", weights)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"DSOLO_CACHE": folder}),
    ):
        embed()
        start = time.perf_counter()
        embed()
        seconds = time.perf_counter() - start
    row = {"stage": "text", "case": "the same the second time, from disk", "seconds": seconds}
    return row | beside(seconds, "the first time", first_seconds)


def _token_ids(config: clip.ClipConfig, count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    end = config.text.eos_token_id
    token_ids = np.full((count, config.text.max_position_embeddings), end, np.int32)
    for row, length in zip(token_ids, random.integers(8, _BUCKET + 1, count), strict=True):
        row[: length - 1] = random.integers(0, end - 1, length - 1)
    return token_ids
