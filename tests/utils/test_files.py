import errno

import pytest

from dsolo_jax.utils.files import atomic, locked


def test_the_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    with atomic(path) as temporary:
        temporary.write_text("first")
        assert temporary.suffix == ".json"
        assert not path.exists()
    assert path.read_text() == "first"

    for interruption in (KeyboardInterrupt, ValueError):
        with pytest.raises(interruption), atomic(path) as temporary:
            temporary.write_text("half")
            raise interruption
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_errors_name_the_path_and_keep_their_number(tmp_path):
    path = tmp_path / "out.png"
    with pytest.raises(OSError, match=r"out\.png: No space left") as raised, atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/below/out\.png"):
        with atomic(tmp_path / "file" / "below" / "out.png"):
            pass
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*folder\.png"):
        with atomic(tmp_path / "folder.png") as temporary:
            temporary.write_text("x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_one_run_at_a_time(tmp_path):
    with locked(tmp_path / "out"):
        with pytest.raises(OSError, match="another run is writing to .*out"):
            with locked(tmp_path / "out"):
                pass
    with locked(tmp_path / "out"):
        pass
