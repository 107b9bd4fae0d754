"""Options of more than one command: which classes, which model."""

import argparse
import contextlib
from pathlib import Path

import dsolo_jax as dsolo
from dsolo_jax import background, vocabulary
from dsolo_jax.datasets.classes import read_classes
from dsolo_jax.solver.discrepancy import METHODS, needs_graph
from dsolo_jax.utils.checks import choose
from dsolo_jax.vocabulary import Vocabulary


def add_model(command: argparse.ArgumentParser) -> None:
    """Adds what says which classes and which model."""
    add = command.add_argument
    add("--classes", required=True, help="separated by ';', synonyms by ','; or a .txt file")
    add("--background", action="store_true", help="add a class for everything else")
    add("--preset", default="dslo_b16", help=f"one of: {', '.join(dsolo.PRESETS)}")
    add(
        "--clip",
        help="a hub id, a folder, 'miniature' or 'miniature_dense', instead of the preset's",
    )
    add("--attention", help="source of the patch graph, instead of the preset's")
    methods = ", ".join(METHODS)
    add("--method", choices=METHODS, metavar="NAME", help=f"instead of the preset's: {methods}")
    add("--readings", help="instead of the preset's: robust, paper, or robust,tau=0.3")
    add("--dtype", help="of weights: float32 (the default), bf16 or fp16")
    add("--verbose", action="store_true", help="show where an error came from")


def words(options: argparse.Namespace) -> Vocabulary:
    """Reads the classes that are asked for."""
    given = options.classes
    if given.endswith(".txt") and Path(given).is_file():
        classes = read_classes(given)
    else:
        classes = tuple(name for name in given.split(";") if name.strip())
    found = vocabulary.parse(classes)
    return background.with_background(found) if options.background else found


def method(options: argparse.Namespace) -> str:
    """Gives the method that is asked for, or else the preset's."""
    return options.method or preset(options).method


def preset(options: argparse.Namespace) -> dsolo.model.Preset:
    """Finds the preset that is asked for."""
    return dsolo.PRESETS[choose("preset", options.preset, dsolo.PRESETS)]


def load(options: argparse.Namespace) -> dsolo.Model:
    """Loads the model that is asked for, with the graph if its method looks at one."""
    graph = needs_graph(method(options))
    given = options.preset, options.clip, options.attention, options.dtype
    return dsolo.load(*given, readings=options.readings, graph=graph)


def say(line: str) -> None:
    """Prints a line to standard output; that its reader has gone is no fault."""
    with contextlib.suppress(BrokenPipeError):
        print(line)
