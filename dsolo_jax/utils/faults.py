"""What a user can mend, told from faults of ours."""

import traceback

from dsolo_jax.utils import memory
from dsolo_jax.utils.extras import MissingExtraError

# Whose ValueErrors are written for users; __main__ is a command.
_OURS = ("dsolo_jax", "experiments", "__main__")


def is_message(error: BaseException) -> bool:
    """Whether an error says what a user can mend: it is the system's, a missing extra, or a
    ValueError raised here.

    Any other, such as a ValueError out of a library, is a fault of ours and needs its traceback.
    """
    if isinstance(error, OSError | MissingExtraError):
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    ours = frame.f_globals["__name__"].partition(".")[0] in _OURS
    return ours and line.startswith("raise ")


def message(error: BaseException) -> str | None:
    """What to tell a user of an error, None of a fault of ours."""
    return memory.message(error) or (str(error) if is_message(error) else None)
