"""``mixersweep report`` and ``diff`` through the front door: files, figures, texts, and how they refuse."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet
import pytest

from mixersweep.cli import main
from mixersweep.report import Report, build
from mixersweep.report.axes import X_AXES, Y_AXES
from mixersweep.report.figures import Artist, NotShown
from mixersweep.report.published import curves, published
from mixersweep.runs.record import KEYS
from tests.report.sweeps import networks, write_sweep
from tests.runs.synthetic import seeded, write_many, write_run
from tests.speed import here

Printed = tuple[int, str, str]
FIGURES = (
    "width_vs_accuracy",
    "channels_over_tokens_vs_accuracy",
    "parameters_vs_accuracy",
    "connections_vs_accuracy",
    "depth_vs_accuracy",
    "training_curves",
    "learning_rate_sensitivity",
    "flops_per_image_vs_accuracy",
    "seconds_vs_accuracy",
)


def known(model: str, width: int, seed: int) -> float:
    return {"s_mixer": 0.8, "rp_s_mixer": 0.78, "sw_mlp": 0.65}[model] + 0.05 * np.log2(width / 1024)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a figure can be of: widths, both branches, depths, learning rates, both budgets, failures."""
    runs = tmp_path_factory.mktemp("swept")
    write_sweep(runs, known, seeds=(0, 1, 2))
    write_sweep(runs, known, models=("s_mixer",), widths=(700,), seeds=(0, 1, 2), settings=["branch=wide"])
    write_sweep(runs, known, models=("s_mixer",), widths=(1024,), seeds=(0, 1), settings=["depth=2"])
    write_sweep(runs, known, models=("s_mixer", "sw_mlp"), widths=(900,), seeds=(0,), settings=["optim.lr=0.3"])
    write_sweep(
        runs, lambda *_: 0.7, models=("s_mixer",), widths=(700, 1024), seeds=(0, 1),
        settings=["budget=parameters", "weights=1024"],
    )  # fmt: skip
    lost = next(iter(networks(("sw_mlp",), (900,), ["optim.lr=3.0"]).values()))
    write_run(runs, lost, "diverged", epoch=1, error="train_loss is nan")
    return runs


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model at two widths."""
    runs = tmp_path_factory.mktemp("small")
    write_sweep(runs, known, models=("sw_mlp",), widths=(900, 1024), seeds=(0, 1))
    return runs


@pytest.fixture(scope="module")
def made(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of it, with the published curves."""
    return build([swept], out=tmp_path_factory.mktemp("made"), published=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Printed]:
    """The command in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Printed:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_a_report_is_a_folder_of_whole_files(
    swept: Path, made: Report, run: Callable[..., Printed], tmp_path: Path
) -> None:
    code, out, err = run("report", swept, "--out", "made/here")
    assert code == 0
    page = Path(out.strip())
    assert out.count("\n") == 1
    assert page == Path("made/here/report.html")
    files = {path.name for path in page.parent.iterdir()}
    expected = {"runs.csv", "runs.parquet", "statistics.json", "report.md", "report.tex", "report.html"}
    assert files >= expected | {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert not any(name.startswith(".") for name in files)
    statistics = json.loads((page.parent / "statistics.json").read_text())
    assert statistics["answer"] in err
    assert statistics["answer"] == made.answer
    assert "1 diverged" in err


def test_the_table_holds_every_run_under_the_keys_of_the_record(swept: Path, made: Report) -> None:
    assert made.page is not None
    out = made.page.parent
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    directories = [path for path in swept.iterdir() if path.is_dir()]
    assert len(rows) == len(directories) == len(made.tables["runs"])
    assert tuple(rows[0])[: len(KEYS)] == KEYS
    stored = {
        path.name: json.loads((path / "result.json").read_text())
        for path in directories
        if (path / "result.json").exists()
    }
    for row in rows:
        if row["state"] == "completed":
            record = stored[row["name"]]
            assert float(row["test_accuracy"]) == record["test_accuracy"]
            assert json.loads(row["overrides"]) == record["overrides"]
            assert row["tokens"] == ("" if record["tokens"] is None else str(record["tokens"]))
        else:
            assert (row["state"], row["test_accuracy"], row["error"]) == ("diverged", "", "train_loss is nan")
    parquet = pyarrow.parquet.read_table(out / "runs.parquet").to_pylist()
    assert [row["name"] for row in parquet] == [row["name"] for row in rows]
    assert list(parquet[0]) == list(rows[0])
    assert {type(row["test_accuracy"]) for row in parquet} == {float, type(None)}


def test_figures_are_pictures_that_say_what_they_show(made: Report) -> None:
    assert set(FIGURES) <= set(made.figures)
    assert made.left_out == {}
    for paths in made.figures.values():
        assert paths["png"].read_bytes().startswith(b"\x89PNG")
        root = ElementTree.parse(paths["svg"]).getroot()
        assert root.tag.endswith("svg")
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 20
    said = made.captions
    assert "bands are 95% intervals" in said["width_vs_accuracy"]
    assert "a Mixer's width determines its C / S" in said["channels_over_tokens_vs_accuracy"]
    assert "a cross at the bottom is a run that diverged" in said["learning_rate_sensitivity"]


def test_the_same_runs_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    once, again = (build([small], out=tmp_path / name) for name in ("once", "again"))
    assert once.figures
    for name, paths in once.figures.items():
        for kind in ("svg", "png"):
            assert again.figures[name][kind].read_bytes() == paths[kind].read_bytes(), name
    for name in ("runs.csv", "runs.parquet", "statistics.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_main_figure_takes_other_axes(tmp_path: Path) -> None:
    for depth in (1, 2):
        settings = [f"depth={depth}"]
        write_sweep(tmp_path, known, models=("sw_mlp",), widths=(900,), seeds=(0, 1), settings=settings)
    report = build([tmp_path], out=tmp_path / "out", x="depth", y="error")
    assert next(iter(report.figures)) == "depth_vs_error"
    assert report.captions["depth_vs_error"].startswith("Test error in %")


@pytest.mark.parametrize("x", [name for name in X_AXES if name not in ("weights", "expansion", "epochs", "patch_size")])
def test_every_axis_has_values_or_a_reason(made: Report, x: str) -> None:
    artist = Artist(made.all_statistics, Y_AXES["accuracy"])
    try:
        lines = artist.lines(x)
    except NotShown as reason:
        assert re.fullmatch(rf"(all compared runs have|none of the compared runs has) {x}.*", str(reason))
    else:
        assert all(np.isfinite(value) for points in lines.values() for value, _ in points)
        assert len({value for points in lines.values() for value, _ in points}) > 1


def test_what_the_table_does_not_support_is_left_out_with_the_reason(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", known, models=("sw_mlp",), widths=(900,), seeds=(0, 1))
    report = build([tmp_path / "runs"], out=tmp_path / "out", published=True, x="seconds")
    assert report.left_out["depth_vs_accuracy"] == "all compared runs have depth=4"
    assert report.left_out["learning_rate_sensitivity"] == "every width was trained at one learning rate"
    assert report.left_out["connections_vs_accuracy"] == "no run was made with budget=parameters"
    assert "none of the compared runs has channels_over_tokens" in report.left_out["channels_over_tokens_vs_accuracy"]
    assert "no curve of these models that has seconds" in report.left_out["published"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in report.left_out)
    assert "so there is no answer on width" in report.answer


def test_published_curves_are_named_and_converted(made: Report) -> None:
    caption = made.captions["width_vs_accuracy"]
    assert "Dashed and hollow: published curves on cifar10; the runs here are on fashion_mnist_10k." in caption
    main_ = made.all_statistics[0]
    series = {(s.figure, s.variant): s for s in published(main_.comparison, "width", "accuracy")}
    assert series["5", "s_mixer"].x == [2768, 3616, 3984]
    assert series["5", "s_mixer"].y == pytest.approx([70.2, 72.7, 73.9])
    assert series["4-left", "sw_mlp"].x[0] == 2880 / 2  # the figure plots the hidden width
    assert series["S2", "sw_mlp"].x[0] == 2160 / 4
    hidden = {(s.figure, s.variant): s for s in published(main_.comparison, "hidden_width", "error")}
    assert hidden["4-left", "sw_mlp"].x[0] == 2880
    assert hidden["4-left", "sw_mlp"].y[0] == pytest.approx(35.75)
    assert published(main_.comparison, "width", "train_loss") == []
    assert len(curves()) > 240


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("count=real connections=2**18", "262,144 connections a layer with first layer and skip: Ω "),
        ("budget=flops flops=4000000", "4,000,000 FLOPs an image: Ω "),
        ("connections=2**18", None),
    ],
)
def test_beside_published_curves_another_budget_is_named(tmp_path: Path, budget: str, said: str | None) -> None:
    """The nearest published curves are those of as many connections by the papers' own count."""
    sizes = {"models": ("s_mixer", "sw_mlp"), "widths": (2320, 2880)}
    write_sweep(tmp_path, known, **sizes, seeds=(0, 1), settings=["depth=2", *budget.split()])
    made = build([tmp_path], out=tmp_path / "out", published=True)
    caption = made.captions["width_vs_accuracy"]
    assert "published curves on cifar10" in caption
    main = made.all_statistics[0].comparison
    shown = {s.label for s in published(main, "width", "accuracy") if s.figure == "5"}
    assert shown == {f"published {model}, cifar10, Ω 262,144, Fig. 5" for model in ("s_mixer", "sw_mlp")}
    assert ("The papers hold Ω fixed" in caption) is (said is not None)
    if said:
        own = [row["connections"] for row in main.rows]
        assert f"the runs here hold {said}{min(own):,.0f} to {max(own):,.0f}." in caption


