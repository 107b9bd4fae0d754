"""Every flag of every command changes something or is refused: a row for each.

A row is what a command is called with and the flag that is added, which must change what the
command hands on to the library, or be refused by its name; or it names the test that shows it. A
flag without a row fails.
"""

import ast
import contextlib
import dataclasses
import functools
import runpy
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from absl import flags
from running import _forget_flags, call

import dsolo_jax as dsolo
from dsolo_jax import cli, datasets
from dsolo_jax.datasets import miniature, prepared
from dsolo_jax.utils import files
from experiments import ablation, comparison, evaluation, search
from experiments.benchmarks import memory, networks, peers, pipeline, questions, solver, upsample
from experiments.benchmarks.running import Case
from experiments.training import contrastive, diffusion, loop, retrieval, teacher
from tests.datasets import originals

TESTS = Path(__file__).parents[1]

# Drivers that other tests have imported are run anew.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


class Row(NamedTuple):
    """`added` changes what is done with `given`; or it is refused, by its name."""

    given: str
    added: str
    refused: bool = False


# {a}, {b}, {out}: folders of pictures, labels and a class file; {data}: of prepared benchmarks.
_WORLD = "--dataset=miniature"
_FOLDER = "--dataset=folder --images={a}/images --labels={a}/labels --classes={a}/classes.txt"
_VOC = "--dataset=voc21 --data_dir={data} --preset=miniature"
_ADE = "--dataset=ade20k --data_dir={data} --preset=miniature"

_DATASET = {
    "dataset": Row(_VOC, "--dataset=voc20"),
    "data_dir": Row(_VOC, "--data_dir={a}", refused=True),
    "split": Row(_WORLD, "--split=tune"),
    "images": Row(_FOLDER, "--images={b}/images"),
    "labels": Row(_FOLDER, "--labels={b}/labels"),
    "classes": Row(_FOLDER, "--classes={b}/classes.txt"),
    "ignore": Row(_FOLDER, "--ignore=1"),
    "label_offset": Row(_FOLDER, "--label_offset=-1"),
    "world_seed": Row(_WORLD, "--world_seed=3"),
    "short_side": Row(_WORLD, "--short_side=64"),
    "long_side": Row(_WORLD, "--long_side=64"),
    "vocabulary": Row(_VOC, "--vocabulary=plain"),
    "background_words": Row(_VOC, "--background_words=sky"),
    "background_rule": Row(_VOC, "--background_rule=threshold"),
    "probability_threshold": Row(_VOC, "--probability_threshold=0.5"),
    "logit_scale": Row(_VOC, "--logit_scale=7"),
    "reduce_zero_label": Row(_ADE, "--noreduce_zero_label"),
    "crop": Row(f"{_WORLD} --crop=64 --stride=32", "--crop=48"),
    "stride": Row(f"{_WORLD} --crop=64 --stride=32", "--stride=16"),
    "area_threshold": Row(_VOC, "--area_threshold=0.1"),
}
# On routes where they could do nothing.
_REFUSED = [
    *((_FOLDER, f) for f in ("--background_words=sky", "--vocabulary=plain", "--split=tune")),
    *((_FOLDER, f) for f in ("--reduce_zero_label", "--world_seed=3", "--data_dir={data}")),
    *((_WORLD, f) for f in ("--background_words=sky", "--vocabulary=plain", "--images={a}")),
    *((_WORLD, f) for f in ("--reduce_zero_label", "--ignore=3", "--label_offset=1")),
    *((_VOC, f) for f in ("--classes={a}/classes.txt", "--labels={a}", "--world_seed=3")),
    (_WORLD, "--logit_scale=7"),
]
_MODEL = {
    "preset": Row(_WORLD, "--preset=clip_b16"),
    "clip": Row(_WORLD, "--clip={a}"),
    "attention": Row(_WORLD, "--attention=clip"),
    "layers": Row(_WORLD, "--layers=colour"),
    "layer_weights": Row(_WORLD, "--layer_weights=1,2,3"),
    "attention_size": Row(_WORLD, "--attention_size=224"),
    "timestep": Row(f"{_WORLD} --attention=miniature", "--timestep=300"),
    "grid": Row(_WORLD, "--grid=7"),
    "dtype": Row(_WORLD, "--dtype=bfloat16"),
    "readings": Row(_WORLD, "--readings=paper"),
}
_RUN = {
    "limit": Row(_WORLD, "--limit=3"),
    "batch_size": Row(_WORLD, "--batch_size=3"),
    "output_dir": Row(_WORLD, "--output_dir={b}"),
    "overwrite": Row(_WORLD, "--overwrite"),
}
_TRAINING = {
    "output_dir": Row("", "--output_dir={b}"),
    "seed": Row("", "--seed=1"),
    "share": Row("", "--share=0.002"),
    "every": Row("", "--every=7"),
}
_PREPARE = "--dataset=ade20k --source={a} --data_dir={out}"
_SEARCH = f"{_WORLD} --search=4"
_SEGMENT = "{a}/images/one.png --classes=sky;sand --output={out}/one.png --preset=miniature"

