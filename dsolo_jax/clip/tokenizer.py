"""CLIP's byte-pair tokenizer, from the files beside a checkpoint."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from dsolo_jax import hub
from dsolo_jax.assets import bundled

FILES = ("tokenizer.json", "vocab.json", "merges.txt")

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# Lengths are rounded up to a multiple of this, so that few of them are compiled.
_BUCKET = 8


def _from_vocabulary(vocabulary: Path, merges: Path) -> Tokenizer:
    model = BPE.from_file(
        str(vocabulary), str(merges), unk_token=_END, end_of_word_suffix="</w>", fuse_unk=False
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(_START, special=True), AddedToken(_END, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (_END, tokenizer.token_to_id(_END)),
        (_START, tokenizer.token_to_id(_START)),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return tokenizer


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a folder, which neither pads nor cuts.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the files are damaged.
    """
    whole, vocabulary, merges = (directory / name for name in FILES)
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if vocabulary.is_file() and merges.is_file():
            return _from_vocabulary(vocabulary, merges)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"the tokenizer files in {directory} cannot be read ({error}); fetch them again"
        ) from error
    raise FileNotFoundError(
        f"{directory} holds no tokenizer: wanted tokenizer.json, or vocab.json and merges.txt; "
        "copy those of the CLIP checkpoint there"
    )


def load_tokenizer(
    source: str | os.PathLike, max_length: int = 77
) -> Callable[[Sequence[str]], Int[np.ndarray, "Q L"]]:
    """The tokenizer of a CLIP checkpoint, as a function from Q texts to token ids [Q, L], int32.

    A row is the start token, the text, then end tokens up to L: the longest text's length rounded
    up to a multiple of 8, at most `max_length`. `encode_text` stops at the first end token.

    Args:
        source: a folder with tokenizer.json or with vocab.json and merges.txt, a hub id, or
            "miniature".
        max_length: the context length, `config.text.max_position_embeddings`.

    Raises:
        OSError: no such checkpoint, or no tokenizer in it.
        ValueError: the files are damaged; from the function, a text exceeds the context length.
    """
    tokenizer = read_tokenizer(hub.folder(bundled(source, "clip"), FILES))
    end = tokenizer.token_to_id(_END)

    def tokenize(texts: Sequence[str]) -> Int[np.ndarray, "Q L"]:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
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
