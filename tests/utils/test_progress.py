"""Progress on a terminal or elsewhere."""

import io
import logging
import sys

import pytest

from dsolo_jax.utils.progress import progress, show


@pytest.fixture(autouse=True)
def level():
    """Leaves the logger as it is found."""
    logger = logging.getLogger("dsolo_jax")
    before = logger.level
    show()
    yield logger
    logger.setLevel(before)


def test_the_library_alone_is_silent(level, monkeypatch):
    level.setLevel(logging.NOTSET)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert not sys.stderr.getvalue()


def test_letters_that_the_output_has_not_are_printed_as_numbers(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    show()
    print("caf\u00e9", flush=True)
    assert sys.stdout.buffer.getvalue() == b"caf\\xe9\n"


def test_progress_is_plain_lines_off_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(progress(iter("abc"), 3, "letters", unit="letters")) == ["a", "b", "c"]
    [line] = sys.stderr.getvalue().splitlines()
    assert line.startswith("letters: 3/3 letters, ") and line.endswith(" 0 s left")


def test_an_unknown_total_has_no_time_left_and_none_no_line(monkeypatch):
    monkeypatch.setattr("dsolo_jax.utils.progress._SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(progress(iter("abc"), None, "letters", unit="letters")) == ["a", "b", "c"]
    *_, line = sys.stderr.getvalue().splitlines()
    assert line.startswith("letters: 3 letters, ") and line.endswith(" letters/s")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(progress(iter(""), 0, "letters")) == [] and not sys.stderr.getvalue()


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert "3/3" in terminal.getvalue() and "\r" in terminal.getvalue()
