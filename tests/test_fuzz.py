"""Damaged files of every kind: each is refused by a message that names it, or changes no result.

python -m pytest tests/test_fuzz.py -m full_size -s    150 of them, and a table of what came of it
"""

import collections
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax import clip, datasets, images, vocabulary
from dsolo_jax.attention import dino, stable_diffusion
from dsolo_jax.datasets import folder, miniature, prepared
from dsolo_jax.utils.faults import is_message
from experiments import evaluation
from tests.datasets import originals
from tests.oracles import stable_diffusion as oracle

COUNT, IN_SUITE = 150, 30
CLASSES = ["grass", "sky, cloud", "cat"]


# ------------------------------------------------------------------------------- mutations

# Of any file: its bytes and a source of chance, to bytes.
BYTES = {
    "empty": lambda b, r: b"",
    "half": lambda b, r: b[: len(b) // 2],
    "last byte gone": lambda b, r: b[:-1],
    "first byte": lambda b, r: bytes([b[0] ^ 0x55]) + b[1:],
    "a web page": lambda b, r: b"<!doctype html><title>404</title>",
    "a pointer of Git LFS": lambda b, r: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    ),
    "zeros": lambda b, r: bytes(len(b)),
    "noise": lambda b, r: r.randbytes(len(b)),
}
# Of a text: lines are what tables and lists are made of.
TEXT = BYTES | {
    "a line gone": lambda b, r: _lines(b, r, lambda lines, i: lines[:i] + lines[i + 1 :]),
    "a line twice": lambda b, r: _lines(b, r, lambda lines, i: [*lines[:i], lines[i], *lines[i:]]),
    "a line cut": lambda b, r: _lines(
        b, r, lambda lines, i: [*lines[:i], lines[i][: len(lines[i]) // 2], *lines[i + 1 :]]
    ),
    "a digit": lambda b, r: _digit(b, r),
    "latin-1": lambda b, r: b.replace(b"\n", b"\xe9\n", 1),
}
# What a JSON file may hold in the place of a value.
VALUES = [None, -1, 0, 0.5, "x", "", [], [1], {}, True, float("inf"), float("nan"), 10**30]


def _lines(content, chance, change):
    lines = content.split(b"\n")
    return b"\n".join(change(lines, chance.randrange(len(lines))))


def _digit(content, chance):
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if not places:
        return content
    i = chance.choice(places)
    return content[:i] + bytes([ord("0") + (content[i] - ord("0") + 1) % 10]) + content[i + 1 :]


def _value(content, chance):
    """One value of a JSON file, at any depth, replaced."""
    whole = json.loads(content)
    places = []

    def visit(node):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                visit(value)

    visit(whole)
    node, key = chance.choice(places)
    node[key] = chance.choice(VALUES)
    return json.dumps(whole).encode()


JSON = BYTES | {
    "a list": lambda b, r: b"[" + b + b"]",
    "nested deeply": lambda b, r: b"[" * 100_000,
    "UTF-16": lambda b, r: b.decode().encode("utf-16"),
    **{f"a value, {i}": _value for i in range(8)},
}
MUTATIONS = {".json": JSON, ".csv": TEXT, ".txt": TEXT}


# ------------------------------------------------------------------------------- what is damaged


def _checkpoint(load):
    """All that decides what a network does: its sizes and its parameters."""

    def use(place):
        config, params = load(place)
        return config, jax.tree.map(np.asarray, params)

    return use


def _clip(place):
    config, params = _checkpoint(clip.load)(place)
    tokenizer = clip.load_tokenizer(place, config=config.text)
    return config, params, tokenizer(["a photo of a cat"])


def _picture(place):
    return images.read_image(place / "picture.png")


def _folder(place):
    found = folder.load_folder(place / "images", place / "labels", place / "classes.txt")
    # What a class is called is the user's own.
    return found.ids, len(found.classes), [found[i] for i in range(len(found))]


def _prepared(place):
    found = datasets.load("ade20k", place)
    return found.ids, [found[i] for i in range(len(found))]


@pytest.fixture(scope="session")
def subjects(tiny_clip, tmp_path_factory):
    """kind -> (a folder, what is made of it)."""
    made = {}

    def place(kind, use):
        made[kind] = tmp_path_factory.mktemp(kind), use
        return made[kind][0]

    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(place("picture", _picture) / "picture.png")
    at = place("labelled folder", _folder)
    for name in ("a", "b"):
        images.write_png(at / "images" / f"{name}.png", noise)
        images.write_png(at / "labels" / f"{name}.png", noise[..., 0] % 3)
    (at / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    shutil.copytree(tiny_clip, place("CLIP", _clip), dirs_exist_ok=True)
    tiny = oracle.build(oracle.KINDS["tiny"], tiny_clip, seed=0)
    oracle.save(tiny, place("Stable Diffusion", _checkpoint(stable_diffusion.load)))
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, image_size=28
    )
    transformers.Dinov2Model(config).save_pretrained(place("DINO", _checkpoint(dino.load)))
    original = tmp_path_factory.mktemp("original")
    originals.write(originals.LAYOUTS["ade20k"], original, [noise[..., i] % 150 for i in range(3)])
    benchmark = datasets.benchmark("ade20k")
    prepared.prepare(benchmark, original, place("prepared benchmark", _prepared))

    model, world = dsolo.load("miniature"), miniature.load()

    def resumed(at):
        config = {"method": "kl", "limit": 3, "save_predictions": False}
        results = evaluation.evaluate(model, world, at, config)
        return {name: value for name, value in results.items() if name != "seconds"}

    resumed(place("run", resumed))

    def embedded(at):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSOLO_CACHE", str(at))
            config, params = model.config, model.params["clip"]
            return vocabulary.embed(
                CLASSES, params, config.clip, config.tokenizer, config.text_weights
            )

    embedded(place("text cache", embedded))
    return made


def _has_content(path):
    return path.is_file() and path.stat().st_size > 0


def _plan(subjects):
    """(kind, file, mutation), as many of each kind as can be, the same every time."""
    chance = random.Random(0)
    of_kind = {}
    for kind, (place, _) in subjects.items():
        files = sorted(path.relative_to(place) for path in place.rglob("*") if _has_content(path))
        cases = [
            (kind, str(file), mutation)
            for file in files
            for mutation in MUTATIONS.get(file.suffix, BYTES)
        ]
        of_kind[kind] = chance.sample(cases, len(cases))
    turns = [
        case
        for turn in range(COUNT)
        for cases in of_kind.values()
        for case in cases[turn : turn + 1]
    ]
    return turns[:COUNT]


def _outcome(subjects, expected, case, scratch):
    kind, file, mutation = case
    place, use = subjects[kind]
    copy = Path(shutil.copytree(place, scratch / "copy"))
    path = copy / file
    mutate = MUTATIONS.get(path.suffix, BYTES)[mutation]
    path.write_bytes(mutate(path.read_bytes(), random.Random(repr(case))))
    try:
        found = use(copy)
    except Exception as error:
        if not is_message(error):
            return f"TRACEBACK {type(error).__name__}: {error}"
        # Files that make sense only together are named by their folder.
        named = path.name in str(error) or str(path.parent) in str(error)
        return "refused" if named else f"NOT NAMED: {error}"
    finally:
        shutil.rmtree(copy)
    return "the same result" if _same(found, expected[kind]) else "ANOTHER RESULT"


def _same(found, expected):
    a, b = (jax.tree.flatten(x) for x in (found, expected))
    return a[1] == b[1] and all(map(np.array_equal, a[0], b[0]))


def _check(subjects, cases, tmp_path):
    expected = {kind: use(place) for kind, (place, use) in subjects.items()}
    return {case: _outcome(subjects, expected, case, tmp_path) for case in cases}


def test_some_damaged_files_are_refused_by_name_or_change_nothing(subjects, tmp_path):
    outcomes = _check(subjects, _plan(subjects)[:IN_SUITE], tmp_path)
    assert set(outcomes.values()) == {"refused", "the same result"}, outcomes


@pytest.mark.full_size
def test_many_damaged_files_are_refused_by_name_or_change_nothing(subjects, tmp_path):
    outcomes = _check(subjects, _plan(subjects), tmp_path)
    table = collections.Counter((kind, outcome) for (kind, _, _), outcome in outcomes.items())
    print("\n| damaged | refused by name | the same result |\n|---|---|---|")
    for kind in subjects:
        print(f"| {kind} | {table[kind, 'refused']} | {table[kind, 'the same result']} |")
    wrong = {c: o for c, o in outcomes.items() if o not in ("refused", "the same result")}
    for case, outcome in wrong.items():
        print(*case, outcome, sep=" | ")
    assert not wrong
