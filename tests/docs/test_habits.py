"""The habits of the repository: one version, one set of tools, and nothing else at the top level."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

import mixersweep

ROOT = Path(__file__).resolve().parents[2]


def loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (
        project["tool"]["hatch"]["version"]["path"] == "mixersweep/__init__.py" and "version" not in project["project"]
    )
    assert loaded("CITATION.cff")["version"] == mixersweep.__version__


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = loaded("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert all({"type", "title", "authors"} <= paper.keys() for paper in citation["references"])


def test_hooks_and_ci_run_the_same_tools() -> None:
    """Those of the environment that scripts/test makes, so that there is one version of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tools = {re.split(r"[>=\[]", text)[0] for text in project["project"]["optional-dependencies"]["dev"]}
    hooks = [hook for repo in loaded(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    lines = (ROOT / "scripts" / "test").read_text().splitlines()
    for hook in hooks:
        command = hook["entry"].removeprefix(".venv/bin/")
        assert hook["language"] == "system" and command.split()[0] in tools
        assert any(line in (command, f"{command} .") for line in lines), command
    config = str(ROOT / ".pre-commit-config.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", config], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_workflow_calls_the_readmes_command() -> None:
    workflow = loaded(".github/workflows/test.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert "scripts/test" in [step.get("run") for step in steps]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f">={min(workflow['jobs']['test']['strategy']['matrix']['python'])}" == wanted.rpartition(".")[0]


def test_issue_forms_ask_something() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        assert all(part["type"] in ("textarea", "input", "dropdown", "markdown") for part in form["body"])
        assert len({part["id"] for part in form["body"]}) == len(form["body"])


def test_the_top_level_has_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # an unpacked archive
        return
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    folders = {"configs", "mixersweep", "scripts", "tests", "docs"}
    assert {name for name in top if not name.startswith(".")} == {
        *folders, "pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"
    }  # fmt: skip
