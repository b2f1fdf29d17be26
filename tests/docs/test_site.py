"""The pages as they are committed: generated parts are current, links lead somewhere, and they build as a site."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mixersweep
from tests.docs.pages import PAGES, ROOT, name_of


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)


def test_settings_and_verbs_are_those_of_the_program() -> None:
    done = run("scripts/docs_pages.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_out_of_date_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "docs_pages.py").write_text((ROOT / "scripts" / "docs_pages.py").read_text())
    for name in ("settings", "verbs"):
        text = (ROOT / "docs" / f"{name}.md").read_text()
        (tmp_path / "docs" / f"{name}.md").write_text(text.replace("| `--watch` |", "| `--wtach` |"))
    command = (str(tmp_path / "scripts" / "docs_pages.py"),)
    checked = run(*command, "--check")
    assert checked.returncode == 1 and checked.stdout == "docs/verbs.md: out of date; renew it with scripts/docs\n"
    assert run(*command).stdout == "docs/verbs.md: renewed\n"
    assert (tmp_path / "docs" / "verbs.md").read_text() == (ROOT / "docs" / "verbs.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_the_plain_pages_lead_somewhere(page: Path) -> None:
    """In the checkout too, where no site is built: files, and headings as GitHub and Sphinx name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        assert found.exists() and found.is_relative_to(ROOT), f"{name_of(page)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}, target


def test_the_readme_is_a_welcome() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_front_door_is_documented_whole() -> None:
    listed = re.findall(r"^\.\. auto\w+:: mixersweep\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(mixersweep.__all__)


@pytest.mark.slow
def test_the_pages_build_as_a_site_without_a_warning(tmp_path: Path) -> None:
    done = run("-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs"):
            assert (tmp_path / "site" / page.relative_to(ROOT / "docs")).with_suffix(".html").exists()
    assert "mixersweep.Findings" in (tmp_path / "site" / "api.html").read_text()
