"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import io
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0
_LOGGER = logging.getLogger("dsolo_jax")


def show() -> None:
    """Lets `progress` be seen, as the commands do: the library alone says nothing.

    Letters that the output has not, as in a container without a locale, are printed as numbers.
    """
    _LOGGER.setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def progress(
    items: Iterable[T], total: int | None, what: str, *, unit: str = "images"
) -> Iterator[T]:
    """Yields `items`, reporting on stderr how many of `total` are done, the rate and the time left.

    A total that is None is not known, and neither is the time left; of none nothing is said.

    On a terminal this is tqdm's bar; elsewhere one line every ten seconds and one at the end, so
    that a log stays readable. Silent unless the logger "dsolo_jax" takes what is of level INFO, see
    `show`.
    """
    if total == 0 or not _LOGGER.isEnabledFor(logging.INFO):
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=f" {unit}")
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            rate = done / max(now - start, 1e-9)
            of, left = "", ""
            if total is not None:
                of, left = f"/{total}", f", {max(total - done, 0) / rate:.0f} s left"
            print(
                f"{what}: {done}{of} {unit}, {rate:.3g} {unit}/s{left}", file=sys.stderr, flush=True
            )
            last = now
