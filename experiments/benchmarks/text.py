"""CLIP's text tower, B/16: prompts cut to their bucket of length against all 77 positions."""

import jax
import numpy as np

from dsolo_jax import clip
from experiments.benchmarks.timing import compare, xla_account

# A prompt of 150 classes x 80 templates has 8 to 16 tokens; a batch of them stands for all 12000.
_PROMPTS, _ALL = 128, 150 * 80
_BUCKET = 16


def run() -> list[dict]:
    """One row: seconds for 150 classes in 80 templates, from the time of one batch of prompts."""
    config = clip.VIT_B16
    params = clip.init(config, jax.random.key(0))
    random = np.random.default_rng(0)
    context = config.text.max_position_embeddings
    end = config.text.eos_token_id
    token_ids = np.full((_PROMPTS, context), end, np.int32)
    for row, length in zip(token_ids, random.integers(8, _BUCKET + 1, _PROMPTS), strict=True):
        row[: length - 1] = random.integers(0, end - 1, length - 1)

    def encode(params, token_ids):
        return clip.encode_text(params, config, token_ids)

    jitted = jax.jit(encode)
    cut = token_ids[:, :_BUCKET]
    seconds = compare(
        {"cut": lambda: jitted(params, cut), "full": lambda: jitted(params, token_ids)}, repeats=5
    )
    scale = _ALL / _PROMPTS
    return [
        {
            "stage": "text",
            "case": f"{_ALL} prompts at length {_BUCKET}, from {_PROMPTS}",
            "seconds": seconds["cut"] * scale,
            "prompts_per_second": _PROMPTS / seconds["cut"],
            "baseline": f"length {context}",
            "baseline_seconds": seconds["full"] * scale,
            "ratio": seconds["cut"] / seconds["full"],
            **xla_account(encode, params, cut),
        }
    ]
