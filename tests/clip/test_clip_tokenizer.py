"""The tokenizer against transformers' CLIPTokenizer."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import transformers

import dsolo_jax
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


def test_no_texts_give_no_rows(folder):
    assert clip.load_tokenizer(folder)([]).shape == (0, 8)


def test_settings_of_tokenizer_json_neither_pad_nor_cut(tiny_clip, tmp_path):
    whole = transformers.CLIPTokenizer.from_pretrained(tiny_clip)
    whole(["cat"], padding="max_length", truncation=True, max_length=4)
    whole.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
    texts = ["cat", "a photo of a cat"]
    expected = clip.load_tokenizer(tiny_clip)(texts)
    np.testing.assert_array_equal(clip.load_tokenizer(tmp_path)(texts), expected)


def edited(folder, tmp_path, change):
    """A copy of the folder whose vocabulary and merges went through `change(vocab, merges)`."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    if (copy / "tokenizer.json").is_file():
        content = json.loads((copy / "tokenizer.json").read_text())
        model = content["model"]
        model["vocab"], model["merges"] = change(model["vocab"], model["merges"])
        (copy / "tokenizer.json").write_text(json.dumps(content))
    else:
        vocabulary = json.loads((copy / "vocab.json").read_text())
        version, *merges = (copy / "merges.txt").read_text().splitlines()
        vocabulary, merges = change(vocabulary, merges)
        (copy / "vocab.json").write_text(json.dumps(vocabulary))
        (copy / "merges.txt").write_text("\n".join([version, *merges]) + "\n")
    return copy


def test_a_tokenizer_without_merges_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="copy has no merges.*fetch its files again"):
        clip.load_tokenizer(edited(folder, tmp_path, lambda vocabulary, _: (vocabulary, [])))


@pytest.mark.parametrize(
    "token, name", [("<|startoftext|>", "bos_token"), ("<|endoftext|>", "eos_token")]
)
def test_a_tokenizer_without_its_start_or_end_is_refused(folder, tmp_path, token, name):
    def without(vocabulary, merges):
        return {t: i for t, i in vocabulary.items() if t != token}, merges

    with pytest.raises(ValueError, match=rf"{name} '<.*>', which is not in its vocabulary"):
        clip.load_tokenizer(edited(folder, tmp_path, without))


def test_nothing_in_the_folder_is_executed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    ran = tmp_path / "ran"
    (copy / "tokenization.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    settings = {
        "tokenizer_class": "Mine",
        "auto_map": {"AutoTokenizer": ["tokenization.Mine", "tokenization.Mine"]},
        "trust_remote_code": True,
    }
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        clip.load_tokenizer(copy)
    except ValueError as error:
        assert "cannot be read" in str(error)
    assert not ran.exists()


def test_without_torch_it_is_quiet_and_transformers_comes_late(folder):
    program = (
        "import importlib.util, sys\n"
        "find_spec = importlib.util.find_spec\n"
        "hidden = {'torch', 'torchvision', 'tensorflow'}\n"
        "importlib.util.find_spec = lambda name, *a: "
        "None if name.split('.')[0] in hidden else find_spec(name, *a)\n"
        "from dsolo_jax import clip\n"
        "assert 'transformers' not in sys.modules\n"
        f"assert clip.load_tokenizer({str(folder)!r}, 500)(['cat ' * 100]).shape == (1, 104)\n"
        "assert not hidden & set(sys.modules)\n"
        "import logging; assert logging.getLogger('x').isEnabledFor(logging.WARNING)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer files in .* cannot be read"):
        clip.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 521}, "has a token 521, but its text tower knows 521"),
        ({"eos_token_id": 300}, r"ends texts with token 521 of 0..521.* says eos_token_id 300"),
    ],
)
def test_a_tokenizer_of_another_text_tower_is_refused(folder, changes, words):
    config = clip.TextConfig(vocab_size=522, eos_token_id=521)
    for fitting in (config, dataclasses.replace(config, eos_token_id=2)):
        clip.load_tokenizer(folder, 77, fitting)
    with pytest.raises(ValueError, match=f"{words}.*of one checkpoint again"):
        clip.load_tokenizer(folder, 77, dataclasses.replace(config, **changes))


def test_loading_a_model_checks_its_tokenizer(tiny_clip, tmp_path):
    """`dsolo.load(clip=FOLDER)`, before any picture is read."""
    copy = shutil.copytree(tiny_clip, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="copy ends texts with token 521 .* eos_token_id 7"):
        dsolo_jax.load(clip=copy, attention="appearance")
