import errno

import pytest

from dsolo_jax.utils.files import atomic, atomic_folder, locked


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


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "masks"

    def held():
        return {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.txt")}

    with atomic_folder(path) as folder:
        (folder / "first.txt").touch()
        assert not path.exists()
    for interruption in (KeyboardInterrupt, ValueError):
        with pytest.raises(interruption), atomic_folder(path) as folder:
            (folder / "half.txt").touch()
            raise interruption
    assert held() == {"new/masks/first.txt"}
    with atomic_folder(path) as folder:
        (folder / "second.txt").touch()
    assert held() == {"new/masks/second.txt"} and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_killed_process_left_of_a_folder_is_mended(tmp_path, moved):
    """Killed while it wrote, or between the two renames."""
    path = tmp_path / "out"
    for name in (".out.partial", ".out.earlier" if moved else "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").touch()
    with pytest.raises(ValueError), atomic_folder(path):
        raise ValueError
    assert [file.name for file in tmp_path.iterdir()] == ["out"] and (path / "file.txt").exists()
