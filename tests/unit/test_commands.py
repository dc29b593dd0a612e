"""What a person, a commit, CI and GitHub call is the same: the targets of the Makefile."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pre_commit.clientlib import load_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def recipes() -> dict[str, list[str]]:
    """The commands of each target of the Makefile that has a description, variables unresolved."""
    found: dict[str, list[str]] = {}
    target = None
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([a-z-]+):.*## ", line):
            target = found.setdefault(match[1], [])
        elif line.startswith("\t") and target is not None:
            target.append(line.strip())
        else:
            target = None
    return found


def workflow() -> dict[str, Any]:
    read: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in read.items()}  # YAML 1.1


def test_a_commit_is_checked_as_make_lint_checks() -> None:
    config = load_config(ROOT / ".pre-commit-config.yaml")
    (local,) = config["repos"]
    assert local["repo"] == "local", "another repository would have to be fetched"
    entries = [hook["entry"] for hook in local["hooks"]]
    commands = [re.sub("^make ", "$(MAKE) ", e.replace(".venv/bin", "$(BIN)")) for e in entries]
    assert commands == recipes()["lint"]
    assert all(hook["pass_filenames"] is False for hook in local["hooks"])


def test_ci_calls_the_targets_that_there_are() -> None:
    called = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert called == ["lint", "test-all", "walkthrough", "docs"]
    steps = {name: targets(job) for name, job in workflow()["jobs"].items()}
    assert steps == {
        "audit": ["audit"],
        "soak": ["soak SEED=${{ github.run_number }}"],
        "check": ["lint", "test", "coverage", "test-long", "walkthrough", "docs"],
    }
    assert {*called, *steps["check"], "audit", "soak"} <= recipes().keys()


def targets(job: dict[str, Any]) -> list[str]:
    """The targets of the Makefile that a job calls, in order."""
    commands = [step["run"] for step in job["steps"] if "run" in step]
    return [line.removeprefix("make ") for line in commands if line.startswith("make ")]


def test_vulnerabilities_are_looked_up_without_a_push_too() -> None:
    (weekly,) = workflow()["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", weekly["cron"])
    assert workflow()["jobs"]["check"]["if"] == "github.event_name != 'schedule'"
    assert "--strict" in " ".join(recipes()["audit"]), "no answer is no clean bill"


def test_each_week_has_a_soak_of_its_own() -> None:
    assert workflow()["jobs"]["soak"]["if"] == "github.event_name == 'schedule'"
    assert "--seed $(SEED)" in " ".join(recipes()["soak"])


def test_the_workflow_can_be_started() -> None:
    read = workflow()
    assert read["on"].keys() == {"push", "pull_request", "schedule"}
    assert read["permissions"] == {"contents": "read"}
    jobs = read["jobs"].values()
    assert all(job["runs-on"] == "ubuntu-latest" for job in jobs)
    assert all(job["timeout-minutes"] <= 90 for job in jobs)
    for step in [step for job in jobs for step in job["steps"]]:
        assert len({"uses", "run"} & step.keys()) == 1
        assert step.keys() <= {"uses", "run", "with", "name", "env"}
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v0"))
    # every expression is closed and names what is there
    text = WORKFLOW.read_text(encoding="utf-8")
    expressions = re.findall(r"\$\{\{ ([\w.]+) \}\}", text)
    assert len(expressions) == text.count("${{") == text.count("}}")
    known = {f"matrix.{name}" for name in read["jobs"]["check"]["strategy"]["matrix"]}
    assert set(expressions) <= known | {"github.workflow", "github.ref", "github.run_number"}


def test_the_workflow_tries_every_python_from_the_oldest_on() -> None:
    tried = workflow()["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in tried), "3.10 unquoted would be 3.1"
    supported = SpecifierSet(PROJECT["requires-python"])
    assert tried == ["3.11", "3.12", "3.13"]
    assert all(version in supported for version in tried)
    assert "3.10" not in supported, "the oldest is tried"


def test_every_requirement_is_pinned_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in pairs}
    assert len(pins) == len(pairs)
    extras = PROJECT["optional-dependencies"].values()
    for line in chain(PROJECT["dependencies"], *extras):
        wanted = Requirement(line)
        if wanted.name == PROJECT["name"]:  # an extra that contains another one
            assert wanted.extras <= PROJECT["optional-dependencies"].keys()
            continue
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, line


def test_the_command_that_is_installed_is_there() -> None:
    import importlib

    module, _, function = PROJECT["scripts"]["gan-train"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_readme_names_targets_that_there_are() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
        assert named and named <= recipes().keys(), name
