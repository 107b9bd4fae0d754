"""Class names to embeddings, against transformers one prompt at a time."""

import logging
import warnings

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from dsolo_jax import clip, vocabulary
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.utils import fingerprint


@pytest.fixture(scope="module")
def loaded(tiny_clip):
    config, params = clip.load(tiny_clip)
    return params, config, str(tiny_clip), fingerprint.of_arrays(params["text"])


def test_synonyms_are_queries_of_their_class():
    words = vocabulary.parse(["grass", "sky, cloud", " cat "])
    assert words.classes == ("grass", "sky", "cat")
    assert words.queries == ("grass", "sky", "cloud", "cat")
    assert words.query_class == (0, 1, 1, 2)


@pytest.mark.parametrize(
    "classes, message",
    [
        ([], "no classes"),
        (["cat", ""], "empty name"),
        (["cat", "sofa, , couch"], "'sofa, , couch' has an empty name"),
        (["cat", "dog", "cat, kitten"], "'cat' is given twice, as number 0 and 2"),
        (["sofa, sofa"], "synonym twice"),
        ("cat; dog", "give a list"),
    ],
)
def test_bad_classes_are_named(classes, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.parse(classes)


@pytest.mark.parametrize(
    "classes, found",
    [
        ({"cat": ["kitten"], "dog": []}, "classes is a dict, {'cat'"),
        ({"cat", "dog"}, "classes is a set"),
        ([["sofa", "couch"], ["cat"]], r"classes hold \['sofa', 'couch'\], a list"),
        (["cat", ("sofa", "couch")], r"classes hold \('sofa', 'couch'\), a tuple"),
        (["cat", None], "classes hold None, a NoneType"),
    ],
)
def test_classes_of_other_types_are_refused_with_the_way_out(classes, found):
    with pytest.raises(TypeError, match=f"{found}.*; give a list, one string a class, such as"):
        vocabulary.parse(classes)


def test_words_are_embedded_without_talk(loaded, capfd, caplog):
    caplog.set_level(logging.WARNING, "dsolo_jax")  # the commands of other tests show progress
    vocabulary.embed(["never before", "nor this"], *loaded)
    assert capfd.readouterr() == ("", "")


def test_a_word_may_serve_two_classes():
    """COCO-Object's list has "bed" among the background's words and as a class."""
    assert vocabulary.parse(["sky, bed", "bed"]).query_class == (0, 0, 1)


def test_fold_takes_the_largest_of_each_class():
    scores = np.array([[1.0, 5.0], [4.0, 2.0], [3.0, 3.0]])
    folded = vocabulary.fold(scores, np.array([0, 1, 1]), 2)
    np.testing.assert_array_equal(folded, [[1, 5], [4, 3]])


def test_there_are_80_different_templates_with_one_place_each():
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)


def test_embeddings_equal_transformers_prompt_by_prompt(tiny_clip, loaded):
    """Each prompt alone and uncut at 77 tokens; ours sorted, batched and cut."""
    queries = ("cat", "a dog", "photo of it")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    expected = []
    for query in queries:
        each = []
        for template in IMAGENET_TEMPLATES:
            ids = tokenizer(template.format(query), padding="max_length", max_length=77)
            with torch.no_grad():
                hidden = model.text_model(torch.tensor([ids["input_ids"]])).pooler_output
                vector = model.text_projection(hidden)[0].numpy()
            each.append(vector / np.linalg.norm(vector))
        mean = np.mean(each, axis=0)
        expected.append(mean / np.linalg.norm(mean))
    ours = vocabulary.embed(queries, *loaded)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_second_time_is_read_from_disk(loaded, monkeypatch):
    first = vocabulary.embed(["cat"], *loaded, templates=["a {}."])
    monkeypatch.setattr(clip, "encode_text", None)  # would be called otherwise
    np.testing.assert_array_equal(vocabulary.embed(["cat"], *loaded, templates=["a {}."]), first)


def test_a_word_is_embedded_once_and_alike_beside_any_others(loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path / "all"))
    words = ["cat", "a much longer name of a dog", "tree"]
    together = vocabulary.embed(words, *loaded)
    encoded, encode = [], clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda *given: encoded.append(1) or encode(*given))
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path / "one by one"))
    for number in range(1, 4):
        found = vocabulary.embed(words[:number][::-1], *loaded)
        np.testing.assert_array_equal(found, together[:number][::-1])
        assert len(encoded) == 2 * number  # the shorter and the longer prompts


def test_other_weights_words_or_templates_are_other_entries(loaded):
    params, config, tokenizer, weights = loaded
    first = vocabulary.embed(["cat"], *loaded, templates=["a {}."])
    text = params["text"] | {"positions": params["text"]["positions"] * 1.5}
    other = {**params, "text": text}, config, tokenizer, fingerprint.of_arrays(text)
    assert other[-1] != weights
    for changed in (
        vocabulary.embed(["cat"], *other, templates=["a {}."]),
        vocabulary.embed(["dog"], *loaded, templates=["a {}."]),
        vocabulary.embed(["cat"], *loaded, templates=["the {}."]),
    ):
        assert np.abs(changed - first).max() > 1e-3


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.write_bytes(b""),
        lambda entry: entry.write_bytes(entry.read_bytes()[:-5]),
        lambda entry: entry.write_bytes(b"no array"),
        lambda entry: np.save(entry, np.load(entry)[:-1]),
        lambda entry: np.save(entry, np.load(entry) * np.nan),
        lambda entry: np.save(entry, np.load(entry).astype(np.float64)),
        lambda entry: (entry.unlink(), entry.mkdir()),
    ],
    ids=["empty", "cut", "no array", "other shape", "not finite", "other type", "a folder"],
)
def test_an_entry_that_is_damaged_is_made_again(loaded, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path))
    first = vocabulary.embed(["cat"], *loaded, templates=["a {}."])
    [entry] = (tmp_path / "text").iterdir()
    damage(entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # over a folder nothing can be written
        np.testing.assert_array_equal(
            vocabulary.embed(["cat"], *loaded, templates=["a {}."]), first
        )
    if entry.is_file():
        np.testing.assert_array_equal(np.load(entry), first[0])


def test_a_500_word_class_name_is_refused_by_name(loaded):
    with pytest.raises(ValueError, match="context length is 77"):
        vocabulary.embed(["word " * 500], *loaded)


def test_a_word_without_a_direction_is_refused_by_name(demo):
    """The demo's CLIP knows eight words; all others are zero."""
    config, params = clip.load(demo / "clip")
    where = str(demo / "clip"), fingerprint.of_arrays(params["text"])
    with pytest.raises(ValueError, match="gives 'a zebra' a vector of length 0.*other words"):
        vocabulary.embed(["sky", "zebra"], params, config, *where, templates=["a {}"])
