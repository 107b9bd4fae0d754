"""CLIP's kind of tokenizer for the words of given texts, in the files that transformers reads."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from dsolo_jax.utils.files import write_json, write_text

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
    letters = sorted(ByteLevel.alphabet())
    letters += [letter + _END_OF_WORD for letter in letters]
    trainer = BpeTrainer(
        vocab_size=size,
        # All that there is before a merge, so that ties between merges do not go by chance.
        special_tokens=[_START, _END, *letters],
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [*letters, *map("".join, merges), _START, _END]
    write_json(directory / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    write_text(directory / "merges.txt", "\n".join(lines))
    settings = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length}
    write_json(directory / "tokenizer_config.json", settings)
    return len(tokens)
