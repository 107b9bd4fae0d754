"""Flags that several commands share, how a command is run, and what its --help says."""

import dataclasses
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from absl import app, flags, logging

import dsolo_jax as dsolo
from dsolo_jax import attention, datasets, peers
from dsolo_jax.datasets import miniature
from dsolo_jax.datasets.protocols import BACKGROUND_RULES, VOCABULARIES, Protocol
from dsolo_jax.model import PRESETS
from dsolo_jax.readings import Readings, resolve
from dsolo_jax.solver.discrepancy import METHODS
from dsolo_jax.utils.faults import message
from dsolo_jax.utils.progress import show

FLAGS = flags.FLAGS

ALL = "all"  # as --dataset: every benchmark that is prepared

_PRESET = "dslo_b16"

# Flags of a kind, for --help and for records of a run; the others are the command's own.
_DATASET, _MODEL = "The dataset", "The model"
_PROTOCOL = "How it is run (each benchmark has its own)"
_GROUPS: dict[str, list[str]] = {}

# Flags that act on some datasets alone: on a folder, the miniature world, a benchmark.
_ALONE = {
    "a folder": ("images", "labels", "classes", "ignore", "label_offset"),
    "the miniature": ("world_seed",),
    "a benchmark": ("data_dir", "vocabulary", "background_words", "reduce_zero_label"),
}


def run(main: Callable[[], None], required: Sequence[str] = ()) -> None:
    """Runs a command; an error of the user's making is one message, not a traceback.

    With --verbosity=1 or more it has its traceback too, as a fault of ours always has.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {argv[1:]}; flags are written --name=value")
        if not FLAGS["verbosity"].present:  # absl's own choice lets JAX and TFDS talk
            logging.set_verbosity(logging.WARNING)
        show()
        try:
            main()
        except Exception as error:
            if (said := message(error)) is None:
                raise
            if FLAGS.verbosity > 0:
                traceback.print_exc()
            sys.exit(f"error: {said}")

    if any(argument in ("-h", "-help", "--help") for argument in sys.argv[1:]):
        print(_help())
        return
    flags.mark_flags_as_required(required)
    app.run(guarded)


def refuse(why: str, *names: str) -> None:
    """Refuses flags that were given and would do nothing.

    Raises:
        ValueError: naming them.
    """
    if given := [f"--{name}" for name in names if FLAGS[name].present]:
        raise ValueError(f"{', '.join(given)} would do nothing {why}; leave it out")


def _help() -> str:
    """The command's docstring, and all of its flags, those of a kind together."""
    shared = {name for names in _GROUPS.values() for name in names}
    defined = FLAGS.flags_by_module_dict().get(sys.argv[0], [])
    own = [flag.name for flag in defined if flag.name not in shared]
    lines = [sys.modules["__main__"].__doc__ or ""]
    for title, names in {"This command": own, **_GROUPS}.items():
        lines.append(f"{title}:")
        for name in names:
            default = FLAGS[name].default_as_str
            lines.append(f"  --{name}{f' (default {default})' if default else ''}")
            lines.append(f"      {FLAGS[name].help}")
    return "\n".join(lines)


def define_run(output_dir: str, batch_size: int | None) -> tuple[flags.FlagHolder, ...]:
    """Defines --limit, --batch_size, --output_dir and --overwrite, with these defaults; the batch
    size is the command's to choose where it is None."""
    usual = "" if batch_size else "; by default 1 on CPU, on others what their memory has room for"
    defined = (
        flags.DEFINE_integer("limit", None, "Only the first pictures.", lower_bound=1),
        flags.DEFINE_integer(
            "batch_size", batch_size, f"Pictures a device takes at a time{usual}.", lower_bound=1
        ),
        flags.DEFINE_string("output_dir", None, f"Default: {output_dir}."),
        flags.DEFINE_bool("overwrite", False, "Start anew where there is a run already."),
    )
    _group("The run", *defined)
    return defined


def _group(title: str, *defined: flags.FlagHolder) -> None:
    _GROUPS[title] = [flag.name for flag in defined]


def _values(title: str) -> dict[str, Any]:
    return {name: FLAGS[name].value for name in _GROUPS[title]}


# ------------------------------------------------------------------------------- the dataset


