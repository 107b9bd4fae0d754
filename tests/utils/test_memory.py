"""What of memory there is."""

import os
import sys
import types

import jax
import pytest

from dsolo_jax.utils import memory


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
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "meminfo")
    assert memory.available() is None
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    3 kB\n")
    assert memory.available() == 3 * 1024
