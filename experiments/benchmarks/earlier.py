"""A run beside an earlier one: ratios of rows that both have, and which of them are slower."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsolo_jax.utils.files import read_text
from experiments.tables import aligned

_SAME = "device", "dtype"  # of the environment: without these, seconds say nothing of the code


class Compared(NamedTuple):
    """A table of ratios, new seconds over old ones, and the rows whose ratio is beyond a bound."""

    table: str
    slower: list[str]


def read(path: str | Path, environment: Mapping[str, Any]) -> dict[str, float]:
    """Reads the seconds of each row, by its stage and case, of a JSON that an earlier run left.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or another kind of file; its figures are of another device or
            dtype than those of `environment`.
    """
    wanted = "wanted the JSON of an earlier run of experiments.benchmark --output=FILE"
    try:
        found = json.loads(read_text(path))
        rows = _seconds(found["rows"])
        seconds = {name: float(value) for name, value in rows.items() if value is not None}
        theirs = {name: found["environment"][name] for name in _SAME}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"without {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} cannot be compared with ({what}); {wanted}") from None
    for name, value in theirs.items():
        if value != environment[name]:
            raise ValueError(
                f"{path} is of {name} {value!r}, this run of {environment[name]!r}: ratios of "
                "these would say nothing of the code; give a baseline of the same"
            )
    return seconds


def _seconds(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{row['stage']} {row['case']}": row.get("seconds") for row in rows}


def compare(old: Mapping[str, float], rows: Iterable[Mapping[str, Any]], slower: float) -> Compared:
    """Compares rows with those of `read`; rows beyond the ratio `slower` are."""
    new = _seconds(rows)
    both = {name: new[name] / old[name] for name in new if name in old and new[name] is not None}
    lines = [
        [name, f"{old[name]:.6f}", f"{new[name]:.6f}", f"{ratio:.3f}"]
        for name, ratio in both.items()
    ]
    table = aligned(("row", "earlier, s", "now, s", "ratio"), lines)
    missing = [name for name in old if name not in new]
    added = [name for name, seconds in new.items() if name not in old and seconds is not None]
    for title, names in {"only in the earlier run": missing, "only in this run": added}.items():
        table += "".join(f"{title}: {name}\n" for name in names)
    return Compared(table, [name for name, ratio in both.items() if ratio > slower])
