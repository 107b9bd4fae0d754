"""The web page: `dsolo web`. Its logic is in `answer`, what the browser gets in `view`."""

import argparse
import os
import sys

from dsolo_jax.utils.extras import extra

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `dsolo web` to a parser; imports nothing that takes time."""
    add = parser.add_argument
    add(
        "--preset",
        default="miniature",
        metavar="NAME,...",
        help="presets that the page offers, all loaded when it starts; the first is chosen "
        "(miniature, which needs no download)",
    )
    add(
        "--attention",
        default="",
        metavar="NAME,...",
        help="sources of the patch graph that it offers besides the presets' own, appearance, clip "
        "and miniature; loaded when they are asked for",
    )
    add("--host", default="127.0.0.1", help="address to listen at (this computer alone)")
    add("--port", default=7860, type=int, help="port to listen at (7860)")
    add("--max-upload", default=30, type=_positive, metavar="MB", help="largest file (30)")
    add(
        "--max-pixels",
        default=36,
        type=_positive,
        metavar="MILLIONS",
        help="largest picture, in millions of pixels (36)",
    )
    add(
        "--max-classes",
        default=200,
        type=_positive,
        metavar="N",
        help="most classes of a question (200; 255 at most)",
    )


def run(options: argparse.Namespace) -> int:
    """Serves the page until it is interrupted, and returns the exit code.

    Raises:
        ValueError, OSError: an unknown preset, weights that cannot be had, a port that is taken.
        MissingExtraError: gradio is missing.
    """
    # Before gradio is imported, which reads them: nothing is told to anyone.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    extra("gradio", "web")
    from dsolo_jax.web import answer, page

    if options.host not in _LOOPBACK:
        print(
            f"warning: the page listens at {options.host}, where others may reach it; it asks for "
            "no password",
            file=sys.stderr,
        )
    limits = answer.Limits(
        upload=options.max_upload * 10**6,
        pixels=options.max_pixels * 10**6,
        classes=min(options.max_classes, answer.MOST_CLASSES),
    )
    service = answer.Service(_names(options.preset), _names(options.attention), limits)
    page.serve(service, options.host, options.port)
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
