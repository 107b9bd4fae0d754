"""What every error of the library is made of."""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence


def choose(what: str, value: str, options: Iterable[str]) -> str:
    """Returns `value` if it is one of `options`; else a ValueError names the nearest and all."""
    options = list(options)
    if value in options:
        return value
    nearest = difflib.get_close_matches(str(value), options, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise ValueError(f"unknown {what} {value!r}{hint}; choose one of: {', '.join(options)}")


def check_ids(ids: Sequence[str]) -> None:
    """Checks names of files that tables are to hold, a row for each; ValueError if one is given
    twice, is not UTF-8, or would be more than a line."""
    for name, count in Counter(ids).items():
        if count > 1:
            raise ValueError(f"{name!r} is named {count} times, wanted once")
        # Lone surrogates are how Python holds bytes that are no UTF-8.
        if name.splitlines() != [name] or name != name.encode("utf-8", "ignore").decode():
            raise ValueError(
                f"the file name {name!a} is not one line of text in UTF-8; rename the file"
            )
