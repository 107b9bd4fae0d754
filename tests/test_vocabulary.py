"""Class names to embeddings, against transformers one prompt at a time."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from dsolo_jax import clip, vocabulary
from dsolo_jax.templates import IMAGENET_TEMPLATES


@pytest.fixture(scope="module")
def loaded(tiny_clip):
    config, params = clip.load(tiny_clip)
    return params, config, clip.load_tokenizer(tiny_clip)


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


def test_a_word_may_serve_two_classes():
    """COCO-Object's list has "bed" among the background's words and as a class."""
    assert vocabulary.parse(["sky, bed", "bed"]).query_class == (0, 0, 1)


def test_background_leaves_the_users_words_to_their_classes():
    words = vocabulary.with_background(vocabulary.parse(["cat", "sky, cloud"]))
    assert words.classes == ("background", "cat", "sky")
    assert words.queries[-3:] == ("cat", "sky", "cloud") and words.query_class[-3:] == (1, 2, 2)
    background = set(words.queries[:-3])
    assert background == set(vocabulary.BACKGROUND_WORDS) - {"sky", "cloud"}


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


def test_other_weights_words_or_templates_are_other_entries(loaded):
    params, config, tokenize = loaded
    first = vocabulary.embed(["cat"], params, config, tokenize, templates=["a {}."])
    text = params["text"] | {"positions": params["text"]["positions"] * 1.5}
    for changed in (
        vocabulary.embed(["cat"], {**params, "text": text}, config, tokenize, templates=["a {}."]),
        vocabulary.embed(["dog"], params, config, tokenize, templates=["a {}."]),
        vocabulary.embed(["cat"], params, config, tokenize, templates=["the {}."]),
    ):
        assert np.abs(changed - first).max() > 1e-3


def test_a_500_word_class_name_is_refused_by_name(loaded):
    with pytest.raises(ValueError, match="context length is 77"):
        vocabulary.embed(["word " * 500], *loaded)


def test_a_word_without_a_direction_is_refused_by_name(demo):
    """The demo's CLIP knows eight words; all others are zero."""
    config, params = clip.load(demo / "clip")
    tokenize = clip.load_tokenizer(demo / "clip")
    with pytest.raises(ValueError, match="gives 'a zebra' a vector of length 0.*other words"):
        vocabulary.embed(["sky", "zebra"], params, config, tokenize, templates=["a {}"])


def probabilities(scores, scale):
    e = np.exp(scale * (scores - scores.max(axis=0)))
    return e / e.sum(axis=0)


@pytest.mark.parametrize("probability, scale", [(0.25, 10), (0.4, 40), (0.6, 55)])
def test_the_threshold_is_the_fields_rule_on_probabilities(probability, scale):
    """softmax over the queries, largest of each class, argmax; below the threshold class 0."""
    query_class = np.array([0, 0, 0, 1, 2, 2, 3, 4])
    scores = np.random.default_rng(0).normal(0.2, 0.05, (8, 40, 50))
    p = probabilities(scores, scale)
    of_class = np.stack([p[query_class == c].max(axis=0) for c in range(5)])
    expected = np.where(of_class.max(axis=0) < probability, 0, of_class.argmax(axis=0))
    threshold = vocabulary.BackgroundThreshold(probability, scale)
    decide = vocabulary.Decision(tuple(query_class.tolist()), 5, threshold)
    ours = np.asarray(decide(scores.astype(np.float32))).argmax(axis=0)
    clear = np.abs(of_class.max(axis=0) - probability) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours[clear], expected[clear])
    assert 0.1 < (of_class.max(axis=0) < probability).mean() < 0.9


def test_the_threshold_leaves_the_other_scores_as_they_are():
    scores = np.random.default_rng(1).normal(size=(4, 30)).astype(np.float32)
    decide = vocabulary.Decision((0, 1, 2, 2), 3, vocabulary.BackgroundThreshold(0.6, 2.0))
    decided = np.asarray(decide(scores))
    np.testing.assert_array_equal(decided[1], scores[1])
    np.testing.assert_array_equal(decided[2], scores[2:].max(axis=0))
    assert (decided[0] >= scores[0]).all() and (decided[0] > scores[0]).any()
