"""What a user can mend, told from faults of ours."""

import traceback
from pathlib import Path

import jax


def is_message(error: BaseException) -> bool:
    """Whether an error says what a user can mend: it is the system's, or a ValueError raised here.

    Any other, such as a ValueError out of a library, is a fault of ours and needs its traceback.
    """
    if isinstance(error, OSError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError) or not frames:
        return False
    raised = frames[-1]
    ours = Path(raised.filename).is_relative_to(Path(__file__).parents[2])
    return ours and (raised.line or "").startswith("raise ")


def message(error: BaseException, less: str) -> str | None:
    """What to tell a user of an error, None of a fault of ours; `less`: what takes less memory."""
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"the device's memory is full ({text.splitlines()[0]}); {less}"
    if isinstance(error, MemoryError):
        return f"the memory is full ({text}); {less}"
    return text if is_message(error) else None
