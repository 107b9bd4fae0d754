"""What is published, and by which rules: versions, the workflows, the container."""

import json
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import dsolo_jax
from dsolo_jax import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {
    path.stem: yaml.load(path.read_text(), yaml.BaseLoader)  # "on" is a word there, not True
    for path in (ROOT / ".github/workflows").glob("*.yml")
}
TEXTS = {path.stem: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
PYTHONS = [
    match[1]
    for line in PROJECT["classifiers"]
    if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]


def _runs(workflow: str) -> str:
    jobs = WORKFLOWS[workflow]["jobs"].values()
    return "\n".join(step.get("run", "") for job in jobs for step in job["steps"])


# ---------------------------------------------------------------------------------- versions


def test_the_version_stands_in_one_place_and_the_papers_agree():
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dsolo_jax.__version__
    assert f"## {dsolo_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_each_python_that_is_promised_is_tested_and_no_other():
    matrix = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS and len(PYTHONS) == 3
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_the_addresses_are_those_of_one_repository():
    source = PROJECT["urls"]["Source"]
    assert PROJECT["urls"]["Issues"] == f"{source}/issues"
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), _Plain)
    assert site["nav"][-1]["Source code"] == site["extra"]["social"][0]["link"] == source
    assert site["site_url"] == PROJECT["urls"]["Documentation"]
    assert source in (ROOT / "README.md").read_text()


class _Plain(yaml.SafeLoader):
    """Takes mkdocs' own tags (`!!python/name:...`) for their text."""


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


# --------------------------------------------------------------------------------- workflows


@pytest.mark.parametrize("name", ["tests", "docs", "publish"])
def test_a_workflow_may_do_little_and_knows_no_secret(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in TEXTS[name] and "pull_request_target" not in workflow["on"]
    for job in workflow["jobs"].values():
        assert int(job["timeout-minutes"]) <= 90
        for step in job["steps"]:
            used = step.get("uses", "@release/v1")
            assert re.fullmatch(r"[\w./-]*@(v\d+|release/v1)", used), used
            assert "${{" not in step.get("run", "")  # a name of a branch would be run as code


def test_pull_requests_run_what_the_project_runs():
    assert _runs("tests").split() == ["bash", ".ci/run"] and (ROOT / ".ci/run").is_file()
    assert {*WORKFLOWS["tests"]["on"]} == {"push", "pull_request"}


def test_the_site_is_built_strictly_and_published_from_main_alone():
    assert "mkdocs build --strict" in _runs("docs").splitlines()
    publish = WORKFLOWS["docs"]["jobs"]["publish"]
    assert publish["if"] == "github.event_name == 'push'" and publish["needs"] == "build"
    assert WORKFLOWS["docs"]["on"]["push"] == {"branches": ["main"]}


def test_what_was_checked_is_published_by_trust():
    assert WORKFLOWS["publish"]["on"] == {"push": {"tags": ["v*"]}}
    build, publish = (WORKFLOWS["publish"]["jobs"][name] for name in ("build", "publish"))
    assert publish["needs"] == "build" and "permissions" not in build
    assert publish["permissions"] == {"id-token": "write"}
    used = [step["uses"].partition("@")[0] for step in publish["steps"]]
    assert used == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]
    names = [line.split()[0] for line in _runs("publish").splitlines() if line.split()]
    checks = [names.index(check) for check in ("python", "test", "twine", "check-wheel-contents")]
    assert checks == sorted(checks)


@pytest.mark.parametrize(("tag", "agrees"), [("v{}", True), ("v9.9.9", False)])
def test_a_tag_that_is_not_the_version_is_not_published(tmp_path, tag, agrees):
    [step] = [
        step
        for step in WORKFLOWS["publish"]["jobs"]["build"]["steps"]
        if step.get("name", "").startswith("The tag is the version")
    ]
    (tmp_path / "dist").mkdir()
    wheel = f"dsolo_jax-{dsolo_jax.__version__}-py3-none-any.whl"
    (tmp_path / "dist" / wheel).touch()
    (tmp_path / "CHANGELOG.md").write_bytes((ROOT / "CHANGELOG.md").read_bytes())
    environment = {"GITHUB_REF_NAME": tag.format(dsolo_jax.__version__), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment)
    assert (done.returncode == 0) == agrees


@pytest.mark.parametrize("path", (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
def test_an_issue_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    fields = form["body"]
    assert {field["type"] for field in fields} <= {"textarea", "input"}
    assert any(field.get("validations", {}).get("required") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_the_source_archive_holds_what_its_tests_and_its_site_read(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
        [about] = [name for name in opened.getnames() if name.endswith("/PKG-INFO")]
        shown = opened.extractfile(about).read().decode()
    links = re.findall(r"\]\(([^)]*)\)", shown)
    assert len(links) > 20 and all(link.startswith("https://") for link in links)
    files = [re.sub(r"^\S+?/dsolo_jax/(blob/)?(main/)?|#.*", "", link) for link in links]
    assert all((ROOT / file).exists() for file in files if not file.startswith("https:")), files
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no checkout, but an archive of one")
    left_out = {name for name in tracked.stdout.split("\0") if name} - names
    assert {name for name in left_out if (ROOT / name).exists()} <= {".ci/run", ".gitignore"}


# --------------------------------------------------------------------------------- container


def steps() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def all_of(name: str) -> list[str]:
    return [rest for step, rest in steps() if step == name]


def test_the_container_has_a_python_that_is_tested():
    images = [image.split()[0] for image in all_of("FROM")]
    assert len({*images}) == 1
    assert re.fullmatch(r"python:(3\.\d+)-slim", images[0])[1] in PYTHONS


def test_the_container_serves_as_nobody_and_writes_to_its_volume_alone():
    names = [name for name, _ in steps()]
    [user], [volume] = all_of("USER"), all_of("VOLUME")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert all(name not in ("RUN", "COPY") for name in names[names.index("USER") :])
    assert f"chown {user} {volume}" in " ".join(all_of("RUN"))
    caches = dict(pair.split("=") for pair in all_of("ENV")[0].split())
    assert {"DSOLO_CACHE", "HF_HOME", "MPLCONFIGDIR"} == {*caches}
    assert all(Path(place).parent == Path(volume) for place in caches.values())


def test_the_container_starts_the_page_where_it_is_looked_for():
    [entry], [command], [exposed], [health] = map(
        all_of, ("ENTRYPOINT", "CMD", "EXPOSE", "HEALTHCHECK")
    )
    program, *arguments = [*json.loads(entry), *json.loads(command)]
    assert PROJECT["scripts"][program] == "dsolo_jax.cli:main"
    options = cli._parser().parse_args(arguments)
    assert options.host == "0.0.0.0" and str(options.port) == exposed
    assert options.preset == "miniature"
    assert f"http://127.0.0.1:{exposed}/" in health
    compile(json.loads(health.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")


def test_the_container_gets_what_the_wheel_is_made_of():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {name for rest in all_of("COPY")[:2] for name in shlex.split(rest)[:-1]}
    assert copied == let_in and all((ROOT / name).exists() for name in copied)
    assert {"README.md", *PROJECT["license-files"], "pyproject.toml"} < copied
    [extra] = re.findall(r"whl\)\[(\w+)\]", " ".join(all_of("RUN")))
    assert extra in PROJECT["optional-dependencies"]
