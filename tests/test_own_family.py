"""A family is one file, one YAML and one line: the example of the docs, added to a copy of the program and used."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import new_home
from tests.speed import HANGS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "family"
LINE = '    "band_mlp": _found("band_mlp.BandMLP"),\n'
TINY = ["data=digits", "connections=1000", "depth=2", "epochs=2", "batch_size=300", "threads=1", "tracking=none"]
SWEEP = ["model=sw_mlp,band_mlp", "width=100,200", "seed=0,1", "model.head=signed_groups", *TINY]


class Copy:
    """A checkout of one's own, and the command in it."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.folder, self.data_dir = folder, data_dir
        for name in ("mixersweep", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(EXAMPLE / "band_mlp.py", folder / "mixersweep" / "families")
        shutil.copy(EXAMPLE / "band_mlp.yaml", folder / "configs" / "model")
        registry = folder / "mixersweep" / "families" / "__init__.py"
        after = '    "sw_mlp": _found("mlps.SWMLP"),\n'
        assert after in registry.read_text()
        registry.write_text(registry.read_text().replace(after, after + LINE))

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**new_home(self.folder), "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __call__(self, *arguments: str) -> str:
        return self.python("-m", "mixersweep", *arguments)

    def json(self, *arguments: str) -> Any:
        return json.loads((self.folder / self(*arguments).strip()).read_text())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Copy:
    made = Copy(tmp_path_factory.mktemp("checkout"), digits)
    assert made.python("-c", "import mixersweep; print(mixersweep.__file__)").startswith(str(made.folder))
    return made


@pytest.fixture(scope="module")
def planned(copy: Copy) -> list[dict[str, Any]]:
    lines = copy("plan", "-m", "--json", *SWEEP, f"data_dir={copy.data_dir}").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trained(copy: Copy, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = copy("train", "-m", *SWEEP, f"data_dir={copy.data_dir}").splitlines()
    return [json.loads(Path(line).read_text()) for line in lines]


def test_it_is_planned_with_its_memory(planned: list[dict[str, Any]]) -> None:
    band, random = ([one for one in planned if one["model"] == model] for model in ("band_mlp", "sw_mlp"))
    assert [one["width"] for one in band] == [one["width"] for one in random] == [100, 100, 200, 200]
    for one, other in zip(band, random, strict=True):  # the same sizes, so the same cost
        same = ("connections", "parameters", "flops_per_image", "memory_bytes")
        assert [one[key] for key in same] == [other[key] for key in same]
        assert one["name"] != other["name"] and one["memory_bytes"] > 4 * one["parameters"]


def test_it_is_trained_as_planned(planned: list[dict[str, Any]], trained: list[dict[str, Any]]) -> None:
    assert [one["fingerprint"] for one in trained] == [one["fingerprint"] for one in planned]
    for one in trained:
        assert (one["epochs"], one["connections"]) == (2, 1000) and one["connections_drawn"] == 1000
        assert one["test_accuracy"] > 0.15  # of ten digits


def test_it_is_reported_in_its_order_with_its_own_look(copy: Copy, trained: list[dict[str, Any]]) -> None:
    copy("report", "runs", "--out", "report")
    page = (copy.folder / "report" / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert data["models"]["band_mlp"][0] == "#56b4e9"  # the palette's sky
    tables = (copy.folder / "report" / "report.md").read_text()
    assert tables.index("sw_mlp") < tables.index("band_mlp")  # as in the list of families, not in the alphabet


@pytest.mark.parametrize("verb", ["cka", "spectrum", "sparsity", "receptive_field", "effective", "cost", "landscape"])
def test_it_is_analysed(verb: str, copy: Copy, trained: list[dict[str, Any]]) -> None:
    found = json.dumps(copy.json("analyze", verb, "runs", "--out", verb, *MORE.get(verb, [])))
    assert "band_mlp" in found


MORE = {"cost": ["--no-measure"], "landscape": ["--draws", "1", "--images", "100"]}


def test_its_learning_rates_are_checked_over_widths(copy: Copy) -> None:
    settings = ["model=band_mlp", "match=mixer", "optim.lr_scaling=mup", "data=digits", f"data_dir={copy.data_dir}"]
    sizes = ["--sizes", "6,8", "--steps", "1", "--seeds", "2"]
    assert "band_mlp" in json.dumps(copy.json("analyze", "coordinates", *settings, *sizes, "--out", "coordinates"))


def test_a_family_that_leaves_something_out_is_refused_by_name(copy: Copy) -> None:
    code = (
        "from dataclasses import dataclass\nfrom typing import Literal\n"
        "from mixersweep.families.mlps import MLPFamily\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Bare(MLPFamily):\n    name: Literal['bare']\n\n"
        "values = dict(name='bare', head='pool', activation='gelu', norm_eps=1e-5, bias=True, hidden=False)\n"
        "try:\n    Bare(**values, layers_per_block=2)\nexcept TypeError as error:\n    print(error)\n"
    )
    said = copy.python("-c", code)
    assert all(word in said for word in ("Bare", "linear_map", "look", "structure")), said


def test_the_floors_hold_with_it(copy: Copy) -> None:
    (copy.folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_floors.py", copy.folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", copy.folder)
    out = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_floors.py")
    assert "failed" not in out and "passed" in out
