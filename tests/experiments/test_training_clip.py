"""How the miniature CLIP is trained: what it is told, what is minimised, and what is written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import driver

from dsolo_jax import clip, images
from dsolo_jax.checkpoints import flatten
from dsolo_jax.clip import ClipConfig, TextConfig, VisionConfig
from dsolo_jax.datasets import miniature
from experiments.training import captioned, contrastive, retrieval, teacher
from experiments.training.captioned import Canvas

train_clip = driver("training.train_clip")
Stretch = train_clip.Stretch

WHOLE = Canvas(112, (1, 4), (2, 3))


def config(vocabulary=40):
    return ClipConfig(
        VisionConfig(32, 64, 2, 2, image_size=112, patch_size=8),
        TextConfig(vocabulary, 32, 64, 1, 2, 48, eos_token_id=vocabulary - 1),
        projection_dim=128,  # of the teacher too
    )


@pytest.fixture(scope="module")
def params():
    pictures = np.stack([miniature.draw(0, i, 56).image for i in range(4)])
    return contrastive.init(config(), pictures, jax.random.key(0))


# ---------------------------------------------------------------------------------- the captions


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a photo of a red star, sand and a ball.", ["star", "sand", "ball"]),
        ("an arrow and snow in the scene.", ["arrow", "snow"]),
        ("a photo of a red star.", []),
        ("a black and white photo of the heart.", []),
    ],
)
def test_nouns_are_the_members_of_an_enumeration(caption, nouns):
    assert captioned.enumerated(caption) == nouns


def test_what_captions_enumerate_is_in_the_picture():
    told = 0
    for i in range(40):
        scene = miniature.draw(3, i, 48)
        present = {miniature.CLASSES[item.index] for item in scene.items}
        texts = miniature.captions(scene, np.random.default_rng(i), 6)
        nouns = {noun for text in texts for noun in captioned.enumerated(text)}
        assert nouns <= present
        told += nouns == present
    assert told > 30


# ------------------------------------------------------------------------------------ the losses


def test_contrast_of_different_sentences_is_clips():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    given = torch.tensor(logits)
    cross_entropy = torch.nn.functional.cross_entropy
    wanted = (cross_entropy(given, torch.arange(6)) + cross_entropy(given.T, torch.arange(6))) / 2
    found = contrastive.contrast(jnp.asarray(logits), jnp.eye(6, dtype=bool))
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)


def test_equal_sentences_are_no_one_s_mistake():
    """Two pictures of one sentence: the loss is least where both are equally near to it."""
    same = jnp.array([[True, True, False], [True, True, False], [False, False, True]])
    apart = 20.0 * jnp.eye(3)
    together = jnp.where(same, 20.0, 0.0)
    assert contrastive.contrast(together, same) == pytest.approx(np.log(2) * 2 / 3, abs=1e-4)
    assert contrastive.contrast(apart, same) > 5


def test_sentences_are_contrasted_one_of_each_picture_at_a_time(params):
    random = np.random.default_rng(0)
    captions = jnp.asarray(random.integers(0, 40, (2, 3, 8))).at[1, 2].set(3).at[1, 0].set(3)
    pictures = contrastive.unit(jnp.asarray(random.standard_normal((3, 128)), jnp.float32))
    losses = []
    for k, same in enumerate((np.eye(3), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])):
        texts = contrastive.unit(clip.encode_text(params, config(), captions[k]))
        logits = jnp.exp(params["logit_scale"]) * pictures @ texts.T
        losses.append(contrastive.contrast(logits, jnp.asarray(same, bool)))
    found = contrastive.sentences(params, pictures, captions, config())
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_naming_is_the_likelihood_of_what_is_named():
    random = np.random.default_rng(0)
    logits, named = random.standard_normal((5, 4)), random.random((5, 4)) < 0.4
    named[2] = False  # a picture whose captions enumerate nothing: it says nothing
    named[[0, 1, 3, 4], 0] = True
    chance = 1 / (1 + np.exp(-logits))
    likelihood = np.where(named, chance, 1 - chance)[[0, 1, 3, 4]]
    found = contrastive.naming(jnp.asarray(logits), jnp.asarray(named))
    np.testing.assert_allclose(found, -np.log(likelihood).sum(axis=1).mean(), rtol=1e-5)


def test_a_noun_looks_where_its_map_is_high():
    random = np.random.default_rng(0)
    dense, patches = random.standard_normal((2, 3, 4, 5, 8)).astype(np.float32)
    prompts = random.standard_normal((6, 8)).astype(np.float32)
    maps = np.einsum("bhwd,vd->bvhw", dense, prompts).reshape(3, 6, 20)
    values = np.einsum("bhwd,vd->bvhw", patches, prompts).reshape(3, 6, 20)
    weights = np.exp(0.7 * maps) / np.exp(0.7 * maps).sum(axis=-1, keepdims=True)
    for sharpness, wanted in (
        (0.0, values.mean(axis=-1)),
        (0.7, (weights * values).sum(axis=-1)),
        (1e4, np.take_along_axis(values, maps.argmax(-1)[..., None], -1)[..., 0]),
    ):
        found = contrastive.look(*map(jnp.asarray, (dense, patches, prompts, sharpness)))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_only_the_dense_loss_asks_something_of_the_patches(params):
    random = np.random.default_rng(0)
    batch = contrastive.Batch(
        jnp.asarray(random.random((3, 112, 112, 3)), jnp.float32),
        jnp.asarray(random.integers(0, 40, (2, 3, 8))),
        jnp.asarray(random.integers(0, 40, (2, 8))),
        jnp.asarray([[True, False], [False, True], [False, False]]),
    )
    asked = {}
    for name, loss in train_clip._LOSSES.items():
        gradient = flatten(jax.jit(jax.grad(loss), static_argnums=2)(params, batch, config()))
        asked[name] = {path for path, slope in gradient.items() if np.abs(slope).max() > 0}
    own = {"nouns/scale", "nouns/bias", "regions/scale", "regions/bias", "regions/sharpness"}
    assert asked["clip_dense"] - asked["clip"] == own and asked["clip"] < asked["clip_dense"]
    assert {"logit_scale", "vision/patch_kernel", "text/tokens"} <= asked["clip"]


def test_matrices_turn_by_a_rotation_and_all_else_goes_by_adam():
    """A convolution's kernel as the matrix that it is."""
    random = np.random.default_rng(0)
    for shape in ((6, 4), (3, 2, 1, 4)):
        params = {"a": {"kernel": jnp.ones(shape), "bias": jnp.zeros(3)}}
        slope = {"kernel": 0.1 * random.standard_normal(shape), "bias": np.array([2, -1, 0])}
        gradient = jax.tree.map(jnp.float32, {"a": slope})
        optimizer = contrastive.optimizer(lambda step: jnp.float32(0.5))
        found, _ = optimizer.update(gradient, optimizer.init(params), params)
        decayed = np.asarray(found["a"]["kernel"]) + 0.5 * 0.02 * 0.01
        values = np.linalg.svd(decayed.reshape(6, 4), compute_uv=False)
        assert values.max() < 1.8 * values.min() and 0.005 < values.mean() < 0.02
        step = found["a"]["bias"] / -found["a"]["bias"][0]  # of one size, whatever the gradient's
        np.testing.assert_allclose(step, [-1, 1, 0], atol=1e-4)
        assert 5e-4 < found["a"]["bias"][1] < 2e-3