TABLE: dict[str, dict[str, Row | str]] = {
    "benchmark": {
        "stage": Row("", "--stage=text"),
        "output": Row("", "--output={out}/benchmark.json"),
        "filter": Row("", "--filter=solver"),
        "batches": Row("", "--batches=2"),
        "classes": Row("", "--classes=3"),
        "sizes": Row("", "--sizes=64"),
        "largest": Row("", "--largest"),
        "seconds": Row("", "--seconds=0"),
        "trace_dir": "experiments/test_benchmark.py::test_a_row_is_timed_traced_and_written",
        "baseline": "experiments/test_benchmark.py::test_a_slower_row_is_an_exit_code",
        "slower": "experiments/test_benchmark.py::test_a_slower_row_is_an_exit_code",
    },
    "training.train_clip": _TRAINING,
    "training.train_diffusion": _TRAINING,
    "prepare": {
        "dataset": Row(_PREPARE, "--dataset=voc21"),
        "source": Row(_PREPARE, "--source={b}"),
        "data_dir": Row(_PREPARE, "--data_dir={b}"),
        "labels": Row(_PREPARE, "--labels=X"),
        "overwrite": Row(_PREPARE, "--overwrite"),
        "world_seed": Row("--dataset=miniature --data_dir={out}", "--world_seed=3"),
    },
    "report": dict.fromkeys(
        ("results", "output_dir", "worst", "ids"),
        "experiments/test_report.py::test_report_writes_tables_charts_and_panels",
    ),
    "eval": _DATASET
    | _MODEL
    | _RUN
    | {
        "method": Row(_WORLD, "--method=kl"),
        "save_predictions": Row(f"{_WORLD} --panel=0", "--save_predictions"),
        # What is below a threshold of the official protocol is asked of the method "logits" alone.
        "probability_threshold": Row(f"{_VOC} --method=logits", "--probability_threshold=0.5"),
        "logit_scale": Row(f"{_VOC} --method=logits", "--logit_scale=7"),
        "panel": "experiments/test_eval.py::test_the_panel_is_of_the_saved_predictions",
        "profile": Row(_WORLD, "--profile"),
        "num_processes": Row(_WORLD, "--num_processes=2", refused=True),
        "coordinator": Row(_WORLD, "--coordinator=127.0.0.1:1", refused=True),
        "process_id": Row(_WORLD, "--process_id=1", refused=True),
        "wait_seconds": Row(_WORLD, "--wait_seconds=1", refused=True),
    },
    "ablate": _DATASET
    | _MODEL
    | _RUN
    | {
        "tables": Row(_WORLD, "--tables=tau"),
        "variants": Row(_WORLD, "--variants=robust;paper"),
        "sources": Row(f"{_WORLD} --tables=source", "--sources=clip"),
        "search": Row(_WORLD, "--search=4"),
        "methods": Row(_SEARCH, "--methods=path"),
        "tune_split": Row(_SEARCH, "--tune_split=train"),
        "tune_images": Row(
            f"{_FOLDER} --search=4 --tune_images={{b}}/images --tune_labels={{b}}/labels",
            "--tune_images={c}/images",
        ),
        "tune_labels": Row(
            f"{_FOLDER} --search=4 --tune_images={{b}}/images --tune_labels={{b}}/labels",
            "--tune_labels={c}/labels",
        ),
    },
    "compare": _DATASET
    | _MODEL
    | _RUN
    | {
        "compared": Row(_WORLD, "--compared=naclip"),
        "protocols": Row(_WORLD, "--protocols=published"),
        "own_sources": Row(f"{_WORLD} --compared=lposs", "--own_sources=lposs=miniature"),
    },
    "segment": {
        "classes": Row(_SEGMENT, "--classes=sky"),
        "output": Row(_SEGMENT, "--output={b}/other.png"),
        "background": Row(_SEGMENT, "--background"),
        "preset": Row(_SEGMENT, "--preset=dslo_b16"),
        "clip": Row(_SEGMENT, "--clip={a}"),
        "attention": Row(_SEGMENT, "--attention=clip"),
        "method": Row(_SEGMENT, "--method=kl"),
        "dtype": Row(_SEGMENT, "--dtype=bf16"),
        "readings": Row(_SEGMENT, "--readings=paper"),
        "list": "commands/test_segment.py::test_patterns_and_lists",
        "recursive": "commands/test_segment.py::test_results_below_have_the_folders_below",
        "save": Row(_SEGMENT, "--save=mask"),
        "tile": Row(_SEGMENT, "--tile=64"),
        "every": "commands/test_videos.py::test_a_video_of_ten_seconds",
        "smooth": "commands/test_videos.py::test_a_video_of_ten_seconds",
        "overwrite": "test_cli.py::test_only_what_is_missing_is_made_unless_all_of_it_is_wanted",
        "verbose": "test_cli.py::test_a_single_broken_picture_is_an_error_and_leaves_nothing",
    },
}


