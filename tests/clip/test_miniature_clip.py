"""The bundled CLIPs: transformers reads them alike, and they know what their cards say."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dsolo_jax import clip, images
from dsolo_jax.assets import BUNDLED, bundled
from experiments.training import contrastive, retrieval
from experiments.training.captioned import Canvas

NAMES = BUNDLED["clip"]
TEXTS = ("a photo of a red star.", "grass", "a dotted house, sky and lava.", "zebra crossing 12")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(name):
    config, params = clip.load(name)
    return config, params, clip.load_tokenizer(name, config.text.max_position_embeddings)


@pytest.fixture(scope="module")
def examples():
    return retrieval.examples(7, "validation", Canvas(112, (1, 4), (2, 3)), 64)


def test_transformers_gives_the_same_embeddings(name, loaded, examples):
    torch = pytest.importorskip("torch")
    from transformers import CLIPModel, CLIPTokenizer

    config, params, tokenize = loaded
    tokens = tokenize(TEXTS)
    tokenizer = CLIPTokenizer.from_pretrained(bundled(name, "clip"))
    theirs = tokenizer(list(TEXTS), padding="max_length", max_length=tokens.shape[1])
    np.testing.assert_array_equal(theirs.input_ids, tokens)
    pixels = np.stack(
        [
            images.normalise(picture, config.image_mean, config.image_std)
            for picture in examples.pictures[:3]
        ]
    )
    with torch.no_grad():
        model = CLIPModel.from_pretrained(bundled(name, "clip"), dtype=torch.float32).eval()
        wanted = model(torch.tensor(tokens).long(), torch.tensor(pixels.transpose(0, 3, 1, 2)))

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    pooled = unit(clip.encode_image(params, config, jnp.asarray(pixels)).pooled)
    texts = unit(clip.encode_text(params, config, tokens))
    np.testing.assert_allclose(pooled, wanted.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(texts, wanted.text_embeds.numpy(), atol=1e-5)


def test_it_knows_a_fresh_world(loaded, examples):
    """On scenes of another seed than it was trained on."""
    config, params, tokenize = loaded
    found = retrieval.report(
        examples,
        lambda pictures: contrastive.encode(params, pictures / np.float32(255), config).pooled,
        lambda texts: clip.encode_text(params, config, tokenize(texts)),
    )
    assert found["map_stuff"] > 0.97 and found["map_things"] > 0.9
    assert found["map_things_unseen"] > 0.75
    # Among 64, where chance is 0.02.
    assert min(found["image_to_text"], found["text_to_image"]) > 0.8


def test_it_is_small_and_says_what_it_is(name):
    folder = Path(bundled(name, "clip"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20
    content = json.loads((folder / "config.json").read_text())
    assert content["model_type"] == "clip"
    card = (folder / "README.md").read_text()
    assert all(
        said in card for said in ("apache-2.0", "experiments.training.train_clip", "validation")
    )
    assert ("SigLIP" in card) == (name == "miniature_dense")
    logs = {path.stem for path in folder.glob("*.jsonl")}
    assert logs == {"teacher", "hints", "clip_dense" if name == "miniature_dense" else "clip"}