# ------------------------------------------------------------------------------------ the teacher


def test_the_teacher_sees_the_same_wherever_it_lies(params):
    shown = teacher.init(params, jax.random.key(1))
    picture = np.random.default_rng(0).random((1, 96, 96, 3)).astype(np.float32)
    found = teacher.features(shown, jnp.asarray(picture))
    moved = teacher.features(shown, jnp.asarray(np.roll(picture, (8, 16), axis=(1, 2))))
    assert found.shape == (1, 12, 12, 128)
    inside = np.s_[:, 5:-4, 6:-4]  # what no border reaches
    np.testing.assert_allclose(moved[inside], np.roll(found, (1, 2), (1, 2))[inside], atol=1e-4)
    mean = np.asarray(found).mean(axis=(1, 2))
    np.testing.assert_allclose(
        teacher.embed(shown, jnp.asarray(picture)), mean / np.linalg.norm(mean), atol=1e-5
    )


def test_the_class_token_starts_as_the_mean_of_what_was_foretold(params):
    """Those are the patches of the tower with one block fewer; the text tower is the teacher's."""
    shallow = dataclasses.replace(config(), vision=VisionConfig(32, 64, 1, 2, 112, 8))
    pictures = np.stack([miniature.draw(0, i).image for i in range(4)])
    vision = contrastive.init(shallow, pictures, jax.random.key(5))["vision"]
    seen = jnp.asarray(pictures / np.float32(255))
    shown = jax.tree.map(lambda x: x + 1, {k: params[k] for k in ("text", "logit_scale")})
    found = contrastive.taught(params, vision, shown)
    np.testing.assert_array_equal(found["text"]["tokens"], params["text"]["tokens"] + 1)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, params)

    def encoded(params, config, start="vanilla"):
        return contrastive.encode(params, seen, config, start)

    each = encoded({"vision": vision}, shallow).patches.reshape(4, 196, 128)
    local = encoded(found, config(), "maskclip").patches.reshape(4, 196, 128)
    np.testing.assert_allclose(local, each, atol=2e-3)  # norms of norms, each with its own ε
    pooled = contrastive.unit(encoded(found, config()).pooled)
    likeness = (pooled * contrastive.unit(each.mean(axis=1))).sum(axis=-1)
    assert likeness.min() > 0.9