# ---------------------------------------------------------------------------------- the table


def flags_of(command):
    if command == "segment":
        [commands] = [a for a in cli._parser()._actions if a.choices]
        actions = commands.choices["segment"]._actions
        return {o[2:] for a in actions for o in a.option_strings if o.startswith("--")} - {"help"}
    _forget_flags()
    before = set(flags.FLAGS)
    runpy.run_module(f"experiments.{command}", run_name=f"experiments.{command}")
    found = set(flags.FLAGS) - before
    for flag in found:
        delattr(flags.FLAGS, flag)
    return found


@pytest.mark.parametrize("command", TABLE)
def test_every_flag_has_a_row(command):
    assert flags_of(command) == set(TABLE[command])


def test_tests_that_rows_name_are_there_and_use_the_flag():
    named = [(f, row) for rows in TABLE.values() for f, row in rows.items() if isinstance(row, str)]
    for flag, row in named:
        file, name = row.split("::")
        source = (TESTS / file).read_text(encoding="utf-8")
        [test] = [n for n in ast.parse(source).body if getattr(n, "name", None) == name]
        assert f"--{flag}" in ast.get_source_segment(source, test), (flag, row)


# ---------------------------------------------------------------------------------- the rows


class Seen(Exception):  # noqa: N818
    """What a command was about to do."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of labelled pictures, and two prepared benchmarks."""
    found = {}
    for number, (name, classes) in enumerate({"a": "x y z", "b": "x y w", "c": "x y z"}.items()):
        found[name] = folder = tmp_path_factory.mktemp(name)
        random = np.random.default_rng(number)
        for stem in ("one", "two"):
            pixels, labels = random.integers(0, 256, (9, 8, 3)), random.integers(0, 3, (9, 8))
            dsolo.images.write_png(folder / "images" / f"{stem}.png", pixels.astype(np.uint8))
            dsolo.images.write_png(folder / "labels" / f"{stem}.png", labels.astype(np.uint8))
        (folder / "classes.txt").write_text("\n".join(classes.split()))
    found["data"], found["out"] = map(tmp_path_factory.mktemp, ("data", "out"))
    for layout, name in (("voc21 itself", "voc21"), ("ade20k", "ade20k")):
        root = tmp_path_factory.mktemp(name)
        maps = [np.arange(12).reshape(3, 4) % 5 for _ in range(2)]
        originals.write(originals.LAYOUTS[layout], root, maps)
        source = root / originals.LAYOUTS[layout].at
        prepared.prepare(datasets.benchmark(name), source, found["data"])
    return found


