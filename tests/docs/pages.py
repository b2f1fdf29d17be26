"""What the pages say: the commands of their console blocks, and the changes of the program in their diffs."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """The page as people call it."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The words of every command behind a ``$``, continued lines joined, comments left out, ``&&`` taken apart."""
    found: list[list[str]] = []
    for block in blocks(page, "console"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if not line.startswith("$ "):
                continue
            words: list[str] = []
            for word in [*shlex.split(line[2:], comments=True), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    found.append(words)
                    words = []
    return found


def apply(page: Path, program: Path) -> None:
    """Make the changes of a page's diffs in a copy of the program: what stands there must be there exactly once."""
    for block in blocks(page, "diff"):
        heading, *lines = block.splitlines()
        path = program / heading.removeprefix("# ")
        for hunk in re.split(r"^\.\.\.\n", "\n".join(lines) + "\n", flags=re.MULTILINE):
            text, changed = path.read_text(), [(line[:1], line[1:]) for line in hunk.splitlines()]
            old = "".join(f"{rest}\n" for sign, rest in changed if sign != "+")
            new = "".join(f"{rest}\n" for sign, rest in changed if sign != "-")
            assert text.count(old) == 1, f"{name_of(page)}: {path.name} has {text.count(old)} times:\n{old}"
            path.write_text(text.replace(old, new))
