"""CLIP's byte-pair tokenizer, transformers', from the files beside a checkpoint."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from dsolo_jax import hub
from dsolo_jax.assets import bundled
from dsolo_jax.clip.config import TextConfig

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

FILES = ("tokenizer.json", "vocab.json", "merges.txt")
# What names the special tokens, where they are not CLIP's own.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")

# Lengths are rounded up to a multiple of this, so that few of them are compiled.
_BUCKET = 8


def read_tokenizer(directory: Path) -> "CLIPTokenizer":
    """The tokenizer in a folder; ValueError if it is damaged. Nothing there is executed."""
    whole, vocabulary, merges = ((directory / name).is_file() for name in FILES)
    if not whole and not (vocabulary and merges):
        raise FileNotFoundError(
            f"{directory} holds no tokenizer: wanted tokenizer.json, or vocab.json and merges.txt; "
            "copy those of the CLIP checkpoint there"
        )
    try:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # to install PyTorch
        from transformers import CLIPTokenizer  # most of a second

        tokenizer = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
        if whole:
            merged = json.loads((directory / FILES[0]).read_text("utf-8"))["model"].get("merges")
        else:
            lines = (directory / FILES[2]).read_text("utf-8").splitlines()
            merged = [line for line in lines if line and not line.startswith("#version")]
    except ImportError:
        raise
    except Exception as error:  # transformers raises all sorts
        raise ValueError(
            f"the tokenizer files in {directory} cannot be read ({error}); fetch them again"
        ) from error
    if not merged:
        raise ValueError(
            f"the tokenizer in {directory} has no merges, wanted CLIP's byte pairs: it would spell "
            "every word in letters; fetch its files again"
        )
    known = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    for what in ("bos_token", "eos_token"):  # transformers adds a number where one is missing
        if (token := getattr(tokenizer, what)) not in known:
            raise ValueError(
                f"the tokenizer in {directory} has {what} {token!r}, which is not in its "
                "vocabulary; fetch the files of one checkpoint again"
            )
    return tokenizer


def _check_fit(tokenizer: "CLIPTokenizer", config: TextConfig, source: str | os.PathLike) -> None:
    largest, end = max(tokenizer.get_vocab().values()), tokenizer.eos_token_id
    if largest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has a token {largest}, but its text tower knows "
            f"{config.vocab_size}; fetch the files of one checkpoint again"
        )
    # Old configs say 2, and mean the largest.
    if end != (largest if config.eos_token_id == 2 else config.eos_token_id):
        raise ValueError(
            f"the tokenizer of {source} ends texts with token {end} of 0..{largest}, but its "
            f"config.json says eos_token_id {config.eos_token_id}; fetch the files of one "
            "checkpoint again"
        )


def load_tokenizer(
    source: str | os.PathLike, max_length: int = 77, config: TextConfig | None = None
) -> Callable[[Sequence[str]], Int[np.ndarray, "Q L"]]:
    """The tokenizer of a CLIP checkpoint, as a function from Q texts to token ids [Q, L], int32.

    A row is the start token, the text, then end tokens up to L: the longest text's length rounded
    up to a multiple of 8, at most `max_length`. `encode_text` stops at the first end token.

    Args:
        source: a folder with tokenizer.json or with vocab.json and merges.txt, a hub id, or
            "miniature".
        max_length: the context length, `config.text.max_position_embeddings`.
        config: of the text tower; the tokenizer is checked against it.

    Raises:
        OSError: no such checkpoint, or no tokenizer in it.
        ValueError: the files are damaged, or of another text tower; from the function, a text
            exceeds the context length.
    """
    tokenizer = read_tokenizer(hub.folder(bundled(source, "clip"), (*FILES, *SETTINGS)))
    backend, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    if config is not None:
        _check_fit(tokenizer, config, source)
    backend.no_padding()  # of tokenizer.json
    backend.no_truncation()

    def tokenize(texts: Sequence[str]) -> Int[np.ndarray, "Q L"]:
        rows = [encoding.ids for encoding in backend.encode_batch(list(texts))]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > max_length:
                shown = text if len(text) <= 60 else f"{text[:60]}…"
                raise ValueError(
                    f"text {shown!r} has {len(row)} tokens, with start and end, but the context "
                    f"length is {max_length}; shorten it"
                )
        longest = max(map(len, rows), default=1)
        length = min(-(-longest // _BUCKET) * _BUCKET, max_length)
        token_ids = np.full((len(rows), length), end, np.int32)
        for row, padded in zip(rows, token_ids, strict=True):
            padded[: len(row)] = row
        return token_ids

    return tokenize
