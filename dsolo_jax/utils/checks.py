"""What every error of the library is made of."""

import difflib
from collections.abc import Iterable


def choose(what: str, value: str, options: Iterable[str]) -> str:
    """Returns `value` if it is one of `options`.

    Raises:
        ValueError: naming the thing, the value, the nearest option and all of them.
    """
    options = list(options)
    if value in options:
        return value
    nearest = difflib.get_close_matches(str(value), options, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise ValueError(f"unknown {what} {value!r}{hint}; choose one of: {', '.join(options)}")
