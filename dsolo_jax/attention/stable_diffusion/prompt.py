"""What Stable Diffusion is conditioned on here: the empty prompt."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsolo_jax import checkpoints
from dsolo_jax.clip import TextConfig, encode_tokens
from dsolo_jax.clip.tokenizer import FILES, read_tokenizer
from dsolo_jax.clip.towers import text_parameter_shapes
from dsolo_jax.clip.weights import IGNORE, TEXT_TABLE

_SETTINGS, _OLD_SETTINGS = "tokenizer_config.json", "special_tokens_map.json"

TOKENIZER_FILES = (*FILES, _SETTINGS, _OLD_SETTINGS)


def empty_prompt(
    directory: Path, config: TextConfig, variants: Sequence[str] = ("",)
) -> Float[Array, "L D"]:
    """The text encoder's states of the empty prompt, L the context length, in float32.

    Args:
        directory: of the checkpoint; its text_encoder and tokenizer are read.
        config: the text encoder's.
        variants: of the weights, see `checkpoints.read_tensors`.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: they are damaged, or do not belong together.
    """
    token_ids = empty_tokens(directory / "tokenizer", config.max_position_embeddings)
    if token_ids.max() >= config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has a token {token_ids.max()}, but the text encoder only "
            f"{config.vocab_size}; they are of different checkpoints"
        )
    encoder = directory / "text_encoder"
    tree = checkpoints.convert(
        checkpoints.read_tensors(encoder, variants=variants, ignore=IGNORE),
        TEXT_TABLE,
        text_parameter_shapes(config),
        source=encoder,
    )
    return encode_tokens(checkpoints.cast(tree, jnp.float32), config, token_ids)[0]


def empty_tokens(directory: Path, length: int) -> Int[np.ndarray, "1 L"]:
    """Start, end, then the tokenizer's own padding: not the end token in Stable Diffusion 2.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: its files are damaged.
    """
    tokenizer = read_tokenizer(directory)
    token_ids = tokenizer.encode("").ids
    name = _padding(directory)
    padding = token_ids[-1] if name is None else tokenizer.token_to_id(name)
    if padding is None:
        raise ValueError(
            f"{directory}: the padding token {name!r} is not in the vocabulary; fetch the "
            "tokenizer's files again"
        )
    return np.array([token_ids + [padding] * (length - len(token_ids))])


def _padding(directory: Path) -> str | None:
    """The padding token, as transformers finds it; None: the end token.

    The older of the two files holds where the newer one does not list all added tokens: the
    newer one of Stable Diffusion 2 on the hub names another token.
    """
    new, old = (
        checkpoints.read_json(path) if (path := directory / name).is_file() else {}
        for name in (_SETTINGS, _OLD_SETTINGS)
    )
    settings = new if "added_tokens_decoder" in new else new | old
    token = settings.get("pad_token")
    return token["content"] if isinstance(token, dict) else token
