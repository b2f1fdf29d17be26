"""``mixersweep wandb workspace`` with the real package against a server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.speed import HANGS
from tests.tracking.loopback import Loopback
from tests.tracking.training import KEY


def workspace(tmp_path: Path, *arguments: str, without: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules.update({{name: None for name in {without.split()!r}}})\n{before}\n"
    code += "from mixersweep.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "wandb", "workspace", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert KEY not in done.stdout + done.stderr
    return done


def spec(view: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = json.loads(view["spec"])["section"]
    return section


def test_a_view_with_sections_grouped_by_model_and_width(tmp_path: Path, server: Loopback) -> None:
    done = workspace(tmp_path, "--project", "mine", "--experiment", "fig4_width", "--experiment", "fig5_width")
    assert done.returncode == 0, done.stderr
    (view,) = server.views.values()
    assert done.stdout == f"{server.url}/me/mine?nw={view['name'].removeprefix('nw-').removesuffix('-v')}\n"
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "mine", "project-view")
    assert view["displayName"] == "effective width against accuracy: fig4_width, fig5_width"
    found = spec(view)
    sections = {section["name"]: section["panels"] for section in found["panelBankConfig"]["sections"]}
    assert list(sections) == ["report", "accuracy", "loss", "structure", "speed"]
    assert all(sections.values())
    assert "figures/width_vs_accuracy" in json.dumps(sections["report"])
    (runs,) = found["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("config", "model.value"),
        ("config", "width.value"),
    ]
    filters = json.dumps(runs["filters"])
    assert all(word in filters for word in ("experiment", "fig4_width", "fig5_width", "IN"))
    assert found["settings"]["xAxis"] == "epoch"

    open_to_all = workspace(tmp_path, "--project", "mine", "--entity", "us")
    assert open_to_all.returncode == 0
    everything = [*server.views.values()][-1]
    assert (everything["entityName"], everything["displayName"]) == ("us", "effective width against accuracy")
    assert "fig4_width" not in everything["spec"]


def test_a_view_is_changed_by_its_url(tmp_path: Path, server: Loopback) -> None:
    first = workspace(tmp_path)
    again = workspace(tmp_path, "--experiment", "fig6_shape", "--view", first.stdout.strip())
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    (view,) = server.views.values()
    assert "fig6_shape" in view["spec"]


def test_a_view_is_never_named_so_that_its_url_opens_another(tmp_path: Path, server: Loopback) -> None:
    unlucky = "import wandb.sdk.lib.runid as runid; runid.generate_id = lambda length=8: 'nw'.rjust(length, 'a')"
    first = workspace(tmp_path, before=unlucky)
    assert first.returncode == 0, first.stderr
    (view,) = server.views.values()
    assert first.stdout.endswith(f"?nw={view['name'].removeprefix('nw-').removesuffix('-v')}\n")
    again = workspace(tmp_path, "--view", first.stdout.strip(), before=unlucky)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert len(server.views) == 1


def test_without_the_package_or_a_key_it_is_one_line(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = workspace(tmp_path, without="wandb_workspaces")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == (
        "mixersweep: error: a workspace needs wandb-workspaces: pip install 'mixersweep[workspace]'\n"
    )
    monkeypatch.delenv("WANDB_API_KEY")
    without = workspace(tmp_path)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.endswith("there is no W&B API key here: `wandb login`, or WANDB_API_KEY\n")
    assert server.seen == []