def define_dataset(default: str) -> None:
    """Defines the flags that choose a dataset, and how it is run."""
    names = ", ".join((*datasets.NAMES, ALL, miniature.NAME, "folder"))
    text, integer, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    _group(
        _DATASET,
        text("dataset", default, f"One of: {names}."),
        text("data_dir", None, "Where experiments.prepare put it."),
        text("split", "validation", "Split of it."),
        text("images", None, "folder: the pictures."),
        text("labels", None, "folder: index PNGs of the same stems."),
        text("classes", None, "folder: file, a class a line, synonyms ', '."),
        integer("ignore", 255, "folder: stored value that does not count."),
        integer("label_offset", 0, "folder: added to stored values; below 0 they do not count."),
        integer("world_seed", 0, "miniature: another seed is another world.", lower_bound=0),
    )
    _group(
        _PROTOCOL,
        integer("short_side", None, "In CLIP, pixels; the preset's or benchmark's.", lower_bound=1),
        integer("long_side", None, "Cap, pixels; the benchmark's, or 2048.", lower_bound=1),
        choice("vocabulary", None, list(VOCABULARIES), "Words of the classes; naclip by default."),
        text("background_words", None, "Of class 0, separated by ', ', instead of the list's."),
        choice("background_rule", None, list(BACKGROUND_RULES), "What makes a pixel background."),
        flags.DEFINE_float("probability_threshold", None, "Below it a pixel is background."),
        flags.DEFINE_float("logit_scale", None, "Of the probabilities' softmax.", lower_bound=1e-3),
        flags.DEFINE_bool("reduce_zero_label", None, "Stored 0 does not count; others move down."),
        integer("crop", None, "Side of sliding windows, pixels; pictures are whole by default."),
        integer("stride", None, "From one window to the next, pixels; at most --crop."),
        flags.DEFINE_float(
            "area_threshold", None, "A class with at most this share of the foreground is none."
        ),
    )


def dataset_settings(name: str | None = None) -> dict[str, Any]:
    """Collects what decides the pictures and labels, from the flags; `name` instead of --dataset.

    What no flag says is the benchmark's own protocol, or of a peer's preset that peer's.

    Raises:
        ValueError: an unknown dataset, or changes of its protocol that do not fit it.
    """
    name = name or FLAGS.dataset
    given = {field: value for field, value in _values(_PROTOCOL).items() if value is not None}
    usual = {"short_side": PRESETS[preset()].short_side} | _published(name)
    if "background_rule" in given:  # the threshold went with the rule
        usual |= {"probability_threshold": None}
    protocol = datasets.protocol(name, **(usual | given))
    kind = {"folder": "a folder", miniature.NAME: "the miniature"}.get(name, "a benchmark")
    for other in _ALONE.keys() - {kind}:
        refuse(f"with --dataset={name}, it is for {other}", *_ALONE[other])
    if kind == "a folder":
        refuse("with --dataset=folder, which has no splits", "split")
    methods = [method()] if "method" in FLAGS else list(METHODS)
    official = datasets.protocol(name, **_published(name))
    if all(_probability(protocol, one) == _probability(official, one) for one in methods):
        names = "background_rule", "probability_threshold", "logit_scale"
        refuse(f"with --dataset={name}, where no threshold comes of it", *names)
    return _values(_DATASET) | {"dataset": name, "protocol": dataclasses.asdict(protocol)}


def _published(name: str) -> dict[str, Any]:
    """How the peer whose preset it is runs a benchmark; nothing of other presets and datasets."""
    peer = preset().rsplit("_", 1)[0]
    known = peer in peers.PEERS and name in datasets.NAMES
    return peers.published(peer, name) if known else {}


def _probability(protocol: Protocol, method: str) -> tuple[float, float] | None:
    """The threshold on probability and its scale, where there is one."""
    found = protocol.threshold(method)
    if found is None or found.probability is None:
        return None
    return found.probability, found.logit_scale


def load_dataset(settings: Mapping[str, Any]) -> datasets.Dataset:
    """Loads the dataset of `dataset_settings`, whether of flags or from a record of a run.

    Raises:
        FileNotFoundError, ValueError: an unknown one, one that is not there, or one whose other
            settings are missing.
    """
    name = settings.get("dataset")
    fields = {field.name for field in dataclasses.fields(Protocol) if field.init}
    # Of older versions' records some fields were not there yet, and did what their defaults do.
    recorded = {key: value for key, value in settings["protocol"].items() if key in fields}
    protocol = Protocol(**recorded)
    if name == miniature.NAME:
        return miniature.load(settings["split"], settings["world_seed"], protocol=protocol)
    needed = ("images", "labels", "classes") if name == "folder" else ("data_dir",)
    if missing := [f"--{flag}" for flag in needed if settings.get(flag) is None]:
        raise ValueError(f"--dataset={name} needs {', '.join(missing)} too")
    if name != "folder":
        return datasets.load(name, settings["data_dir"], settings["split"], protocol)
    of_folder = ("images", "labels", "classes", "ignore", "label_offset")
    return datasets.load_folder(**{key: settings[key] for key in of_folder}, protocol=protocol)


