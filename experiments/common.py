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
    """The flags that choose a dataset."""

    dataset: flags.FlagHolder[str]
    data_dir: flags.FlagHolder[str | None]
    split: flags.FlagHolder[str]
    images: flags.FlagHolder[str | None]
    labels: flags.FlagHolder[str | None]
    classes: flags.FlagHolder[str | None]
    ignore: flags.FlagHolder[int]
    label_offset: flags.FlagHolder[int]

    def settings(self) -> dict:
        """What decides the pictures and labels, for a record of a run."""
        return {name: flag.value for name, flag in vars(self).items()}

    def load(self) -> datasets.Dataset:
        """The dataset; raises as `load_dataset`."""
        return load_dataset(self.settings())


def load_dataset(settings: Mapping[str, Any]) -> datasets.Dataset:
    """The dataset of `DatasetFlags.settings`, whether of flags or from a record of a run.

    Raises:
        FileNotFoundError, ValueError: an unknown one, one that is not there, or one whose other
            settings are missing.
    """
    name = settings.get("dataset")
    if name != "folder":
        datasets.benchmark(name)  # an unknown name comes before a missing flag
        _require(settings, "data_dir")
        return datasets.load(name, settings["data_dir"], settings["split"])
    _require(settings, "images", "labels", "classes")
    return datasets.load_folder(
        settings["images"],
        settings["labels"],
        settings["classes"],
        ignore=settings["ignore"],
        label_offset=settings["label_offset"],
    )


def _require(settings: Mapping[str, Any], *names: str) -> None:
    missing = [f"--{name}" for name in names if settings.get(name) is None]
    if missing:
        raise ValueError(f"--dataset={settings['dataset']} needs {', '.join(missing)} too")


def define_dataset() -> DatasetFlags:
    names = ", ".join((*datasets.NAMES, "folder"))
    return DatasetFlags(
        dataset=flags.DEFINE_string("dataset", "ade20k", f"One of: {names}."),
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
    )


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags that choose a model; `fields` are those of `Readings`."""

    preset: flags.FlagHolder[str]
    clip: flags.FlagHolder[str | None]
    attention: flags.FlagHolder[str | None]
    layers: flags.FlagHolder[list[str] | None]
    layer_weights: flags.FlagHolder[list[str] | None]
    attention_size: flags.FlagHolder[int | None]
    timestep: flags.FlagHolder[int]
    grid: flags.FlagHolder[int | None]
    short_side: flags.FlagHolder[int]
    long_side: flags.FlagHolder[int]
    dtype: flags.FlagHolder[str]
    readings: flags.FlagHolder[str | None]
    fields: dict[str, flags.FlagHolder]

    def load(self) -> dsolo.Model:
        """The model, with the readings of the flags."""
        bundle = resolve(self.readings.value or pipeline.PRESETS[self.preset.value].readings)
        changes = {name: flag.value for name, flag in self.fields.items() if flag.value is not None}
        try:
            weights = self.layer_weights.value and tuple(map(float, self.layer_weights.value))
        except ValueError:
            found = ",".join(self.layer_weights.value)
            raise ValueError(f"--layer_weights is {found}; wanted numbers, such as 1,2") from None
        return dsolo.load(
            self.preset.value,
            clip=self.clip.value,
            attention=self.attention.value,
            dtype=jnp.dtype(self.dtype.value),
            readings=dataclasses.replace(bundle, **changes),
            attention_layers=self.layers.value,
            attention_weights=weights,
            attention_size=self.attention_size.value,
            timestep=self.timestep.value,
            grid=self.grid.value,
            short_side=self.short_side.value,
            long_side=self.long_side.value,
        )

    def settings(self, model: dsolo.Model) -> dict:
        """What of the model decides its results, for a record of a run."""
        return {
            "preset": self.preset.value,
            "clip": self.clip.value or pipeline.PRESETS[self.preset.value].clip,
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


def define_model() -> ModelFlags:
    return ModelFlags(
        preset=flags.DEFINE_enum(
            "preset", "dslo_b16", list(pipeline.PRESETS), "Weights, readings."
        ),
        clip=flags.DEFINE_string("clip", None, "Hub id or folder, instead of the preset's CLIP."),
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
        short_side=flags.DEFINE_integer("short_side", 336, "In CLIP, pixels.", lower_bound=1),
        long_side=flags.DEFINE_integer("long_side", 2048, "Cap, pixels.", lower_bound=1),
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
