"""What of memory there is, asked before it is needed."""

from pathlib import Path

import jax


def available() -> int | None:
    """Bytes that are free on the default device; None where that cannot be known.

    Of an accelerator by its own account, of the host by Linux's.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    account = Path("/proc/meminfo")
    if not account.is_file():
        return None
    lines = (line.split() for line in account.read_text().splitlines())
    return next((1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:"), None)