# ---------------------------------------------------------------------------------- the pictures


def normalised(pictures):
    of_clip = config().image_mean, config().image_std
    return jnp.asarray(np.stack([images.normalise(picture, *of_clip) for picture in pictures]))


def test_a_picture_is_encoded_as_by_the_library(params):
    pictures = np.stack([miniature.draw(0, i).image for i in range(2)])
    wanted = clip.encode_image(params, config(), normalised(pictures))
    found = contrastive.encode(params, jnp.asarray(pictures / 255), config())
    np.testing.assert_allclose(found.pooled, wanted.pooled, atol=2e-5)
    np.testing.assert_allclose(found.patches, wanted.patches, atol=2e-5)


def test_patches_start_uncorrelated(params):
    pictures = np.stack([miniature.draw(0, i, 56).image for i in range(4)])
    kernel = params["vision"]["patch_kernel"].reshape(192, -1)
    embedded = clip.patchify(normalised(pictures), 8).reshape(-1, 192) @ kernel
    spread = np.cov(np.asarray(embedded), rowvar=False)
    assert np.abs(spread - np.diag(np.diag(spread))).max() < 0.15
    assert (np.diag(spread) > 0.5).all()


# -------------------------------------------------------------------------------- the measurement


def test_precision_is_the_mean_share_down_to_each_true_one():
    scores, true = np.array([0.9, 0.1, 0.8, 0.3]), np.array([True, True, False, False])
    assert retrieval.precision(scores, true) == pytest.approx((1 / 1 + 2 / 4) / 2)
    everywhere = np.ones((4, 1), bool)
    both = np.stack([scores, -scores], 1), np.stack([true, ~true], 1)
    by_hand = (0.75 + (1 / 2 + 2 / 3) / 2) / 2
    assert retrieval.mean_precision(*both, np.ones((4, 2), bool)) == pytest.approx(by_hand)
    # Left out of a ranking: the picture that stood between.
    asked = everywhere & (np.arange(4) != 2)[:, None]
    found = retrieval.mean_precision(scores[:, None], true[:, None], asked)
    assert found == pytest.approx((1 + 2 / 3) / 2)


def test_recall_takes_equal_captions_for_equally_right():
    similar = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.3], [0.0, 0.2, 0.7]])
    assert retrieval.recall(similar, ["a", "b", "c"]) == pytest.approx((2 / 3, 2 / 3))
    assert retrieval.recall(similar, ["a", "a", "c"]) == pytest.approx((1, 2 / 3))


