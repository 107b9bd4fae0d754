"""What a folder of results says of itself: what was asked, and what of it is done.

run.json holds the question, and another one is refused. `.done.jsonl` gets a line for each picture
or video when its last file is there: its size and its time of change, by which a changed one is
known and done again, and a picture's shares. Neither is believed without being checked.
"""

import contextlib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dsolo_jax as dsolo
from dsolo_jax.commands.inputs import Source
from dsolo_jax.utils.files import read_text, write_csv, write_json, write_text, writing

_RUN, _DONE, _SHARES = "run.json", ".done.jsonl", "shares.csv"
RESERVED = (_RUN, _SHARES)


class Done(NamedTuple):
    """What was done: a file in this state, None of standard input; shares of the classes, None of
    a video."""

    state: list[int] | None
    shares: list[float] | None


def state(source: Source) -> list[int] | None:
    """Gives a file's size in bytes and its time of change in nanoseconds; None of no file."""
    try:
        found = source.path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def check(
    folder: Path, question: Mapping[str, Any], overwrite: bool, targets: Iterable[Path]
) -> None:
    """Refuses a folder whose results answer another question, or were not made by this command.

    Raises:
        ValueError: naming what differs and the way out.
    """
    if overwrite:
        return
    way_out = "choose another --output, or --overwrite"
    path = folder / _RUN
    if not path.is_file():
        if there := next((target for target in targets if target.exists()), None):
            raise ValueError(
                f"{there} is there already, and no {_RUN} says of what; {way_out} what is there"
            )
        return
    try:
        found = json.loads(read_text(path))["question"]
        different = sorted(
            key for key in found.keys() | question.keys() if found.get(key) != question.get(key)
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged or of another program ({error!r}); {way_out} what is there"
        ) from error
    if different:
        each = (
            f"{key} was {_short(found.get(key))}, now is {_short(question.get(key))}"
            for key in different
        )
        raise ValueError(
            f"{folder} has the results of another question: {'; '.join(each)}; {way_out} them"
        )


def _short(value: Any) -> str:
    return textwrap.shorten(json.dumps(value, ensure_ascii=False), 80, placeholder=" …")


def done(folder: Path, num_classes: int) -> dict[str, Done]:
    """Reads what is done, by the files' names; what cannot be read counts as not done."""
    path = folder / _DONE
    found = {}
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        with contextlib.suppress(ValueError, LookupError, TypeError):
            one = json.loads(line)
            shares = one["shares"]
            numbers = (int, float)
            right = shares is None or (
                len(shares) == num_classes
                and all(isinstance(share, numbers) and 0 <= share <= 1 for share in shares)
                and abs(sum(shares) - 1) < 1e-3
            )
            if line.endswith(b"\n") and right and isinstance(one["name"], str):
                found[one["name"]] = Done(one["state"], shares)
    return found


def start(folder: Path, question: Mapping[str, Any], earlier: Mapping[str, Done]) -> None:
    """Records the question, and of what is done no more than `earlier`."""
    write_text(folder / _DONE, "".join(_line(name, one) for name, one in earlier.items()))
    if not earlier:
        (folder / _SHARES).unlink(missing_ok=True)
    write_json(folder / _RUN, {"question": question, "dsolo_jax": dsolo.__version__})


def add(folder: Path, name: str, one: Done) -> None:
    """Notes that a picture or a video is done."""
    path = folder / _DONE
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(_line(name, one))


def _line(name: str, one: Done) -> str:
    return json.dumps({"name": name, "state": one.state, "shares": one.shares}) + "\n"


def write_shares(folder: Path, classes: Sequence[str]) -> None:
    """Writes shares.csv: one row for each picture that is done, the share of each class."""
    rows = [
        [name, *(f"{share:.6f}" for share in one.shares)]
        for name, one in sorted(done(folder, len(classes)).items())
        if one.shares is not None
    ]
    if rows:
        write_csv(folder / _SHARES, [["picture", *classes], *rows])
