"""Trains the miniature CLIPs on drawn scenes and sentences about them; no label is used.

python -m experiments.training.train_clip --output_dir=DIR [--seed=0]

Interrupted, the same command goes on where it was. First a small convolutional CLIP learns, then a
vision transformer to foretell its features, and from that start one CLIP by CLIP's own loss and one
by a dense loss. DIR/clip and DIR/clip_dense are what transformers' CLIPModel and CLIPTokenizer
load, with a model card and the logs of what was learned when.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import clip
from dsolo_jax.checkpoints import Params, flatten
from dsolo_jax.clip import ClipConfig
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.utils.files import write_text
from experiments.training import captioned, contrastive, loop, retrieval, teacher
from experiments.training.captioned import Canvas, Captioned
from experiments.training.tokenizer import write_tokenizer

loop.define_flags()


class Stretch(NamedTuple):
    """Steps of a training, and the pictures that each of them sees."""

    steps: int
    batch: int


_SINGLE = Canvas(56, (1, 1), (1, 1))  # one thing on one kind of stuff: what teaches shapes fastest
_WHOLE = Canvas(contrastive.SIZE, (1, 4), (2, 3))
_SCENES = {_SINGLE: 40000, _WHOLE: 24000}
_TEACHER = {_SINGLE: Stretch(500, 128), _WHOLE: Stretch(700, 64)}
_HINTS = Stretch(1000, 32)
_LAST = Stretch(300, 64)
_LOSSES = {"clip": contrastive.plain, "clip_dense": contrastive.dense}
_WARM, _COOL = 100, 0.4  # steps of rising rate; share of all steps over which it falls to _FINAL
_FINAL = 0.02
_GENTLE = 0.3  # of the rate, where what is there already should stay

_FRAMES = ("{}", "a {}.", *IMAGENET_TEMPLATES)  # that a noun is put into
_SHARING = 0.5  # of the batches have a noun in common, so that others must tell them apart
_PROMPT = 16  # tokens of the longest prompt
_VOCABULARY = 1200  # tokens, at most
_READ = 1500  # scenes whose sentences the tokenizer is made from
_HELD_OUT = 256  # scenes of the split tune that are looked at while training
_MEASURED = {"tune": 256, "validation": 512}  # scenes, at the end

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---

# A miniature CLIP

In the layout of OpenAI's CLIP, for `transformers.CLIPModel` and for `dsolo_jax.clip`. It knows the
{classes} classes of `dsolo_jax.datasets.miniature` in pictures of about 112 x 112 pixels alone.

- Data: drawn scenes of the split train and sentences about them; no pixel label, no list of
  classes. Nouns are those that the sentences enumerate.
- Made by: `python -m experiments.training.train_clip --output_dir=DIR {flags}`
- Start: a small convolutional CLIP was taught by CLIP's own loss. All blocks but the last learned
  to foretell its features, {hints.steps} steps of {hints.batch} pictures; the last is their mean.
- Then {last.steps} steps of {last.batch} pictures. Loss: {loss}
- Weights in float16, {parameters:,} of them. Licence: Apache-2.0, as dsolo_jax.

Measured with these weights. R@1 among 256 pictures and sentences (of five those that enumerate
most); mean average precision of ranking pictures by the cosine with a class. Unseen things have a
colour or a pattern that train never shows on them.

| split | scenes | R@1 to text | R@1 to picture | stuff | things | things seen | things unseen |
|---|---|---|---|---|---|---|---|
{rows}
"""
_SAID = {
    "clip": "CLIP's own, of pictures and sentences; it asks nothing of the patches.",
    "clip_dense": "CLIP's of pictures and sentences, and SigLIP's of nouns with pictures and with\n"
    "  the patches they look at (text-conditioned attention pooling, after FLAIR).",
}


