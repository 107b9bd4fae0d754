"""Flags that several drivers share, and what is made of them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from absl import app, flags, logging

import dsolo_jax as dsolo
from dsolo_jax import datasets, pipeline
from dsolo_jax.attention import SOURCES
from dsolo_jax.datasets import miniature
from dsolo_jax.datasets.protocols import BACKGROUND_RULES, VOCABULARIES
from dsolo_jax.readings import BUNDLES, METHODS, Readings, resolve


def run(main: Callable[[], None], required: Sequence[str] = ()) -> None:
    """Runs a driver; an error of the user's making is one message, not a traceback."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {argv[1:]}; flags are written --name=value")
        if not flags.FLAGS["verbosity"].present:  # absl's own choice lets JAX and TFDS talk
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")

    flags.mark_flags_as_required(required)
    app.run(guarded)


def define_method() -> flags.FlagHolder[str]:
    return flags.DEFINE_enum("method", "velocity", list(METHODS), "What scores the classes.")


@dataclasses.dataclass(frozen=True)
class DatasetFlags:
    """The flags that choose a dataset, and how it is run: `changes` of its protocol."""

    dataset: flags.FlagHolder[str]
    data_dir: flags.FlagHolder[str | None]
    split: flags.FlagHolder[str]
    images: flags.FlagHolder[str | None]
    labels: flags.FlagHolder[str | None]
    classes: flags.FlagHolder[str | None]
    ignore: flags.FlagHolder[int]
    label_offset: flags.FlagHolder[int]
    changes: dict[str, flags.FlagHolder]
    world_seed: flags.FlagHolder[int]

    def settings(self, protocol: datasets.Protocol, name: str | None = None) -> dict:
        """What decides the pictures and labels, for a record of a run."""
        values = {key: flag.value for key, flag in vars(self).items() if key != "changes"}
        return values | {
            "dataset": name or self.dataset.value,
            "protocol": dataclasses.asdict(protocol),
        }

    def protocol(self, model: "ModelFlags", name: str | None = None) -> datasets.Protocol:
        """The protocol of the dataset, or of that of another name, with the changes of the flags.

        Raises:
            ValueError: an unknown dataset, or changes that do not fit it.
        """
        return datasets.protocol(
            name or self.dataset.value,
            short_side=model.short_side.value,
            long_side=model.long_side.value,
            **{name: flag.value for name, flag in self.changes.items()},
        )

    def load(self, protocol: datasets.Protocol, name: str | None = None) -> datasets.Dataset:
        """The dataset, or that of another name, run by `protocol`; raises as `load_dataset`."""
        return load_dataset(self.settings(protocol, name))


def load_dataset(settings: Mapping[str, Any]) -> datasets.Dataset:
    """The dataset of `DatasetFlags.settings`, whether of flags or from a record of a run.

    Raises:
        FileNotFoundError, ValueError: an unknown one, one that is not there, or one whose other
            settings are missing.
    """
    name = settings.get("dataset")
    protocol = datasets.protocol(name)
    if "protocol" in settings:
        fields = {field.name for field in dataclasses.fields(protocol) if field.init}
        protocol = datasets.Protocol(**{key: settings["protocol"][key] for key in fields})
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


