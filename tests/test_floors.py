"""The house stands on its floors: an import goes down, or stays on its floor without a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mixersweep"
FLOORS = {
    "errors": 0,
    "seeds": 0,
    "paths": 0,
    "processor": 0,
    "kinds": 0,
    "budget": 0,
    "families": 0,
    "config": 0,
    "layers": 0,
    "runs": 0,
    "models": 1,
    "data": 1,
    "figures": 1,
    "tracking": 1,
    "compose": 1,
    "training": 2,
    "bench": 3,
    "report": 3,
    "analysis": 3,
    "sweeps": 3,
    "completer": 4,
    "api": 4,
    "cli": 4,
    "__main__": 4,
    "__init__": 5,
}
BESIDE = {
    ("config", "budget"),
    ("config", "families"),
    ("config", "kinds"),
    ("families", "budget"),
    ("families", "kinds"),
    ("families", "layers"),
    ("runs", "families"),
    ("runs", "budget"),
    ("runs", "config"),
    ("seeds", "config"),
    ("layers", "processor"),
    ("analysis", "report"),
    ("analysis", "bench"),
    ("bench", "sweeps"),
    ("cli", "completer"),
    ("__main__", "cli"),
}
"""The imports between rooms of one floor; ``errors`` and ``paths`` are open to all."""


def imports() -> list[tuple[str, str, str]]:
    """(file, its room, the room it imports) for every import of the package by itself."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixersweep"):
                parts = (node.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                found += [(str(path.relative_to(PACKAGE)), room, name) for name in names if name in FLOORS]
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize(("file", "room", "imported"), imports())
def test_an_import_goes_down(file: str, room: str, imported: str) -> None:
    allowed = FLOORS[imported] < FLOORS[room] or imported in (room, "errors", "paths")
    assert allowed or (room, imported) in BESIDE, f"{file} imports {imported}, which is no floor below"
    assert (imported, room) not in BESIDE, f"{file} closes a circle"
