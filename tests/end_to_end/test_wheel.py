"""The built wheel works far from any checkout: configs and the default data are inside."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked as an installer does."""
    built, unpacked = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = built.glob("mixersweep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_wheel_holds_the_package_and_its_configs_and_nothing_else(unpacked: Path) -> None:
    tops = {path.name.partition("-")[0] for path in unpacked.iterdir()}
    assert tops == {"mixersweep"}
    configs = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    shipped = unpacked / "mixersweep" / "configs"
    assert {str(path.relative_to(shipped)) for path in shipped.rglob("*.yaml")} == configs
    for other in ("data/FASHION_MNIST_LICENSE", "layers/nonzeros.c", "py.typed"):
        assert (unpacked / "mixersweep" / other).exists()


def test_the_wheel_trains_from_an_empty_directory(unpacked: Path, tmp_path: Path) -> None:
    """Only this package comes from the wheel here; what it needs is what this environment has."""
    code = "import sys, mixersweep, mixersweep.cli; print(mixersweep.__file__, file=sys.stderr)\n"
    code += "sys.exit(mixersweep.cli.main(sys.argv[1:]))"
    small = ["connections=1000", "depth=1", "epochs=1", "batch_size=1500", "threads=1", "tracking=none"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *small], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(unpacked) in done.stderr.splitlines()[0]
    assert json.loads(Path(done.stdout.strip()).read_text())["git_commit"] is None
