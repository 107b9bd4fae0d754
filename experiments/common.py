"""Flags that several commands share, how a command is run, and what its --help says."""

import dataclasses
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from absl import app, flags, logging

import dsolo_jax as dsolo
from dsolo_jax import attention, datasets
from dsolo_jax.datasets import miniature
from dsolo_jax.datasets.protocols import BACKGROUND_RULES, VOCABULARIES, Protocol
from dsolo_jax.model import PRESETS
from dsolo_jax.readings import Readings, described, resolve
from dsolo_jax.solver.discrepancy import METHODS

FLAGS = flags.FLAGS

_PRESET = "dslo_b16"
_GROUPS: dict[str, list[str]] = {}  # flags of a kind, for --help; the others are the command's own

_PROTOCOL = ("short_side", "long_side", "vocabulary", "background_words", "background_rule",
             "probability_threshold", "logit_scale", "reduce_zero_label")  # fmt: skip
_DATASET = ("dataset", "data_dir", "split", "images", "labels", "classes", "ignore",
            "label_offset", "world_seed")  # fmt: skip
_MODEL = ("preset", "clip", "attention", "layers", "layer_weights", "attention_size", "timestep",
          "grid", "dtype")  # fmt: skip


def run(main: Callable[[], None], required: Sequence[str] = ()) -> None:
    """Runs a command; an error of the user's making is one message, not a traceback.

    With --verbosity=1 or more it has its traceback too.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {argv[1:]}; flags are written --name=value")
        if not FLAGS["verbosity"].present:  # absl's own choice lets JAX and TFDS talk
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (OSError, ValueError) as error:
            if FLAGS.verbosity > 0:
                traceback.print_exc()
            sys.exit(f"error: {error}")

    if any(argument in ("-h", "-help", "--help") for argument in sys.argv[1:]):
        print(_help())
        return
    flags.mark_flags_as_required(required)
    app.run(guarded)


def _help() -> str:
    """The command's docstring, and all of its flags, those of a kind together."""
    shared = {name for names in _GROUPS.values() for name in names}
    own = [flag.name for flag in FLAGS.flags_by_module_dict().get(sys.argv[0], [])]
    own = [name for name in own if name not in shared]
    lines = [sys.modules["__main__"].__doc__ or ""]
    for title, names in {"This command": own, **_GROUPS}.items():
        lines.append(f"{title}:")
        for name in names:
            default = FLAGS[name].default_as_str
            lines.append(f"  --{name}{f' (default {default})' if default else ''}")
            lines.append(f"      {FLAGS[name].help}")
    return "\n".join(lines)


def define_method() -> flags.FlagHolder[str]:
    """Defines --method."""
    _GROUPS["What scores"] = ["method"]
    return flags.DEFINE_enum("method", "velocity", list(METHODS), "What scores the classes.")


# ------------------------------------------------------------------------------- the dataset


def define_dataset(default: str) -> None:
    """Defines the flags that choose a dataset, and how it is run."""
    names = ", ".join((*datasets.NAMES, "all", miniature.NAME, "folder"))
    flags.DEFINE_string("dataset", default, f"One of: {names}.")
    flags.DEFINE_string("data_dir", None, "Where experiments.prepare put it.")
    flags.DEFINE_string("split", "validation", "Split of it.")
    flags.DEFINE_string("images", None, "folder: the pictures.")
    flags.DEFINE_string("labels", None, "folder: index PNGs of the same stems.")
    flags.DEFINE_string("classes", None, "folder: file, a class a line, synonyms ', '.")
    flags.DEFINE_integer("ignore", 255, "folder: stored value that does not count.")
    flags.DEFINE_integer(
        "label_offset", 0, "folder: added to stored values; below 0 they do not count."
    )
    flags.DEFINE_integer(
        "world_seed", 0, "miniature: another seed is another world.", lower_bound=0
    )
    flags.DEFINE_integer(
        "short_side", None, "In CLIP, pixels; the preset's or the benchmark's.", lower_bound=1
    )
    flags.DEFINE_integer("long_side", None, "Cap, pixels; the benchmark's, or 2048.", lower_bound=1)
    flags.DEFINE_enum(
        "vocabulary", None, list(VOCABULARIES), "Words of the classes; naclip by default."
    )
    flags.DEFINE_string(
        "background_words", None, "Of class 0, separated by ', ', instead of the list's."
    )
    flags.DEFINE_enum(
        "background_rule", None, list(BACKGROUND_RULES), "What makes a pixel background."
    )
    flags.DEFINE_float("probability_threshold", None, "Below it a pixel is background.")
    flags.DEFINE_float("logit_scale", None, "Of the probabilities' softmax.", lower_bound=1e-3)
    flags.DEFINE_bool("reduce_zero_label", None, "Stored 0 does not count; the others move down.")
    _GROUPS["The dataset"] = list(_DATASET)
    _GROUPS["How it is run (each benchmark has its own)"] = list(_PROTOCOL)


def dataset_settings(name: str | None = None) -> dict[str, Any]:
    """Collects what decides the pictures and labels, from the flags; `name` instead of --dataset.

    Raises:
        ValueError: an unknown dataset, or changes of its protocol that do not fit it.
    """
    name = name or FLAGS.dataset
    protocol = datasets.protocol(name, **_values(_PROTOCOL))
    return _values(_DATASET) | {"dataset": name, "protocol": dataclasses.asdict(protocol)}


