"""The command `dsolo`: pictures and class names to overlays and masks, or to an export.

dsolo segment IN.jpg --classes="cat; sofa, couch; remote control" --output=OUT.png
dsolo segment DIR more.jpg --classes=... --output=OUTDIR
dsolo export OUTDIR --classes=... --size=512x512
"""

import argparse
import itertools
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

import dsolo_jax as dsolo
from dsolo_jax import background, draw, export, images, vocabulary
from dsolo_jax.datasets.classes import read_classes
from dsolo_jax.datasets.folder import PICTURES, by_stem, files_in
from dsolo_jax.solver.discrepancy import METHODS, needs_graph
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.faults import is_message, message
from dsolo_jax.utils.files import write_csv
from dsolo_jax.utils.progress import progress, show
from dsolo_jax.vocabulary import Vocabulary


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 1 where something could not be done.

    An error of the user's making is one message, a fault of ours keeps its traceback.
    """
    options = _parser().parse_args(arguments)
    show()
    try:
        return options.run(options)
    except Exception as error:
        if (said := message(error)) is None:
            raise
        if options.verbose:
            traceback.print_exc()
        print(f"error: {said}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsolo",
        description="Training-free open-vocabulary semantic segmentation.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    segment = commands.add_parser(
        "segment",
        help="label every pixel of pictures with one of the classes",
        allow_abbrev=False,
        description="Labels every pixel of pictures with one of the classes. A single picture with "
        "--output=OUT.png gives an overlay with a legend. Otherwise --output is a folder, which "
        "gets an overlay <name>.png and an index map masks/<name>.png of each picture, and "
        "shares.csv; pictures whose overlay is there are not segmented again.",
    )
    add = segment.add_argument
    add("pictures", nargs="+", type=Path, help="pictures, or folders of them")
    add("--output", required=True, type=Path, help="a PNG, or a folder")
    _add_model(segment)
    add("--overwrite", action="store_true", help="segment again what is there already")
    segment.set_defaults(run=_segment)

    exported = commands.add_parser(
        "export",
        help="write the model for fixed classes as a program that needs no dsolo_jax",
        allow_abbrev=False,
        description="Writes a folder with the function from a picture of one size to its labels "
        "as StableHLO, its weights, and run.py, which labels a picture by them. That needs jax, "
        "flatbuffers, numpy, safetensors and Pillow, not this package, and gives the labels of "
        "'dsolo segment' on the platform of this machine. Other --platforms run it too, maybe "
        "slower: the program has the forms that are fast here.",
    )
    add = exported.add_argument
    add("output", type=Path, metavar="OUTDIR", help="a folder")
    _add_model(exported)
    add(
        "--size",
        type=_size,
        help="HEIGHTxWIDTH of pictures; the attention source's square if left out",
    )
    add("--dtype", help="of weights: float32 (the default), bf16 or fp16")
    add("--platforms", help=f"that run it, this one's if left out: {','.join(export.PLATFORMS)}")
    add("--overwrite", action="store_true", help="take the place of an earlier export")
    exported.set_defaults(run=_export)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    """What classes and which model, of every command."""
    add = command.add_argument
    add("--classes", required=True, help="separated by ';', synonyms by ','; or a .txt file")
    add("--background", action="store_true", help="add a class for everything else")
    add("--preset", default="dslo_b16", help=f"one of: {', '.join(dsolo.PRESETS)}")
    add("--clip", help="a hub id, a folder or 'miniature', instead of the preset's CLIP")
    add("--attention", help="source of the patch graph, instead of the preset's")
    methods = ", ".join(METHODS)
    add("--method", choices=METHODS, metavar="NAME", help=f"instead of the preset's: {methods}")
    add("--readings", help="instead of the preset's: robust, paper, or robust,tau=0.3")
    add("--verbose", action="store_true", help="show where an error came from")


def _size(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; wanted HEIGHTxWIDTH in pixels, such as 480x640"
        )
    return int(height), int(width)


def _load(options: argparse.Namespace, **others: Any) -> dsolo.Model:
    """The model that is asked for, with the graph if its method looks at one."""
    preset = dsolo.PRESETS[choose("preset", options.preset, dsolo.PRESETS)]
    return dsolo.load(
        options.preset,
        options.clip,
        options.attention,
        readings=options.readings,
        graph=needs_graph(options.method or preset.method),
        **others,
    )


def _export(options: argparse.Namespace) -> int:
    words, folder = _words(options), options.output
    platforms = options.platforms and [name.strip() for name in options.platforms.split(",")]
    export.check(folder, platforms, options.overwrite)
    model = _load(options, dtype=options.dtype)
    how = {"method": options.method, "platforms": platforms, "overwrite": options.overwrite}
    export.save(model, words, options.size, folder, **how)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"written to {folder} ({size / 1e6:.0f} MB): python {folder / 'run.py'} IN.png LABELS.png"
    )
    return 0


def _segment(options: argparse.Namespace) -> int:
    words, given = _words(options), options.pictures
    found = (files_in(path, PICTURES, "pictures") if path.is_dir() else [path] for path in given)
    pictures = list(itertools.chain.from_iterable(found))
    single = len(pictures) == 1 and options.output.suffix.lower() == ".png"
    if single:
        targets = {pictures[0]: options.output}
    elif options.output.suffix.lower() in PICTURES or options.output.is_file():
        raise ValueError(f"--output is {options.output}; wanted a folder, or a PNG for one picture")
    else:
        targets = {p: options.output / f"{stem}.png" for stem, p in by_stem(pictures).items()}
    taken = {_file(picture) for picture in pictures if picture.exists()}
    for target in (*targets.values(), *([] if single else map(_mask, targets.values()))):
        if target.exists() and _file(target) in taken:
            raise ValueError(f"--output would overwrite the picture {target}; choose another")
    todo = [p for p, t in targets.items() if single or options.overwrite or not t.exists()]
    if todo:
        model = _load(options)
    failed = []
    for picture in todo if single else progress(todo, len(todo), "segment"):
        try:
            pixels = images.read_image(picture)
            result = cast(dsolo.Result, dsolo.segment(model, pixels, words, options.method))
        except (OSError, ValueError) as error:
            if single or not is_message(error):
                raise
            named = str(picture) in str(error)  # as reading does it
            failed.append(str(error) if named else f"{picture}: {error}")
            continue
        if not single:  # before the overlay, by which a picture counts as done
            images.write_png(_mask(targets[picture]), result.labels)
        images.write_png(targets[picture], draw.overlay(pixels, result.labels, words.classes))
    if single:
        shares = _shares(result.labels, words)
        for c in np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)]:
            print(f"{words.classes[c]:30} {shares[c]:6.1%}")
        print(f"written to {options.output}")
        return 0
    _write_shares(options.output / "shares.csv", targets, words)
    print(
        f"{len(todo) - len(failed)} pictures segmented, {len(targets) - len(todo)} were there "
        f"already: overlays, masks and shares.csv are in {options.output}"
    )
    for line in failed:
        print(f"not segmented: {line}", file=sys.stderr)
    return 1 if failed else 0


def _words(options: argparse.Namespace) -> Vocabulary:
    given = options.classes
    if given.endswith(".txt") and Path(given).is_file():
        classes = read_classes(given)
    else:
        classes = tuple(name for name in given.split(";") if name.strip())
    words = vocabulary.parse(classes)
    return background.with_background(words) if options.background else words


def _file(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    return path.stat().st_dev, path.stat().st_ino


def _mask(target: Path) -> Path:
    return target.parent / "masks" / target.name


def _shares(labels: np.ndarray, words: Vocabulary) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=len(words.classes)) / labels.size


def _write_shares(path: Path, targets: Mapping[Path, Path], words: Vocabulary) -> None:
    """One row a picture: the share of each class, of this run and of earlier ones."""
    lines = [["picture", *words.classes]]
    for picture, target in targets.items():
        if target.exists():
            shares = _shares(images.read_labels(_mask(target)), words)
            lines.append([picture.name, *(f"{share:.6f}" for share in shares)])
    write_csv(path, lines)
