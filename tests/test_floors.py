"""The house stands on its floors: an import goes down, or stays on its floor without a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mixersweep"
FLOORS = {
    "errors": 0,
    "seeds": 0,
    "paths": 0,
    "commit": 0,
    "processor": 0,
    "title": 0,
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
    ("runs", "budget"),
    ("runs", "config"),
    ("seeds", "config"),
    ("layers", "processor"),
    ("layers", "kinds"),
    ("analysis", "report"),
    ("analysis", "bench"),
    ("bench", "sweeps"),
    ("cli", "completer"),
    ("cli", "__init__"),
    ("__main__", "cli"),
}
"""The imports between rooms of one floor; ``errors`` and ``paths`` are open to all."""


def imports(package: Path = PACKAGE) -> list[tuple[str, str]]:
    """(module, the module it imports) of the package: at the top, within a function, or for types alone."""
    name = package.name
    files = {".".join((name, *path.relative_to(package).with_suffix("").parts)): path for path in package.rglob("*.py")}
    files = {module.removesuffix(".__init__"): path for module, path in sorted(files.items())}
    found = []
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == name:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [(module, each if each in files else str(node.module)) for each in whole]
            elif isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names if alias.name in files]
    return list(dict.fromkeys(found))


def room(module: str) -> str:
    """The first of its folders, or itself."""
    return (*module.split("."), "__init__")[1]


def circle(package: Path) -> list[str]:
    """Modules each of which imports the next, first and last the same; empty where there are none."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports(package):
        if module != imported:
            graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_has_a_floor() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize(("module", "imported"), imports())
def test_an_import_goes_down(module: str, imported: str) -> None:
    mine, other = room(module), room(imported)
    allowed = FLOORS[other] < FLOORS[mine] or other in (mine, "errors", "paths")
    assert allowed or (mine, other) in BESIDE, f"{module} imports {imported}, which is no floor below"
    assert (other, mine) not in BESIDE, f"{module} closes a circle"


def test_no_import_closes_a_circle() -> None:
    assert circle(PACKAGE) == []


def test_a_circle_is_found_wherever_its_imports_are(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "cellar").mkdir(parents=True)
    (package / "cellar" / "__init__.py").write_text("from house.attic import roof\n")
    (package / "attic.py").write_text("def roof():\n    import house.stairs\n")
    (package / "stairs.py").write_text("if TYPE_CHECKING:\n    from house import cellar\n")
    assert set(circle(package)) == {"house.cellar", "house.attic", "house.stairs"}
    (package / "attic.py").write_text("import house.attic\n")
    assert circle(package) == []