@pytest.fixture(scope="module")
def model():
    return dsolo.load("miniature")


def of_dataset(dataset, method="logits"):
    """What of a dataset decides a result."""
    try:
        example = dataset[0]
    except ValueError as error:  # a stored value that is no class
        example = {"image": str(error), "labels": None}
    size = dataset.protocol.short_side, dataset.protocol.long_side
    shown = example["image"], example["labels"], dataset.protocol.threshold(method)
    return repr((dataset.classes, dataset.ids, size, *map(np.array_repr, map(np.array, shown))))


@contextlib.contextmanager
def watched(model, seen):
    """Commands stop where the work would begin, and leave in `seen` what it would have been."""

    def load(preset="dslo_b16", clip=None, attention=None, dtype=None, **options):
        seen.append(f"{preset} {clip} {attention} {dtype} {options}")
        kind = "stable_diffusion" if attention == "miniature" else "appearance"
        source = dataclasses.replace(model.config.source, kind=kind)
        return dataclasses.replace(model, config=dataclasses.replace(model.config, source=source))

    def stop(*arguments, **options):
        seen.append(f"{arguments} {options}")
        raise Seen

    def evaluate(model, dataset, output_dir, config, **options):
        options["watch"] = "watch" in options
        acting = [config[name] for name in ("method", "limit", "save_predictions")]
        stop(of_dataset(dataset, config["method"]), acting, output_dir, **options)

    def measure(load, dataset, wanted, output_dir, config, **options):
        stop(of_dataset(dataset), wanted, output_dir, **options)

    def study(load, tune, dataset, measure_tune, measure, output_dir, **options):
        given = {k: v for k, v in measure.keywords.items() if k != "config"}
        both = (of_dataset(one) for one in (tune, dataset))
        stop(*both, given, output_dir, **options)

    def train(loss, params, optimizer, batch, steps, path, *, every, report):
        stop(np.asarray(batch(0)[0]).sum(), steps, path, every)

    def cost(load, open_, setting):
        seen.append(f"{load} {setting}")
        return comparison.Cost(1.0, 1.0)

    def segment(model, picture, words, method, tile):
        seen.append(f"{words} {method} {tile}")
        pixels = dsolo.images.read_image(picture)
        labels = np.zeros(pixels.shape[:2], np.int32)
        return dsolo.Result(labels, None, words.classes, pixels)

    parts = solver, upsample, peers, pipeline, memory, questions
    stages = tuple((part, "run") for part in parts)
    stages += tuple((networks, name) for name in ("pictures", "texts", "graphs"))
    with contextlib.ExitStack() as stack:
        for place, name, stub in (
            (dsolo, "load", load),
            (dsolo, "segment", segment),
            (dsolo.images, "write_png", stop),
            (files, "write_json", lambda path, content: seen.append(f"{path}")),
            (evaluation, "evaluate", evaluate),
            (ablation, "measure", measure),
            (comparison, "cost", cost),
            (search, "study", study),
            (loop, "train", train),
            (retrieval, "examples", lambda *given: None),
            (contrastive, "init", lambda *given: None),
            (teacher, "init", lambda *given: None),
            (diffusion, "init_autoencoder", lambda *given: None),
            (prepared, "prepare", stop),
            (miniature, "prepare", stop),
            *(
                (
                    *stage,
                    lambda sweep=None, late=None, name=stage[0].__name__: [
                        Case(name, f"{sweep}", measure=lambda: {"seconds": 1.0})
                    ],
                )
                for stage in stages
            ),
        ):
            stack.enter_context(mock.patch.object(place, name, stub))
        yield


