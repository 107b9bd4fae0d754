"""The tokenizer against transformers' CLIPTokenizer."""

import shutil

import numpy as np
import pytest
import transformers

from dsolo_jax import clip

TEXTS = [
    "",
    "cat",
    "a photo of a cat.",
    "A PHOTO of a Cat's  tail,   they'll say; I'd 've",
    "naïve café, Ångström, ﬁn",
    "e\u0301 combining",
    "12 345 7.5% 2x4",
    "tabs\tand\nlines \u00a0 spaces \u3000",
    " leading and trailing ",
    "日本語 한국어 кот كلب",
    "emoji 🐈‍⬛ !?#$%^&*()[]{}",
    "under_score-hyphen/slash\\back",
    "don't can't cat's 's ' \"quoted\"",
    "<|endoftext|> inside <|startoftext|>",
]


@pytest.fixture(scope="module")
def oracle(tiny_clip):
    return transformers.CLIPTokenizer.from_pretrained(tiny_clip)


@pytest.fixture(scope="module", params=["vocab.json and merges.txt", "tokenizer.json"])
def folder(request, tiny_clip, oracle, tmp_path_factory):
    """The same tokenizer in either form."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "tokenizer.json":
        oracle.save_pretrained(folder)
        assert (folder / "tokenizer.json").is_file()
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(tiny_clip / name, folder)
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(folder, oracle, text):
    expected = oracle(text)["input_ids"]
    (row,) = clip.load_tokenizer(folder, max_length=200)([text])
    np.testing.assert_array_equal(row[: len(expected)], expected)
    assert (row[len(expected) :] == oracle.eos_token_id).all()


def test_the_merges_are_used(folder):
    (row,) = clip.load_tokenizer(folder)(["a cat of a photo"])
    assert (row != row[-1]).sum() == 1 + 5


@pytest.mark.parametrize(("words", "length"), [(1, 8), (6, 8), (7, 16), (14, 16), (74, 77)])
def test_length_is_rounded_up_to_few_values(folder, words, length):
    token_ids = clip.load_tokenizer(folder)(["cat", " ".join(["cat"] * words)])
    assert token_ids.shape == (2, length)
    assert token_ids.dtype == np.int32


def test_too_long_a_text_is_named(folder):
    tokenize = clip.load_tokenizer(folder)
    assert tokenize([" ".join(["cat"] * 75)]).shape == (1, 77)
    with pytest.raises(ValueError, match="text 'cat cat .*78 tokens.*context length is 77"):
        tokenize(["cat", " ".join(["cat"] * 76)])


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer: wanted tokenizer.json"):
        clip.load_tokenizer(tmp_path)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer files in .* cannot be read"):
        clip.load_tokenizer(tmp_path)
