"""Pictures, and a model that is loaded once."""

import functools

import pytest

import dsolo_jax as dsolo
from tests.commands.runs import scene

_load = functools.cache(dsolo.load)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(dsolo, "load", _load)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "trip/a.png")):
        scene(index).save(folder / name)
    return folder


@pytest.fixture
def counted(monkeypatch):
    """The pictures that are segmented, as they are."""
    seen, usual = [], dsolo.segment

    def count(model, picture, *args, **kwargs):
        seen.append(getattr(picture, "name", None))
        return usual(model, picture, *args, **kwargs)

    monkeypatch.setattr(dsolo, "segment", count)
    return seen
