"""What of memory there is."""

import os
import sys
import types

import jax
import pytest

from dsolo_jax.utils import faults, memory


def _device(monkeypatch, stats):
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.skipif(sys.platform != "linux", reason="the account is Linux's")
def test_the_host_has_some_and_at_most_all(monkeypatch):
    _device(monkeypatch, None)
    free, all_of_it = memory.available(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert isinstance(free, int)
    assert all_of_it / 1000 < free <= all_of_it  # bytes, not KiB


def test_an_accelerator_answers_for_itself(monkeypatch):
    _device(monkeypatch, {"bytes_limit": 1000, "bytes_in_use": 300})
    assert memory.available() == 700


def test_no_account_is_no_number(monkeypatch, tmp_path):
    _device(monkeypatch, None)
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    assert memory.available() is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    3 kB\n")
    assert memory.available() == 3 * 1024


@pytest.mark.parametrize(
    "group, files",
    [
        (
            "0::/outer/inner",
            {"memory.max": "1000", "memory.current": "900", "memory.stat": "inactive_file 300"},
        ),
        (
            "4:memory:/outer/inner",
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "cache 5\ntotal_inactive_file 300",
            },
        ),
    ],
)
@pytest.mark.parametrize("place", [".", "outer"])
def test_the_limit_of_a_container_holds(monkeypatch, tmp_path, group, files, place):
    """Of either version, of the process's own group or of one around it; files can be given up."""
    _device(monkeypatch, None)
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 8 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    assert memory.available() == 8 * 1024
    for name, content in files.items():
        version, _, file = name.rpartition("/")
        folder = tmp_path / "sys/fs/cgroup" / version / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    assert memory.available() == 1000 - (900 - 300)
    limit = next(
        path for path in tmp_path.rglob("memory.*") if path.name.endswith(("max", "bytes"))
    )
    limit.write_text("max")
    assert memory.available() == 8 * 1024


def test_a_full_memory_says_what_to_lower():
    with pytest.raises(MemoryError, match="allocating 9 bytes; .*batch_size.*takes less"):
        with memory.explained():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    with pytest.raises(MemoryError) as caught, memory.explained():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 GiB")
    assert faults.message(caught.value).count("takes less") == 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with memory.explained():
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")
