"""What is kept between runs may cost time, never a run."""

import errno
import shutil
import stat
import warnings

import jax
import numpy as np
import pytest

from dsolo_jax.utils import cache

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache of a test; it has not warned yet."""
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path / "kept"))
    cache._warned.clear()
    return tmp_path / "kept"


def test_what_is_kept_is_found_and_is_the_users_alone(folder):
    assert cache.load("text/one.npy", (2, 3)) is None
    cache.save("text/one.npy", ARRAY)
    np.testing.assert_array_equal(cache.load("text/one.npy", (2, 3)), ARRAY)
    assert [path.name for path in (folder / "text").iterdir()] == ["one.npy"]
    assert stat.S_IMODE((folder / "text").stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.write_bytes(b""),
        lambda entry: entry.write_bytes(entry.read_bytes()[:-5]),
        lambda entry: entry.write_bytes(b"no array"),
        lambda entry: entry.write_bytes(b"PK\x03\x04 no archive"),
        lambda entry: np.save(entry, ARRAY.T),
        lambda entry: np.save(entry, ARRAY / 0),
        lambda entry: np.save(entry, ARRAY.astype(np.float64)),
        lambda entry: np.save(entry, ARRAY.astype(object), allow_pickle=True),
        lambda entry: (entry.unlink(), entry.mkdir()),
    ],
    ids="empty cut garbage archive shape infinite type objects folder".split(),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_used_is_as_if_it_were_not_there(folder, damage):
    cache.save("text/one.npy", ARRAY)
    damage(folder / "text" / "one.npy")
    assert cache.load("text/one.npy", (2, 3)) is None


@pytest.mark.parametrize("home", [True, False])
def test_where_nothing_can_be_kept_is_one_warning(tmp_path, monkeypatch, home):
    """Below a file, and without any home to be found."""
    cache._warned.clear()
    if home:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DSOLO_CACHE", str(tmp_path / "file" / "cache"))
    else:
        monkeypatch.delenv("DSOLO_CACHE")
        monkeypatch.setattr(cache.Path, "home", _homeless)
    with pytest.warns(UserWarning, match="nothing can be kept.*DSOLO_CACHE") as warned:
        for _ in range(3):
            cache.save("text/one.npy", ARRAY)
            assert cache.load("text/one.npy", (2, 3)) is None
    assert len(warned) == 1


def _homeless():
    raise RuntimeError("Could not determine home directory.")


@pytest.fixture
def compilation_cache():
    """JAX's own setting, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compilations_are_kept_unless_the_user_chose_a_place(folder, tmp_path, compilation_cache):
    cache.keep_compilations()
    [kept] = folder.iterdir()
    assert jax.config.jax_compilation_cache_dir == str(kept) and kept.name.startswith("xla-")
    assert stat.S_IMODE(kept.stat().st_mode) & 0o077 == 0
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    cache.keep_compilations()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_processors_share_no_compilations(folder, monkeypatch, compilation_cache):
    """A home that several machines share: XLA compiles for one's instructions, keys lack them."""
    found = set()
    for flags in ("sse avx2", "sse avx2 avx512f"):
        monkeypatch.setattr(cache.Path, "read_text", lambda _, flags=flags: f"flags : {flags}\n")
        found.add(cache._processor())
    assert len(found) == 2


def test_compilations_are_not_kept_for_who_said_no(folder, compilation_cache):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        cache.keep_compilations()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None and not folder.exists()


def test_a_full_disk_is_one_warning_and_what_it_left_is_cleared(
    folder, monkeypatch, compilation_cache
):
    """JAX leaves empty entries on a full disk, and would neither use nor replace them."""
    place = folder / f"xla-{cache._processor()}"
    place.mkdir(parents=True)
    cut, whole = (place / f"jit_{name}-cache" for name in ("cut", "whole"))
    cut.touch()
    whole.write_bytes(b"program")
    usage = shutil.disk_usage(folder)
    with (
        monkeypatch.context() as full,
        pytest.warns(UserWarning, match="less than 64 MiB") as warned,
    ):
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
        full.setattr(np, "save", _full)
        cache.keep_compilations()
        cache.save("text/one.npy", ARRAY)
    assert len(warned) == 1 and jax.config.jax_compilation_cache_dir is None
    assert not any((folder / "text").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
    cache.keep_compilations()
    assert jax.config.jax_compilation_cache_dir == str(place)
    assert whole.exists() and not cut.exists()


def _full(path, array):
    path.touch()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_compilations_that_cannot_be_kept_are_a_warning(tmp_path, monkeypatch, compilation_cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSOLO_CACHE", str(tmp_path / "file"))
    cache._warned.clear()
    with pytest.warns(UserWarning, match="nothing can be kept.*DSOLO_CACHE"):
        cache.keep_compilations()
    assert jax.config.jax_compilation_cache_dir is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.keep_compilations()
