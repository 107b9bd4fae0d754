"""The notebooks: kept without outputs, and each runs from its first cell to its last, offline.

The latter needs the extra `notebooks`: `python -m pytest tests/test_notebooks.py -m notebooks`.
"""

import ast
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = "quickstart", "discrepancy", "your_dataset", "solver_in_your_code"
# Of one cell, seconds. The slowest notebook takes 20 s as a whole on two cores.
_TIMEOUT = 60

by_name = pytest.mark.parametrize("name", NAMES)


def _path(name: str) -> Path:
    return ROOT / "notebooks" / f"{name}.ipynb"


def _cells(name: str, kind: str) -> list[dict]:
    cells = json.loads(_path(name).read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def test_there_are_no_others():
    assert {path.stem for path in (ROOT / "notebooks").iterdir()} == {*NAMES}


@by_name
def test_a_notebook_is_kept_without_outputs(name):
    for cell in _cells(name, "code"):
        assert not cell["outputs"] and cell["execution_count"] is None and not cell["metadata"]
    metadata = json.loads(_path(name).read_text(encoding="utf-8"))["metadata"]
    assert {*metadata} == {"kernelspec", "language_info"}  # nothing of somebody's machine
    assert metadata["language_info"] == {"name": "python"}


@by_name
def test_a_notebook_explains_and_checks_what_it_says(name):
    code = "\n".join("".join(cell["source"]) for cell in _cells(name, "code"))
    asserted = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
    assert len(asserted) >= 3
    assert len(_cells(name, "markdown")) >= 4


@pytest.mark.notebooks
@by_name
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("XLA_FLAGS")  # those of the suite make programs slow
    notebook = nbformat.read(_path(name), as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": os.fspath(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=_TIMEOUT, resources=resources).execute()
    shown = [out for cell in notebook.cells if "outputs" in cell for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in shown)
    assert not [out.text for out in shown if out.get("name") == "stderr"]
    assert not [*tmp_path.iterdir()]  # nothing is left where it ran