def define_dataset(default: str = "ade20k") -> DatasetFlags:
    names = ", ".join((*datasets.NAMES, "all", miniature.NAME, "folder"))
    return DatasetFlags(
        dataset=flags.DEFINE_string("dataset", default, f"One of: {names}."),
        data_dir=flags.DEFINE_string("data_dir", None, "Where experiments.prepare put it."),
        split=flags.DEFINE_string("split", "validation", "Split of it."),
        images=flags.DEFINE_string("images", None, "folder: the pictures."),
        labels=flags.DEFINE_string("labels", None, "folder: index PNGs of the same stems."),
        classes=flags.DEFINE_string(
            "classes", None, "folder: file, a class a line, synonyms ', '."
        ),
        ignore=flags.DEFINE_integer("ignore", 255, "folder: stored value that does not count."),
        label_offset=flags.DEFINE_integer(
            "label_offset", 0, "folder: added to stored values; below 0 they do not count."
        ),
        changes={
            "vocabulary": flags.DEFINE_enum(
                "vocabulary", None, list(VOCABULARIES), "Words of the classes; naclip by default."
            ),
            "background_words": flags.DEFINE_string(
                "background_words", None, "Of class 0, separated by ', ', instead of the list's."
            ),
            "background_rule": flags.DEFINE_enum(
                "background_rule", None, list(BACKGROUND_RULES), "What makes a pixel background."
            ),
            "probability_threshold": flags.DEFINE_float(
                "probability_threshold", None, "Below it a pixel is background."
            ),
            "logit_scale": flags.DEFINE_float(
                "logit_scale", None, "Of the probabilities' softmax.", lower_bound=1e-3
            ),
            "reduce_zero_label": flags.DEFINE_bool(
                "reduce_zero_label", None, "Stored 0 does not count; the others move down."
            ),
        },
        world_seed=flags.DEFINE_integer(
            "world_seed", 0, "miniature: another seed is another world.", lower_bound=0
        ),
    )


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags that choose a model; `fields` are those of `Readings`.

    dataset: what it is for; the preset that is taken if none is named depends on it.
    """

    dataset: DatasetFlags | None
    preset: flags.FlagHolder[str | None]
    clip: flags.FlagHolder[str | None]
    attention: flags.FlagHolder[str | None]
    layers: flags.FlagHolder[list[str] | None]
    layer_weights: flags.FlagHolder[list[str] | None]
    attention_size: flags.FlagHolder[int | None]
    timestep: flags.FlagHolder[int]
    grid: flags.FlagHolder[int | None]
    short_side: flags.FlagHolder[int | None]
    long_side: flags.FlagHolder[int | None]
    dtype: flags.FlagHolder[str]
    readings: flags.FlagHolder[str | None]
    fields: dict[str, flags.FlagHolder]

    @property
    def preset_name(self) -> str:
        """The preset of the flag, or of the dataset."""
        return self.preset.value or _PRESET_OF.get(
            self.dataset and self.dataset.dataset.value, _PRESET
        )

    def resolve_readings(self) -> Readings:
        """The bundle of the flag or of the preset, with the changes that the flags name."""
        bundle = resolve(self.readings.value or pipeline.PRESETS[self.preset_name].readings)
        changes = {name: flag.value for name, flag in self.fields.items() if flag.value is not None}
        return dataclasses.replace(bundle, **changes)

    def load(
        self, protocol: datasets.Protocol = datasets.PROTOCOLS["folder"], **changes: Any
    ) -> dsolo.Model:
        """The model, with the readings of the flags; pictures are sized as they, the preset, or
        else the protocol say.

        Args:
            changes: arguments of `dsolo.load` that count instead of the flags.
        """
        try:
            weights = self.layer_weights.value and tuple(map(float, self.layer_weights.value))
        except ValueError:
            found = ",".join(self.layer_weights.value)
            raise ValueError(f"--layer_weights is {found}; wanted numbers, such as 1,2") from None
        arguments = {
            "clip": self.clip.value,
            "attention": self.attention.value,
            "dtype": jnp.dtype(self.dtype.value),
            "readings": self.resolve_readings(),
            "attention_layers": self.layers.value,
            "attention_weights": weights,
            "attention_size": self.attention_size.value,
            "timestep": self.timestep.value,
            "grid": self.grid.value,
            **self.sides(protocol),
        }
        return dsolo.load(self.preset_name, **(arguments | changes))

    def chosen(self) -> dict:
        """The values of the flags, for a record of runs that each have readings of their own."""
        names = {f.name for f in dataclasses.fields(self)} - {"dataset", "readings", "fields"}
        return {name: getattr(self, name).value for name in sorted(names)} | {
            "preset": self.preset_name
        }

    def sides(self, protocol: datasets.Protocol) -> dict[str, int]:
        """Working size of pictures: of the flags, of a preset that has one, or of the protocol."""
        preset = pipeline.PRESETS[self.preset_name]
        return {
            "short_side": self.short_side.value or preset.short_side or protocol.short_side,
            "long_side": self.long_side.value or protocol.long_side,
        }

    def settings(self, model: dsolo.Model) -> dict:
        """What of the model decides its results, for a record of a run."""
        return {
            "preset": self.preset_name,
            "clip": self.clip.value or pipeline.PRESETS[self.preset_name].clip,
            "attention": model.attention,
            "layers": list(model.attention_layers),
            "layer_weights": self.layer_weights.value,
            "attention_size": model.source and model.source.size,
            "timestep": self.timestep.value,
            "grid": model.grid,
            "short_side": model.short_side,
            "long_side": model.long_side,
            "dtype": self.dtype.value,
            "readings": dataclasses.asdict(model.readings),
        }


_PRESET = "dslo_b16"
_PRESET_OF = {miniature.NAME: "miniature"}


def define_model(dataset: DatasetFlags | None = None) -> ModelFlags:
    return ModelFlags(
        dataset=dataset,
        preset=flags.DEFINE_enum(
            "preset",
            None,
            list(pipeline.PRESETS),
            f"Weights, readings, sizes; {_PRESET} by default, for miniature that of its name.",
        ),
        clip=flags.DEFINE_string(
            "clip", None, "Hub id, folder or 'miniature', instead of the preset's CLIP."
        ),
        attention=flags.DEFINE_string(
            "attention",
            None,
            f"Source of the patch graph: {', '.join(SOURCES)}, or a hub id or folder of one.",
        ),
        layers=flags.DEFINE_list(
            "layers",
            None,
            "Layers of the source that are averaged; up.0,up.1 of Stable Diffusion, -1 of DINO, 0 "
            "of CLIP by default.",
        ),
        layer_weights=flags.DEFINE_list("layer_weights", None, "Of each; all alike by default."),
        attention_size=flags.DEFINE_integer(
            "attention_size",
            None,
            "Side of the square that the source sees, pixels; about 512 by default. 512, 768, 1024 "
            "give Stable Diffusion 4096, 9216, 16384 patches.",
            lower_bound=1,
        ),
        timestep=flags.DEFINE_integer(
            "timestep", 100, "Of Stable Diffusion's step.", lower_bound=0, upper_bound=999
        ),
        grid=flags.DEFINE_integer(
            "grid",
            None,
            "Side of the solver's grid; the source's own by default, 32 for CLIP.",
            lower_bound=1,
        ),
        short_side=flags.DEFINE_integer(
            "short_side", None, "In CLIP, pixels; the preset's or the benchmark's.", lower_bound=1
        ),
        long_side=flags.DEFINE_integer(
            "long_side", None, "Cap, pixels; the benchmark's, or 2048.", lower_bound=1
        ),
        dtype=flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the encoders."),
        readings=flags.DEFINE_enum("readings", None, list(BUNDLES), "Instead of the preset's."),
        fields={field.name: _define_reading(field) for field in dataclasses.fields(Readings)},
    )


def _define_reading(field: dataclasses.Field) -> flags.FlagHolder:
    options, text = field.metadata["options"], f"Reading: {field.metadata['help']}."
    if options:
        return flags.DEFINE_enum(field.name, None, options, text)
    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float}[field.type]
    return define(field.name, None, text)