def load_dataset(settings: Mapping[str, Any]) -> datasets.Dataset:
    """Loads the dataset of `dataset_settings`, whether of flags or from a record of a run.

    Raises:
        FileNotFoundError, ValueError: an unknown one, one that is not there, or one whose other
            settings are missing.
    """
    name = settings.get("dataset")
    protocol = datasets.protocol(name)
    if "protocol" in settings:
        fields = {field.name for field in dataclasses.fields(protocol) if field.init}
        protocol = Protocol(**{key: settings["protocol"][key] for key in fields})
    if name == miniature.NAME:
        return miniature.load(settings["split"], settings["world_seed"], protocol=protocol)
    if name != "folder":
        datasets.benchmark(name)  # an unknown name comes before a missing flag
        _require(settings, "data_dir")
        return datasets.load(name, settings["data_dir"], settings["split"], protocol)
    _require(settings, "images", "labels", "classes")
    return datasets.load_folder(
        settings["images"],
        settings["labels"],
        settings["classes"],
        ignore=settings["ignore"],
        label_offset=settings["label_offset"],
        protocol=protocol,
    )


def _require(settings: Mapping[str, Any], *names: str) -> None:
    missing = [f"--{name}" for name in names if settings.get(name) is None]
    if missing:
        raise ValueError(f"--dataset={settings['dataset']} needs {', '.join(missing)} too")


def _values(names: Sequence[str]) -> dict[str, Any]:
    return {name: FLAGS[name].value for name in names}


# ------------------------------------------------------------------------------- the model


def define_model(with_readings: bool = True) -> None:
    """Defines the flags that choose a model."""
    flags.DEFINE_enum(
        "preset",
        None,
        list(PRESETS),
        f"Weights, readings, sizes; {_PRESET} by default, for miniature that of its name.",
    )
    flags.DEFINE_string("clip", None, "Hub id, folder or 'miniature', instead of the preset's.")
    flags.DEFINE_string(
        "attention",
        None,
        f"Source of the patch graph: {', '.join(attention.SOURCES)}, or a hub id or folder of one.",
    )
    flags.DEFINE_list(
        "layers",
        None,
        "Layers of the source that are averaged; up.0,up.1 of Stable Diffusion, -1 of DINO, 0 of "
        "CLIP by default.",
    )
    flags.DEFINE_list("layer_weights", None, "Of each; all alike by default.")
    flags.DEFINE_integer(
        "attention_size",
        None,
        "Side of the square that the source sees, pixels; about 512 by default. 512, 768, 1024 "
        "give Stable Diffusion 4096, 9216, 16384 patches.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "timestep", 100, "Of Stable Diffusion's step.", lower_bound=0, upper_bound=999
    )
    flags.DEFINE_integer(
        "grid", None, "Side of the solver's grid; the source's own by default.", lower_bound=1
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the encoders.")
    names = list(_MODEL)
    if with_readings:
        fields = (f"{f.name}: {f.metadata['help']}" for f in dataclasses.fields(Readings))
        flags.DEFINE_string(
            "readings",
            None,
            "Instead of the preset's: 'robust', 'paper', or with changes 'robust,tau=0.3'. "
            + "; ".join(fields)
            + ".",
        )
        names.append("readings")
    _GROUPS["The model"] = names


def preset() -> str:
    """Names the preset of the flag, or of the dataset."""
    if FLAGS.preset:
        return FLAGS.preset
    return "miniature" if FLAGS.dataset == miniature.NAME else _PRESET


def model_settings() -> dict[str, Any]:
    """Collects the flags that choose a model, without readings, for a record of a run."""
    return _values(_MODEL) | {"preset": preset()}


def readings() -> Readings:
    """Gives the readings of the flag, or of the preset."""
    return resolve(FLAGS.readings or PRESETS[preset()].readings)


def load_model(protocol: Protocol, **changes: Any) -> dsolo.Model:
    """Loads the model of the flags; pictures are sized as they, the preset, or the protocol say.

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
        "dtype": jnp.dtype(FLAGS.dtype),
        "attention_layers": FLAGS.layers,
        "attention_weights": weights,
        "attention_size": FLAGS.attention_size,
        "timestep": FLAGS.timestep,
        "grid": FLAGS.grid,
        **sides(protocol),
    }
    return dsolo.load(preset(), **(arguments | changes))


def sides(protocol: Protocol) -> dict[str, int]:
    """Gives the working size of pictures: of the flags, of a preset that has one, or a protocol."""
    return {
        "short_side": FLAGS.short_side or PRESETS[preset()].short_side or protocol.short_side,
        "long_side": FLAGS.long_side or protocol.long_side,
    }


def model_config(model: dsolo.Model) -> dict[str, Any]:
    """Records what of a model decides its results."""
    config = model.config
    return {
        "preset": preset(),
        "clip": config.tokenizer,
        "attention": config.source.name,
        "layers": list(config.source.layers),
        "layer_weights": config.source.weights,
        "attention_size": config.source.size,
        "timestep": FLAGS.timestep,
        "grid": config.grid,
        "short_side": config.short_side,
        "long_side": config.long_side,
        "dtype": FLAGS.dtype,
        "readings": described(config.readings),
    }