def test_text_for_a_paper(swept: Path, run: Callable[..., Printed], tmp_path: Path) -> None:
    code, markdown, _ = run("report", swept, "--markdown")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert "| model A | model B |" in markdown
    assert "| s_mixer | sw_mlp |" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(line.count("|") == tables[0].count("|") for line in tables[:5])
    code, latex, _ = run("report", swept, "--latex")
    assert code == 0
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") > 2
    assert r"rp\_s\_mixer" in latex
    assert not any("_" in line.replace(r"\_", "") for line in latex.splitlines() if not line.startswith("%"))
    code, terminal, _ = run("report", swept, "--terminal")
    assert code == 0
    assert "effective width m" in terminal
    assert "o s_mixer" in terminal
    assert "sw_mlp" in terminal
    assert "\x1b[" not in terminal
    assert max(map(len, terminal.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "nowhere"], 2, "nowhere: no such directory"),
        (["report", "empty"], 2, "empty: holds no run directories"),
        (["report", "RUNS", "--where", "width>1e9"], 2, "none of the"),
        (["report", "RUNS", "--where", "widht>1"], 2, "the nearest is width"),
        (["report", "RUNS", "--x", "widht"], 2, "the nearest is width"),
        (["report", "RUNS", "--y", "accurracy"], 2, "the nearest is accuracy"),
        (["report", "RUNS", "--where", "state=diverged"], 1, "no run is completed yet (1 diverged)"),
        (["diff", "RUNS"], 2, "diff takes two runs or more"),
        (["diff", "RUNS", "nothing"], 2, "is no run directory"),
    ],
)
def test_mistakes_are_one_line(
    swept: Path, run: Callable[..., Printed], tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    found, out, err = run(*[str(swept) if argument == "RUNS" else argument for argument in arguments])
    assert found == code
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_where_chooses_the_runs_and_is_said(swept: Path, run: Callable[..., Printed]) -> None:
    code, out, err = run("report", swept, "--where", "model=sw_mlp and width>=900 and shape=null", "--markdown")
    assert code == 0, err
    assert "s_mixer |" not in out
    assert "--where 'model=sw_mlp and width>=900 and shape=null'" in out


def test_diff_shows_what_differs(swept: Path, run: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = sorted(path for path in swept.iterdir() if path.name.startswith("s_mixer-w1024"))[:2]
    code, out, _ = run("diff", one, other, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["runs"] == [one.name, other.name]
    records = [json.loads((path / "result.json").read_text()) for path in (one, other)]
    assert found["results"]["test_accuracy"] == [record["test_accuracy"] for record in records]
    assert set(found["settings"]) <= {"seed", "depth"}
    assert found["settings"]
    monkeypatch.setenv("MIXERSWEEP_RUNS", str(swept))
    code, out, _ = run("diff", one.name, other.name[:-3])
    assert code == 0
    assert one.name in out
    assert "test_accuracy" in out
    code, _, err = run("diff", one.name, "s_mixer")
    assert code == 2
    assert "have this in their name" in err


def test_neither_torch_nor_wandb_is_imported(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mixersweep.cli import main\n"
        f"code = main(['report', {str(small)!r}, '--out', 'out'])\n"
        "assert not {'torch', 'wandb', 'hydra'} & set(sys.modules), 'heavy'\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_unwritable_place_is_refused(swept: Path, run: Callable[..., Printed], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = run("report", swept, "--out", "file/here")
    assert (code, out) == (2, "")
    assert "--out file/here: cannot be written" in err


@pytest.mark.slow
def test_ten_thousand_runs_are_collected_in_ten_seconds(tmp_path: Path) -> None:
    states = ("completed",) * 8 + ("failed", "planned")
    write_many(tmp_path, 10_000, lambda number: states[number % 10])
    from mixersweep.report.table import collect

    began = time.process_time()  # of one thread, whatever else the machine does
    table = collect([tmp_path])
    seconds = time.process_time() - began
    assert len(table.rows) == 10_000
    assert table.states == {"completed": 8000, "failed": 1000, "planned": 1000}
    assert seconds < here(10), seconds


@pytest.mark.slow
def test_a_sweep_that_was_really_trained(tmp_path: Path) -> None:
    """Two models, two widths, two seeds: trained, reported, and the sentences agree with the records."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MIXERSWEEP_RUNS": str(tmp_path / "runs")}
    asked = "model=s_mixer,sw_mlp width=200,256 seed=0,1 epochs=2 depth=1 connections=2**12 match=mixer tracking=none"
    command = [sys.executable, "-m", "mixersweep"]
    subprocess.run([*command, "train", "-m", *asked.split(), "threads=1"], check=True, env=environment, cwd=tmp_path)
    done = subprocess.run(
        [*command, "report"], check=True, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "report/report.html"
    statistics = json.loads((tmp_path / "report" / "statistics.json").read_text())
    (one,) = statistics["comparisons"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert one["compared_runs"] == len(records) == 8
    assert one["test_images"] == 2000
    means = {m: np.mean([r["test_accuracy"] for r in records if r["model"] == m]) for m in ("s_mixer", "sw_mlp")}
    (pair,) = one["pairs"]
    assert pair["difference"] == pytest.approx(means["s_mixer"] - means["sw_mlp"])
    assert (pair["pairs"], pair["seeds"], pair["images"]) == (4, 2, 2000)


def test_figures_of_one_model_with_many_seeds(tmp_path: Path) -> None:
    first = next(iter(networks(("s_mixer",), (1024,)).values()))
    for seed in range(3):
        write_run(tmp_path / "runs", seeded(first, seed))
    report = build([tmp_path / "runs"], out=tmp_path / "out")
    assert "All runs are of one model (s_mixer)" in report.answer
    assert "training_curves" in report.figures
    assert report.left_out["width_vs_accuracy"] == "all compared runs have width=1024"