def done(command, arguments, model, folder):
    """What the command does with these arguments, and what it says of an error.

    The folder is an empty one for a training run, and not part of what is done.
    """
    seen, said, error = [], "", ""
    if command.startswith("training"):
        arguments = [f"--output_dir={folder}", "--share=0.001", *arguments]
    with watched(model, seen), contextlib.suppress(Seen):
        if command == "segment":
            said = str(cli.main(["segment", *arguments]))
        else:
            ended = call(command, *arguments)
            said, error = ended.stdout, ended.stderr
    return [one.replace(str(folder), "FOLDER") for one in (*seen, said)], error


_ROWS = [
    pytest.param(command, flag, row, id=f"{command} {flag}")
    for command, rows in TABLE.items()
    for flag, row in rows.items()
    if isinstance(row, Row)
]


@pytest.fixture(scope="module")
def without(model, tmp_path_factory):
    """What commands do with what rows give them, each asked once."""

    @functools.cache
    def ask(command, given):
        seen, error = done(command, given.split(), model, tmp_path_factory.mktemp("run"))
        assert seen and "error" not in error
        return seen

    return ask


@pytest.mark.parametrize(("command", "flag", "row"), _ROWS)
def test_a_flag_changes_what_is_done_or_is_refused(
    command, flag, row, places, model, without, tmp_path
):
    given, added = row.given.format_map(places), row.added.format_map(places)
    before = without(command, given)
    after, error = done(command, [*given.split(), added], model, tmp_path)
    if row.refused:
        assert f"--{flag}" in error or str(places["a"]) in error
    else:
        assert after != before and "error" not in error


@pytest.mark.parametrize("command", ["eval", "ablate"])
@pytest.mark.parametrize(("given", "added"), _REFUSED)
def test_a_flag_that_would_do_nothing_is_refused(command, given, added, places, model, tmp_path):
    arguments = [*given.format_map(places).split(), added.format_map(places)]
    _, error = done(command, arguments, model, tmp_path)
    flag = added.split("=")[0]
    assert f"{flag} would do nothing" in error and "Traceback" not in error


def test_a_threshold_on_areas_has_no_logit_scale(places, model, tmp_path):
    given = [*_VOC.format_map(places).split(), "--area_threshold=0.1", "--logit_scale=7"]
    _, error = done("eval", given, model, tmp_path)
    assert "--logit_scale would do nothing" in error and "--area" not in error


@pytest.mark.parametrize("command", ["eval", "ablate"])
def test_a_timestep_of_a_source_without_steps_is_refused_as_it_is_loaded(command, tmp_path):
    flags = (*_WORLD.split(), "--attention=appearance", "--timestep=300")
    ended = call(command, *flags, f"--output_dir={tmp_path}/run")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ") and "timestep is 300 for appearance" in ended.stderr


def test_a_peers_preset_is_run_as_published_but_for_what_flags_say(places, model, tmp_path):
    given = ["--dataset=voc21", f"--data_dir={places['data']}", "--preset=sclip_b16"]
    of_peer, error = done("eval", given, model, tmp_path)
    assert not error
    assert "'crop': 224, 'stride': 112" in of_peer[0]
    assert "probability=0.1, logit_scale=65.0, area=0.1" in of_peer[1]
    own = ["--crop=112", "--stride=56", "--background_rule=words", "--area_threshold=0.2"]
    changed, error = done("eval", [*given, *own], model, tmp_path)
    assert not error
    assert "'crop': 112, 'stride': 56" in changed[0]
    assert "probability=None, logit_scale=65.0, area=0.2" in changed[1]
