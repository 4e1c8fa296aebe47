"""What a public host runs: the Makefile's targets, on the versions that the package claims."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(path):
    return path.read_text(encoding="utf-8")


def versions(file):
    lines = text(ROOT / file).splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize(
    "path",
    [
        *WORKFLOWS,
        *sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")),
        ROOT / ".pre-commit-config.yaml",
    ],
    ids=lambda path: path.name,
)
def test_files_of_the_host_parse(path):
    found = yaml.safe_load(text(path))
    assert isinstance(found, dict)
    if path in WORKFLOWS:
        for job in found["jobs"].values():
            assert "timeout-minutes" in job
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    elif "body" in found:
        fields = [field for field in found["body"] if field["type"] != "markdown"]
        assert {"name", "description"} <= set(found)
        assert all("id" in f for f in fields)


def test_workflows_call_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.M))
    called = set()
    for path in WORKFLOWS:
        called |= set(re.findall(r"run: make ([a-z-]+)", text(path)))
        called |= set(re.findall(r"^\s+target: ([a-z-]+)", text(path), re.M))
    assert called <= targets, called - targets
    assert called >= {"lint", "test", "test-min", "test-slow", "docs", "dist-check"}


def test_what_is_claimed_is_tested():
    """The Pythons of the classifiers are in the matrix; the oldest with the oldest versions."""
    jobs = re.split(r"\n\s+- (?=python:)", text(GITHUB / "workflows" / "ci.yml"))[1:]
    found = {}
    for job in jobs:
        job = job.split("steps:")[0]
        version, target = (
            re.search(p, job).group(1) for p in (r'python: "([\d.]+)"', r"target: ([\w-]+)")
        )
        found.setdefault("trial" if "trial: true" in job else target, set()).add(version)
    claimed = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert claimed
    assert found["test"] == claimed
    assert found["test-min"] == {min(claimed, key=lambda v: int(v.split(".")[1]))}
    assert PROJECT["requires-python"] == ">=" + next(iter(found["test-min"]))
    floors = {re.split(r"[>\[]", d)[0]: d.rsplit(">=", 1)[1] for d in PROJECT["dependencies"]}
    oldest = versions("constraints-min.txt")
    for name, floor in floors.items():
        assert oldest[name].startswith(floor), f"{name}: {floor} is claimed, {oldest[name]} tested"


def test_pre_commit_has_the_versions_of_the_constraints():
    config = text(ROOT / ".pre-commit-config.yaml")
    assert f"rev: v{versions('constraints.txt')['ruff']}\n" in config
    assert (
        "entry: .venv/bin/mypy\n" in config
    )  # that of constraints.txt, as `make lint` installs it


def test_a_release_is_one_version():
    """The citation has the version of the package, and the changelog and the policy know it."""
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in text(ROOT / "CITATION.cff")
    assert f"## [{version}]" in text(ROOT / "CHANGELOG.md")
    assert f"| {version.rsplit('.', 1)[0]} | yes |" in text(ROOT / "SECURITY.md")