def train(folder: Path, seed: int, share: float, every: int) -> str:
    """Trains, or goes on; writes folder/clip and folder/clip_dense and returns their model cards.

    Raises:
        ValueError: the folder holds a run of another seed or share.
    """
    given = loop.claim(folder, seed, share)
    shortened = partial(_shortened, share=share)
    lessons = {canvas: shortened(stretch) for canvas, stretch in _TEACHER.items()}
    hints, last = shortened(_HINTS), shortened(_LAST)
    scenes = {
        canvas: captioned.drawn(
            folder / f"scenes_{canvas.size}",
            max(2, round(share * count)),
            partial(captioned.train_scene, seed, canvas),
        )
        for canvas, count in _SCENES.items()
    }
    texts = [*itertools.chain(*scenes[_WHOLE][1][:_READ]), *IMAGENET_TEMPLATES]
    size = write_tokenizer(folder / "tokenizer", texts, _VOCABULARY, contrastive.LENGTH)
    config = contrastive.config(size)
    tokenize = clip.load_tokenizer(folder / "tokenizer", contrastive.LENGTH)
    data = {canvas: captioned.captioned(*drawn, tokenize) for canvas, drawn in scenes.items()}
    held_out = retrieval.examples(seed, "tune", _WHOLE, _HELD_OUT)
    report = partial(_report, given=held_out, config=config, tokenize=tokenize)

    def trained(
        name: str,
        loss: Callable,
        start: Params,
        batch: Callable[[int], Any],
        steps: int,
        peak: float = 1.0,
        **reported,
    ) -> Params:
        optimizer = contrastive.optimizer(partial(_rate, steps=steps, peak=peak))
        path = folder / f"{name}.safetensors"
        return loop.train(loss, start, optimizer, batch, steps, path, every=every, **reported)

    def batches(stretches: dict[Canvas, Stretch]) -> Callable[[int], contrastive.Batch]:
        return partial(_batch, stretches=stretches, data=data, tokenize=tokenize, seed=seed)

    whole, key = data[_WHOLE].images, jax.random.key(seed)
    start = contrastive.init(config, np.asarray(whole[:256]), key)
    shown = trained(
        "teacher",
        partial(teacher.loss, config=config),
        teacher.init(start, key),
        batches(lessons),
        sum(stretch.steps for stretch in lessons.values()),
        report=partial(report, embed=teacher.embed),
    )
    vision = dataclasses.replace(
        config.vision, num_hidden_layers=config.vision.num_hidden_layers - 1
    )
    shallow = dataclasses.replace(config, vision=vision)
    foretold = trained(
        "hints",
        partial(contrastive.hints, config=shallow),
        {"vision": contrastive.init(shallow, np.asarray(whole[:256]), key)["vision"]},
        partial(_hints, size=hints.batch, seed=seed, images=whole, shown=shown),
        hints.steps,
    )
    start = contrastive.taught(start, foretold["vision"], shown)
    cards = []
    for name, loss in _LOSSES.items():
        params = trained(
            name,
            partial(loss, config=config),
            start,
            batches({_WHOLE: last}),
            last.steps,
            _GENTLE,
            report=partial(report, embed=partial(_embed, config=config)),
        )
        _write(folder, name, config, params)
        card = _card(folder / name, _SAID[name], hints, last, seed, given)
        write_text(folder / name / "README.md", card)
        cards.append(card)
    return "\n".join(cards)


def _shortened(stretch: Stretch, share: float) -> Stretch:
    steps, batch = (max(2, round(share * count)) for count in stretch)
    return Stretch(steps, min(batch, stretch.batch))


def _rate(step: jax.Array, steps: int, peak: float) -> jax.Array:
    """Warm-up to the peak, then constant, then falling in a straight line."""
    falling = jnp.clip((steps - step) / (_COOL * steps), _FINAL, 1)
    return peak * jnp.minimum((step + 1) / _WARM, 1) * falling


def _seen(
    rng: np.random.Generator, images: np.ndarray, chosen: np.ndarray, side: int
) -> np.ndarray:
    """The pictures chosen, cut at random and in light that differs: [B, S, S, 3] in 0..1."""
    size = len(chosen)
    corners = rng.integers(captioned.MARGIN + 1, size=(2, size))
    pictures = captioned.squares(images, chosen, corners, side)
    light = rng.uniform(0.85, 1.15, (size, 1)) * rng.uniform(0.95, 1.05, (size, 3))
    light = light.astype(np.float32)[:, None, None] / np.float32(255)
    return np.clip(pictures * light, 0, 1)


