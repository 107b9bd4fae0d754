"""Rows as text that is read."""

from collections.abc import Iterable, Mapping
from typing import Any

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def line(row: Mapping[str, Any]) -> str:
    """Writes a row: its name and seconds, what is beside it, and below what it does and needs; what
    a row does not know is left out."""
    first = [f"{row['stage']} {row['case']}:", *_times(row)]
    for name, beside in row.get("beside", {}).items():
        first.append(f"{beside['ratio']:.3f} x {name} ({seconds(beside['seconds'])})")
    below = [text for column, write in _COLUMNS.items() if (text := _told(row, column, write))]
    return "  ".join(first) + (f"\n    {', '.join(below)}" if below else "")


def _times(row: Mapping[str, Any]) -> list[str]:
    if "seconds" not in row:
        return []
    found = [seconds(row["seconds"])]
    if "p10" in row:
        found += [f"[{seconds(row['p10'])} {seconds(row['p90'])}]"]
    if row.get("pictures_per_second"):
        found += [f"{row['pictures_per_second']:.3g} pictures/s"]
    return found


def _told(row: Mapping[str, Any], column: str, write: Any) -> str | None:
    value = row.get(column)
    return None if value is None else write(value, row)


def _bound(share: float, row: Mapping[str, Any]) -> str:
    peaks = (
        f"{_short(peak)}{'B/s' if kind == 'bandwidth' else f'FLOP/s of {kind}'}"
        for kind, peak in row["peaks"].items()
    )
    return f"{share:.1%} of the bound by {row['bound']} ({', '.join(peaks)})"


# What the second line says, of the columns that a row has.
_COLUMNS = {
    "device_seconds": lambda value, _: f"device {seconds(value)}",
    "flops": lambda value, _: f"{_short(value)}FLOP",
    "least_bytes": lambda value, _: f"at least {_short(value)}B",
    "bytes_accessed": lambda value, _: f"XLA {_short(value)}B",
    "intensity": lambda value, _: f"{value:.3g} FLOP/B",
    "share_of_bound": _bound,
    "peak_bytes": lambda value, _: f"needs {value / 2**20:.0f} MiB",
    "resident_bytes": lambda value, _: f"{value / 2**20:.0f} MiB above the loaded model",
    "squares": lambda value, _: f"{value:.2f} N^2 floats",
    "agreement": lambda value, row: (
        f"{value:.3%} of labels are equal, {row['agreement_worst']:.3%} in the worst picture"
    ),
    "largest_batch": lambda value, row: (
        f"{value} fit, {row['too_large']} do not" if row["too_large"] else f"at least {value} fit"
    ),
    "steps": lambda value, _: f"{value} steps",
    "lower_s": lambda value, _: f"lowered in {value:.1f} s",
    "compile_s": lambda value, _: f"compiled in {value:.1f} s",
}


def seconds(value: float) -> str:
    """Writes seconds in a unit that fits."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value * 1e6:.3g} us"


def _short(value: float) -> str:
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:g} "


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Writes the most pictures a second of the whole route, ours and each baseline's, whatever
    their batch; nothing without such rows."""
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        if not row["case"].startswith("whole") or not row.get("pictures_per_second"):
            continue
        rate = row["pictures_per_second"]
        rates = {"ours": rate} | {
            name: rate * beside["ratio"] for name, beside in row.get("beside", {}).items()
        }
        for name, found in rates.items():
            best[name] = max(best.get(name, (0.0, "")), (found, row["case"]))
    return "".join(
        f"most pictures a second, {name}: {rate:.4g} ({case})\n"
        for name, (rate, case) in best.items()
    )
