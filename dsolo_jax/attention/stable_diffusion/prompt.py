"""What Stable Diffusion is conditioned on here: the empty prompt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax import checkpoints
from dsolo_jax.clip import TextConfig, encode_tokens
from dsolo_jax.clip.tokenizer import FILES, SETTINGS, read_tokenizer
from dsolo_jax.clip.towers import text_parameter_shapes
from dsolo_jax.clip.weights import IGNORE, TEXT_TABLE

TOKENIZER_FILES = (*FILES, *SETTINGS)


def empty_prompt(
    directory: Path, config: TextConfig, variants: Sequence[str] = ("",)
) -> Float[Array, "L D"]:
    """The states of the empty prompt, L the context length, in float32, by the text encoder and the
    tokenizer in the checkpoint's folder; ValueError where they do not belong together."""
    token_ids = empty_tokens(directory / "tokenizer", config.max_position_embeddings)
    if token_ids.max() >= config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has a token {token_ids.max()}, but the text encoder only "
            f"{config.vocab_size}; they are of different checkpoints"
        )
    shapes = text_parameter_shapes(config)
    params = checkpoints.load(
        directory / "text_encoder", TEXT_TABLE, shapes, None, variants=variants, ignore=IGNORE
    )
    return encode_tokens(params, config, token_ids)[0]


def empty_tokens(directory: Path, length: int) -> Int[np.ndarray, "1 L"]:
    """Start, end, then the tokenizer's own padding: not the end token in Stable Diffusion 2."""
    tokenizer = read_tokenizer(directory)
    if tokenizer.pad_token_id >= tokenizer.vocab_size:  # transformers has added it
        raise ValueError(
            f"{directory}: the padding token {tokenizer.pad_token!r} is not in the vocabulary; "
            "fetch the tokenizer's files again"
        )
    return np.array([tokenizer("", padding="max_length", max_length=length).input_ids])
