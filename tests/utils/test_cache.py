"""The private cache, and progress on a terminal or elsewhere."""

import io
import stat
import sys

import jax

from dsolo_jax.utils import cache
from dsolo_jax.utils.progress import progress


def test_what_is_kept_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path / "kept"))
    path = cache.directory("xla")
    assert path == tmp_path / "kept" / "xla"
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_compilations_are_kept_unless_the_user_chose_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        cache.keep_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
        cache.keep_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_progress_is_plain_lines_off_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert list(progress(iter("abc"), 3, "letters", unit="letters")) == ["a", "b", "c"]
    [line] = sys.stderr.getvalue().splitlines()
    assert line.startswith("letters: 3/3 letters, ") and line.endswith(" 0 s left")


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert "3/3" in terminal.getvalue() and "\r" in terminal.getvalue()
