"""CLIP's kind of tokenizer for the words of given texts, in the files that transformers reads."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from dsolo_jax.utils.files import atomic, write_json

_START, _END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"


def write_tokenizer(directory: Path, texts: Iterable[str], size: int, max_length: int) -> int:
    """Writes vocab.json, merges.txt and tokenizer_config.json; returns the vocabulary's size.

    Args:
        texts: whose frequent words and pieces of words become tokens; others are spelled in bytes.
        size: of the vocabulary, at most.
        max_length: the context length that the text encoder has.
    """
    tokenizer = CLIPTokenizer().backend_tokenizer  # CLIP's rules for words, whatever the merges
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[_START, _END],
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + _END_OF_WORD for letter in letters), *map("".join, merges)]
    tokens += [_START, _END]
    write_json(directory / "vocab.json", {token: i for i, token in enumerate(tokens)})
    with atomic(directory / "merges.txt") as temporary:
        lines = ["#version: 0.2", *map(" ".join, merges)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length}
    write_json(directory / "tokenizer_config.json", settings)
    return len(tokens)