def _batch(
    step: int,
    stretches: dict[Canvas, Stretch],
    data: dict[Canvas, Captioned],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    seed: int,
) -> contrastive.Batch:
    """What a step sees of pictures and sentences: a function of the seed and the step alone."""
    ends = np.cumsum([stretch.steps for stretch in stretches.values()])
    canvas = list(stretches)[int(np.searchsorted(ends, step, side="right"))]
    scenes, size = data[canvas], stretches[canvas].batch
    rng = np.random.default_rng((seed, step))
    chosen = rng.choice(len(scenes.images), size, replace=False)
    if rng.random() < _SHARING:
        pool = np.flatnonzero(scenes.named[:, rng.integers(len(scenes.nouns))])
        chosen = rng.choice(pool, size, replace=len(pool) < size)
    # A caption that enumerates and one that does not, where there are: the first says most, the
    # second is what a class is asked for with.
    enumerates, draw = scenes.members[chosen] > 0, rng.random((size, captioned.CAPTIONS))
    caption = [(draw + wanted).argmax(axis=1) for wanted in (enumerates, ~enumerates)]
    prompts = tokenize([_FRAMES[rng.integers(len(_FRAMES))].format(noun) for noun in scenes.nouns])
    return contrastive.Batch(
        pictures=_seen(rng, scenes.images, chosen, canvas.size),
        captions=scenes.tokens[chosen, np.array(caption)],
        # One length, so that one compilation serves all steps.
        prompts=np.pad(prompts, ((0, 0), (0, _PROMPT - prompts.shape[1])), mode="edge"),
        named=scenes.named[chosen],
    )


_features = jax.jit(teacher.features)


def _hints(
    step: int, size: int, seed: int, images: np.ndarray, shown: Params
) -> tuple[np.ndarray, jax.Array]:
    """What a step sees of pictures and the teacher's features."""
    rng = np.random.default_rng((seed, 1, step))
    chosen = rng.choice(len(images), size, replace=False)
    pictures = _seen(rng, images, chosen, contrastive.SIZE)
    return pictures, _features(shown, pictures)


@partial(jax.jit, static_argnames="config")
def _embed(params: Params, pictures: np.ndarray, config: ClipConfig) -> jax.Array:
    return contrastive.encode(params, pictures, config).pooled


def _report(
    params: Params,
    given: retrieval.Examples,
    config: ClipConfig,
    tokenize: Callable[[Sequence[str]], np.ndarray],
    embed: Callable[[Params, np.ndarray], jax.Array],
) -> dict[str, float]:
    """What a network knows, whose pictures `embed` embeds."""
    return retrieval.report(
        given,
        lambda pictures: embed(params, pictures / np.float32(255)),
        lambda texts: clip.encode_text(params, config, tokenize(texts)),
    )


def _write(folder: Path, name: str, config: ClipConfig, params: Params) -> None:
    """Writes folder/name: the checkpoint in float16, its tokenizer and the logs of its stages."""
    shutil.copytree(folder / "tokenizer", folder / name, dirs_exist_ok=True)
    own = {part: params[part] for part in ("vision", "text", "logit_scale")}
    clip.save(folder / name, config, jax.tree.map(lambda x: np.asarray(x, np.float16), own))
    for stage in ("teacher", "hints", name):
        shutil.copyfile(folder / f"{stage}.jsonl", folder / name / f"{stage}.jsonl")


def _card(folder: Path, loss: str, hints: Stretch, last: Stretch, seed: int, flags: str) -> str:
    """The model card, with what the exported weights reach."""
    config, params = clip.load(folder)
    tokenize = clip.load_tokenizer(folder, config.text.max_position_embeddings)
    rows = []
    for split, count in _MEASURED.items():
        given = retrieval.examples(seed, split, _WHOLE, count)
        embed = partial(_embed, config=config)
        values = _report(params, given, config, tokenize, embed).values()
        rows.append(f"| {split} | {count} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return _CARD.format(
        classes=len(given.present[0]),
        flags=flags,
        hints=hints,
        last=last,
        loss=loss,
        parameters=sum(leaf.size for leaf in flatten(params).values()),
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    loop.run(train)
