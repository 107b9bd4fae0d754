"""What of memory there is, asked before it is needed, and what is said when it was not enough."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

_LESS = (
    "; a smaller preset, picture, batch_size, attention_size, grid or short_side, fewer classes "
    "or a dtype of bfloat16 takes less"
)

_ROOT = Path("/")

# Where a container's account is, of version 2 and 1: its limit, its use, and what of that are files
# that Linux gives up when it needs the memory.
_ACCOUNTS = (
    ("sys/fs/cgroup", "max", "current", "inactive_file"),
    ("sys/fs/cgroup/memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
)


def available() -> int | None:
    """Bytes that are free on the default device; None where that cannot be known.

    Of an accelerator by its own account, of the host by Linux's and by the limits of the containers
    (cgroups) that this process is in.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    account = _ROOT / "proc/meminfo"
    if not account.is_file():
        return None
    free = _table(account).get("MemAvailable:")
    return min([1024 * free, *_left_in_containers()]) if free else None


def _left_in_containers() -> Iterator[int]:
    groups = _ROOT / "proc/self/cgroup"
    lines = groups.read_text().splitlines() if groups.is_file() else []
    own = {line.split(":", 2)[2].strip("/") for line in lines if line.count(":") >= 2}
    for root, limit, used, files in _ACCOUNTS:
        # A limit of any group around the process's own holds for it too.
        names = {part for name in own for part in (Path(name), *Path(name).parents)}
        for place in (_ROOT / root / name for name in names):
            try:
                spent = int((place / f"memory.{used}").read_text())
                spent -= _table(place / "memory.stat").get(files, 0)
                yield max(int((place / f"memory.{limit}").read_text()) - spent, 0)
            except (OSError, ValueError):  # no such account; "max", which is no limit
                continue


def _table(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def message(error: BaseException) -> str | None:
    """What to say of a full memory, with what takes less; None of any other error."""
    text = str(error)
    if isinstance(error, MemoryError):
        return text if text.endswith(_LESS) else f"the memory is full: {text}{_LESS}"
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"the device's memory is full: {text.splitlines()[0]}{_LESS}"
    return None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns JAX's error of a full memory into a MemoryError that says what takes less."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (said := message(error)) is None:
            raise
        raise MemoryError(said) from error
