"""The command `dsolo`: pictures and class names to overlays and masks, or to an export.

dsolo segment IN.jpg --classes="cat; sofa, couch; remote control" --output=OUT.png
dsolo segment DIR more.jpg clip.mp4 --classes=... --output=OUTDIR
dsolo export OUTDIR --classes=... --size=512x512
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dsolo_jax import export, web
from dsolo_jax.commands import common, segment
from dsolo_jax.utils.faults import message
from dsolo_jax.utils.progress import show


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0; 1 where something could not be done; 130 when
    it was interrupted.

    An error of the user's making is one message, a fault of ours keeps its traceback. A reader of
    standard output that has gone is no reason to say anything.
    """
    options = _parser().parse_args(arguments)
    show()
    # What is too large is refused by `images`, with the way out.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.formatwarning = lambda text, kind, *_, **__: f"{kind.__name__}: {text}\n"
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted; the same command does what is left", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a picture on standard output
        return 1
    except Exception as error:
        if (said := message(error)) is None:
            raise
        if getattr(options, "verbose", False):
            traceback.print_exc()
        print(f"error: {said}", file=sys.stderr)
        return 1
    finally:
        _flush()


def _flush() -> None:
    """Flushes standard output, so that Python does not complain at exit of a reader that has gone:
    what was said to it is no loss."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsolo",
        description="Training-free open-vocabulary semantic segmentation.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    segment_ = commands.add_parser(
        "segment",
        help="label every pixel of pictures or videos with one of the classes",
        allow_abbrev=False,
    )
    segment.add_arguments(segment_)

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
    common.add_model(exported)
    add(
        "--size",
        type=_size,
        help="HEIGHTxWIDTH of pictures; the attention source's square if left out",
    )
    add("--platforms", help=f"that run it, this one's if left out: {','.join(export.PLATFORMS)}")
    add("--overwrite", action="store_true", help="take the place of an earlier export")
    exported.set_defaults(run=_export)

    page = commands.add_parser(
        "web",
        help="show a page in the browser on which pictures are segmented",
        allow_abbrev=False,
    )
    web.add_arguments(page)
    page.set_defaults(run=web.run)
    return parser


def _size(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; wanted HEIGHTxWIDTH in pixels, such as 480x640"
        )
    return int(height), int(width)


def _export(options: argparse.Namespace) -> int:
    words, folder = common.words(options), options.output
    platforms = options.platforms and [name.strip() for name in options.platforms.split(",")]
    export.check(folder, platforms, options.overwrite)
    model = common.load(options)
    how = {"method": options.method, "platforms": platforms, "overwrite": options.overwrite}
    export.save(model, words, options.size, folder, **how)
    size = sum(path.stat().st_size for path in folder.iterdir())
    common.say(
        f"written to {folder} ({size / 1e6:.0f} MB): python {folder / 'run.py'} IN.png LABELS.png"
    )
    return 0
