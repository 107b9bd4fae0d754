"""The pages of docs/: names and commands that they show are there, and their examples run.

The latter takes a while: `python -m pytest tests/test_docs.py -m notebooks`.
"""

import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import dsolo_jax as dsolo
from dsolo_jax import cli, images
from dsolo_jax.datasets import miniature

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in DOCS.rglob("*.md")}
# By hand, not from a file beside the pages.
GUIDES = ["quickstart.md", *sorted(name for name in PAGES if name.startswith("how-to/"))]
SHOWN = [
    name
    for page, text in PAGES.items()
    if page.startswith("api/")
    for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)
]


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page, those in tabs too."""
    fence = rf"^( *)```{language}\n(.*?)^\1```"
    found = re.findall(fence, PAGES[page], re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


@pytest.mark.parametrize("name", SHOWN)
def test_a_name_of_the_api_is_there_and_described(name):
    assert pkgutil.resolve_name(name).__doc__


def test_each_public_name_has_its_place_in_the_api():
    rooms = {name for name in dsolo.__all__ if type(getattr(dsolo, name)).__name__ == "module"}
    wanted = {f"dsolo_jax.{name}" for name in {*dsolo.__all__} - rooms}
    wanted |= {f"dsolo_jax.solver.{name}" for name in dsolo.solver.__all__}
    headings = {line[3:] for text in PAGES.values() for line in text.splitlines()}
    renamed = {name.replace(".normalise.normalise", ".normalise") for name in SHOWN}
    assert wanted <= renamed | headings, wanted - renamed - headings


def test_commands_on_the_pages_are_understood():
    commands = [
        line
        for page in (*GUIDES, "index.md")
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    parsed = []
    for command in commands:
        words = shlex.split(command, comments=True)
        if "dsolo" in words and "docker" not in words and "…" not in words:
            first = words.index("dsolo") + 1
            last = words.index(">") if ">" in words else None
            parsed.append(cli._parser().parse_args(words[first:last]))
    assert len(parsed) >= 10
    presets = {name for one in parsed for name in one.preset.split(",")}
    assert presets <= {*dsolo.PRESETS}


def test_extras_on_the_pages_are_there():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    named = {name for text in PAGES.values() for name in re.findall(r'"\.\[(\w+)\]"', text)}
    assert len(named) >= 7 and named <= {*project["optional-dependencies"]}


@pytest.mark.notebooks
@pytest.mark.parametrize("page", [page for page in GUIDES if blocks(page, "python")])
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """Each block goes on where the one before ended; drawn scenes stand for photographs."""
    rasterio = pytest.importorskip("rasterio")
    for library in ("supervision", "pycocotools"):
        pytest.importorskip(library)
    scene = miniature.draw(0, 9, split="validation")
    for name in ("street.jpg", "city.png", "mine/images/0001.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        images.Image.fromarray(scene.image).save(tmp_path / name)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)}
    size = {"height": 112, "width": 112, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "field.tif", "w", driver="GTiff", **size, **place) as file:
        file.write(scene.image.transpose(2, 0, 1))
    (tmp_path / "mine/labels").mkdir()
    images.Image.fromarray(scene.labels).save(tmp_path / "mine/labels/0001.png")
    (tmp_path / "mine/classes.txt").write_text("\n".join(miniature.CLASSES))
    monkeypatch.chdir(tmp_path)
    load = dsolo.load
    monkeypatch.setattr(dsolo, "load", lambda preset, **how: load("miniature", **how))
    model = dsolo.load("miniature")
    names = {"dsolo": dsolo, "model": model}
    if page == "how-to/masks.md":
        names["result"] = dsolo.segment(model, scene.image, ["road", "water"])
    if page == "how-to/solver.md":
        names |= {"words": dsolo.pipeline.embed(model, dsolo.vocabulary.parse(["sky", "lava"]))}
        names["patches"] = names["words"].repeat(8, axis=0)
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