def chosen_datasets() -> list[str]:
    """Names the dataset of the flag; of "all" the benchmarks that are prepared.

    Raises:
        ValueError, FileNotFoundError: "all" without --data_dir, or with nothing in it.
    """
    if FLAGS.dataset != ALL:
        return [FLAGS.dataset]
    if FLAGS.data_dir is None:
        raise ValueError(f"--dataset={ALL} needs --data_dir too")
    if names := datasets.prepared_names(FLAGS.data_dir):
        return names
    raise FileNotFoundError(
        f"nothing is prepared in {FLAGS.data_dir}; prepare a benchmark first:\n"
        "    python -m experiments.prepare --dataset=NAME --source=DIR --data_dir=DIR"
    )


# ------------------------------------------------------------------------------- the model


def define_model() -> None:
    """Defines the flags that choose a model."""
    text, integer = flags.DEFINE_string, flags.DEFINE_integer
    of_readings = (f"{f.name}: {f.metadata['help']}" for f in dataclasses.fields(Readings))
    _group(
        _MODEL,
        flags.DEFINE_enum(
            "preset",
            None,
            list(PRESETS),
            f"Weights, readings, sizes; {_PRESET} by default, for miniature that of its name.",
        ),
        text(
            "clip",
            None,
            "Hub id, folder, 'miniature' or 'miniature_dense', instead of the preset's.",
        ),
        text(
            "attention",
            None,
            f"Source of the patch graph: {', '.join(attention.SOURCES)}, or a hub id or folder.",
        ),
        flags.DEFINE_list(
            "layers",
            None,
            "Layers of the source that are averaged; up.0,up.1 of Stable Diffusion, -1 of DINO, 0 "
            "of CLIP by default.",
        ),
        flags.DEFINE_list("layer_weights", None, "Of each; all alike by default."),
        integer(
            "attention_size",
            None,
            "Side of the square that the source sees, pixels; about 512 by default. 512, 768, 1024 "
            "give Stable Diffusion 4096, 9216, 16384 patches.",
            lower_bound=1,
        ),
        integer("timestep", 100, "Of Stable Diffusion's step.", lower_bound=0, upper_bound=999),
        integer("grid", None, "Side of the solver's grid; the source's by default.", lower_bound=1),
        flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the encoders."),
        text(
            "readings",
            None,
            "Instead of the preset's: 'robust', 'paper', or with changes 'robust,tau=0.3'. "
            f"{'; '.join(of_readings)}.",
        ),
    )


def preset() -> str:
    """Names the preset of the flag, or of the dataset."""
    return FLAGS.preset or ("miniature" if FLAGS.dataset == miniature.NAME else _PRESET)


def method() -> str:
    """Names the method of the flag, or of the preset."""
    return FLAGS.method or PRESETS[preset()].method


def model_settings() -> dict[str, Any]:
    """Collects what decides a model beside what `evaluation.made_with` says, for a record."""
    return {"preset": preset(), "timestep": FLAGS.timestep, "dtype": FLAGS.dtype}


def readings() -> Readings:
    """Gives the readings of the flag, or of the preset."""
    return resolve(FLAGS.readings or PRESETS[preset()].readings)


def load_model(protocol: Protocol, **changes: Any) -> dsolo.Model:
    """Loads the model of the flags; see `loading`."""
    return loading(protocol, **changes)()


def loading(protocol: Protocol, **changes: Any) -> Callable[[], dsolo.Model]:
    """Gives what loads the model of the flags, for pictures of the protocol's size; other processes
    can be sent it.

    Args:
        changes: arguments of `dsolo.load` that count instead of the flags.
    """
    try:
        weights = FLAGS.layer_weights and tuple(map(float, FLAGS.layer_weights))
    except ValueError:
        found = ",".join(FLAGS.layer_weights)
        raise ValueError(f"--layer_weights is {found}; wanted numbers, such as 1,2") from None
    arguments = {
        "clip": FLAGS.clip,
        "attention": FLAGS.attention,
        "dtype": FLAGS.dtype,
        "readings": readings(),
        "attention_layers": FLAGS.layers,
        "attention_weights": weights,
        "attention_size": FLAGS.attention_size,
        "timestep": FLAGS.timestep,
        "grid": FLAGS.grid,
        "short_side": protocol.short_side,
        "long_side": protocol.long_side,
        "crop": protocol.crop,
        "stride": protocol.stride,
    }
    return partial(dsolo.load, preset(), **(arguments | changes))