# ------------------------------------------------------------------------------------- the driver


def test_a_batch_is_a_function_of_its_step():
    random = np.random.default_rng(0)
    single = Canvas(56, (1, 1), (1, 1))
    stretches = {single: Stretch(2, 4), WHOLE: Stretch(3, 5)}
    data = {
        canvas: captioned.Captioned(
            random.integers(0, 256, (9, *2 * [canvas.size + captioned.MARGIN], 3), np.uint8),
            random.integers(0, 30, (9, captioned.CAPTIONS, 12)),
            random.integers(0, 3, (9, captioned.CAPTIONS)),
            random.random((9, 2)) < 0.7,
            ["star", "sand"],
        )
        for canvas in stretches
    }

    def tokenize(texts):
        return np.full((len(texts), 9), len(texts[0]))

    seen = [
        [train_clip._batch(step, stretches, data, tokenize, seed=1) for step in range(5)]
        for _ in range(2)
    ]
    for first, again in zip(*seen, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert first.pictures.dtype == np.float32 and 0 <= first.pictures.min()
        assert 0.9 < first.pictures.max() <= 1
    sizes = [batch.pictures.shape[:2] for batch in seen[0]]
    assert sizes == [(4, 56), (4, 56), (5, 112), (5, 112), (5, 112)]
    assert not np.array_equal(seen[0][0].pictures, seen[0][1].pictures)
    shown = teacher.init({"text": None, "logit_scale": None}, jax.random.key(0))
    pictures, hints = train_clip._hints(3, 2, 1, data[WHOLE].images, shown)
    assert pictures.shape == (2, 112, 112, 3) and hints.shape == (2, 14, 14, 128)
    again = train_clip._hints(3, 2, 1, data[WHOLE].images, shown)
    np.testing.assert_array_equal(pictures, again[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of few steps of a tiny network: its folder and its card."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_clip, "_SCENES", {WHOLE: 8})
        patch.setattr(train_clip, "_TEACHER", {WHOLE: Stretch(2, 4)})
        patch.setattr(train_clip, "_HINTS", Stretch(2, 4))
        patch.setattr(train_clip, "_LAST", Stretch(3, 4))
        patch.setattr(train_clip, "_HELD_OUT", 16)
        patch.setattr(train_clip, "_MEASURED", {"validation": 16})
        patch.setattr(train_clip, "_PROMPT", 40)
        patch.setattr(retrieval, "IMAGENET_TEMPLATES", ("a photo of a {}.",))
        patch.setattr(contrastive, "config", config)
        # Half of the time was compiling the real one, which has a test of its own.
        patch.setattr(contrastive, "optimizer", lambda schedule: optax.sgd(schedule))
        card = train_clip.train(folder, seed=1, share=1.0, every=2)
    return folder, card


def test_a_run_leaves_checkpoints_their_logs_and_their_cards(trained):
    from transformers import CLIPModel, CLIPTokenizer

    folder, printed = trained
    for name in ("clip", "clip_dense"):
        card = (folder / name / "README.md").read_text()
        assert "--seed=1`" in card and "apache-2.0" in card and card in printed
        assert ("SigLIP" in card) == (name == "clip_dense")
        assert {path.stem for path in (folder / name).glob("*.jsonl")} == {"teacher", "hints", name}
        lines = (folder / name / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [2, 3]
        assert all(0 <= row["map_stuff"] <= 1 and row["loss"] > 0 for row in rows)
        model = CLIPModel.from_pretrained(folder / name)
        tokenizer = CLIPTokenizer.from_pretrained(folder / name)
        assert model.config.vision_config.hidden_size == 32
        assert len(tokenizer("a star").input_ids) == 4


@pytest.mark.parametrize(("seed", "share"), [(2, 1.0), (1, 0.5)])
def test_a_run_of_other_flags_is_refused(trained, seed, share):
    """train_clip --output_dir=DIR --seed=1, then --seed=2 or --share=0.5 into the same folder."""
    with pytest.raises(ValueError, match="holds a run of --seed=1, not of --seed="):
        train_clip.train(trained[0], seed=seed, share=share, every=2)
