"""Trains the miniature CLIP on drawn scenes and sentences about them; no label is used.

python -m experiments.training.train_clip --output_dir=DIR [--seed=0]

Interrupted, the same command goes on where it was. DIR/clip is what transformers' CLIPModel and
CLIPTokenizer load, with a model card and training.jsonl, which says what was learned when.
"""

import itertools
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsolo_jax import clip
from dsolo_jax.checkpoints import flatten
from dsolo_jax.templates import IMAGENET_TEMPLATES
from dsolo_jax.utils.files import write_text
from experiments.training import captioned, contrastive, loop, retrieval
from experiments.training.captioned import Canvas, Captioned
from experiments.training.tokenizer import write_tokenizer

loop.define_flags()


class Phase(NamedTuple):
    """A stretch of the training: what is drawn, how many such scenes, and how they are seen."""

    canvas: Canvas
    scenes: int
    steps: int
    batch: int


# From one thing on one kind of stuff to whole scenes, at one scale: looks are learned where there
# are few patches to look at.
_WHOLE = Canvas(contrastive.SIZE, (1, 4), (2, 3))
_PHASES = (
    Phase(Canvas(56, (1, 1), (1, 1)), scenes=40000, steps=350, batch=128),
    Phase(_WHOLE, scenes=24000, steps=450, batch=64),
)
_WARM, _COOL = 100, 0.4  # steps of rising rate; share of all steps over which it falls to _LAST
_LAST = 0.02

_FRAMES = ("{}", "a {}.", *IMAGENET_TEMPLATES)  # that a noun is put into
_SHARING = 0.5  # of the batches of whole scenes have a noun in common, so that others must tell
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
- Phases: {phases}.
- Loss: CLIP's of pictures and sentences, and SigLIP's of nouns with pictures and with the patches
  they look at (text-conditioned attention pooling, after FLAIR).
- Weights in float16, {parameters:,} of them. Licence: Apache-2.0, as dsolo_jax.

Measured with these weights. R@1 among 256 pictures and sentences (of five those that enumerate
most); mean average precision of ranking pictures by the cosine with a class. Unseen things have a
colour or a pattern that train never shows on them.

| split | scenes | R@1 to text | R@1 to picture | stuff | things | things seen | things unseen |
|---|---|---|---|---|---|---|---|
{rows}
"""


def train(folder: Path, seed: int, share: float, every: int) -> str:
    """Trains, or goes on; writes folder/clip and returns its model card.

    Raises:
        ValueError: the folder holds a run of another seed or share.
    """
    given = loop.claim(folder, seed, share)
    phases = [_shortened(phase, share) for phase in _PHASES]
    scenes = []
    for number, phase in enumerate(phases):
        draw = partial(captioned.train_scene, seed, phase.canvas)
        scenes.append(captioned.drawn(folder / f"phase_{number}", phase.scenes, draw))
    texts = [*itertools.chain(*scenes[-1][1][:_READ]), *IMAGENET_TEMPLATES]
    size = write_tokenizer(folder / "clip", texts, _VOCABULARY, contrastive.LENGTH)
    config = contrastive.config(size)
    tokenize = clip.load_tokenizer(folder / "clip", contrastive.LENGTH)
    data = [captioned.captioned(*drawn, tokenize) for drawn in scenes]
    steps = sum(phase.steps for phase in phases)
    held_out = retrieval.examples(seed, "tune", _WHOLE, _HELD_OUT)
    params = loop.train(
        partial(contrastive.loss, config=config),
        contrastive.init(config, np.asarray(data[0].images[:256]), jax.random.key(seed)),
        contrastive.optimizer(partial(_rate, steps=steps)),
        partial(_batch, phases=phases, data=data, tokenize=tokenize, seed=seed),
        steps,
        folder / "training.safetensors",
        every=every,
        report=lambda params: retrieval.report(params, config, held_out, tokenize),
    )
    own = {name: params[name] for name in ("vision", "text", "logit_scale")}
    clip.save(folder / "clip", config, jax.tree.map(lambda x: np.asarray(x, np.float16), own))
    shutil.copyfile(folder / "training.jsonl", folder / "clip" / "training.jsonl")
    card = _card(folder / "clip", phases, seed, given)
    write_text(folder / "clip" / "README.md", card)
    return card


def _shortened(phase: Phase, share: float) -> Phase:
    batch = min(phase.batch, max(2, round(share * phase.scenes)))
    scenes = max(batch, round(share * phase.scenes))
    return phase._replace(scenes=scenes, steps=max(1, round(share * phase.steps)), batch=batch)


def _rate(step: jax.Array, steps: int) -> jax.Array:
    """Warm-up, then constant, then falling in a straight line."""
    falling = jnp.clip((steps - step) / (_COOL * steps), _LAST, 1)
    return jnp.minimum((step + 1) / _WARM, 1) * falling


def _batch(
    step: int, phases: Sequence[Phase], data: Sequence[Captioned], tokenize, seed: int
) -> contrastive.Batch:
    """What a step sees: a function of the seed and the step alone."""
    number = int(np.searchsorted(np.cumsum([p.steps for p in phases]), step, side="right"))
    phase, scenes = phases[number], data[number]
    rng, size = np.random.default_rng((seed, step)), phase.batch
    chosen = rng.choice(len(scenes.images), size, replace=False)
    if phase.canvas == _WHOLE and rng.random() < _SHARING:
        pool = np.flatnonzero(scenes.named[:, rng.integers(len(scenes.nouns))])
        chosen = rng.choice(pool, size, replace=len(pool) < size)
    side, corners = phase.canvas.size, rng.integers(captioned.MARGIN + 1, size=(2, size))
    pictures = captioned.squares(scenes.images, chosen, corners, side)
    light = rng.uniform(0.85, 1.15, (size, 1)) * rng.uniform(0.95, 1.05, (size, 3))
    light = light.astype(np.float32)[:, None, None] / np.float32(255)
    # One of the captions that enumerate something, where there is one.
    members = scenes.members[chosen]
    caption = (rng.random(members.shape) + (members > 0)).argmax(axis=1)
    prompts = tokenize([_FRAMES[rng.integers(len(_FRAMES))].format(noun) for noun in scenes.nouns])
    return contrastive.Batch(
        pictures=np.clip(pictures * light, 0, 1),
        corner=rng.integers((contrastive.SIZE - side) // contrastive.PATCH + 1, size=2),
        captions=scenes.tokens[chosen, caption],
        # One length, so that one compilation serves all steps of a phase.
        prompts=np.pad(prompts, ((0, 0), (0, _PROMPT - prompts.shape[1])), mode="edge"),
        named=scenes.named[chosen],
    )


def _card(folder: Path, phases: Sequence[Phase], seed: int, flags: str) -> str:
    """The model card, with what the exported weights reach."""
    config, params = clip.load(folder)
    tokenize = clip.load_tokenizer(folder, config.text.max_position_embeddings)
    rows = []
    for split, count in _MEASURED.items():
        given = retrieval.examples(seed, split, _WHOLE, count)
        values = retrieval.report(params, config, given, tokenize).values()
        rows.append(f"| {split} | {count} | {' | '.join(f'{value:.3f}' for value in values)} |")
    form = "{0.steps} steps of {0.batch} pictures of {0.canvas.size} pixels, of {0.scenes}"
    return _CARD.format(
        classes=len(given.present[0]),
        flags=flags,
        phases="; ".join(map(form.format, phases)),
        parameters=sum(leaf.size for leaf in flatten(params).values()),
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    loop.run(train)
