"""What a processor is slow in, told at the start of a run and in a plan."""

from pathlib import Path

import pytest

from mixersweep import processor
from mixersweep.cli import main
from tests.training.small import DIGITS, SIZES, directory, finished

SKYLAKE = """processor\t: 0
model name\t: a CPU
flags\t\t: fpu sse4_2 avx2 avx512f avx512bw

processor\t: 1
flags\t\t: fpu sse4_2 avx2 avx512f avx512bw amx_bf16
"""
GRACE = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp sve bf16\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel says what the processor can do."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", path)
    return path


@pytest.mark.parametrize(
    ("text", "slow"),
    [
        (SKYLAKE, {"bf16", "fp16"}),
        (SKYLAKE.replace("avx512bw\n", "avx512bw avx512_bf16\n"), {"fp16"}),
        (SKYLAKE.replace("avx512bw\n", "amx_bf16 amx_fp16\n"), set()),
        (GRACE, set()),
        (GRACE.replace(" bf16", ""), {"bf16"}),
        ("processor\t: 0\n", set()),
        (None, set()),
    ],
    ids=["avx512", "avx512_bf16", "amx", "arm", "older arm", "says nothing", "no such file"],
)
def test_a_format_is_slow_where_no_instructions_multiply_in_it(cpuinfo: Path, text: str | None, slow: set[str]) -> None:
    if text is not None:
        cpuinfo.write_text(text)
    told = {precision: processor.slow_precision_warning(precision) for precision in ("fp32", "tf32", "bf16", "fp16")}
    assert {precision for precision, reason in told.items() if reason is not None} == slow
    for precision in slow:
        assert (told[precision] or "").startswith(f"precision={precision}: this CPU has no instructions for it (")


@pytest.mark.parametrize(
    ("text", "precision", "count"), [(SKYLAKE, "bf16", 1), (SKYLAKE, "fp32", 0), (GRACE, "bf16", 0)]
)
def test_a_run_says_it_at_its_start(
    cpuinfo: Path, text: str, precision: str, count: int, tmp_path: Path, digits: Path
) -> None:
    cpuinfo.write_text(text)
    said: list[str] = []
    finished(directory(tmp_path, *DIGITS, *SIZES, "epochs=1", f"precision={precision}", f"data_dir={digits}"), said)
    assert len([line for line in said if line.startswith("note: precision=bf16: this CPU has no instr")]) == count


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["precision=bf16,fp32,fp16", "device=cpu"], ["bf16", "fp16"]),
        (["precision=bf16", "device=cpu", "seed=0,1,2"], ["bf16"]),
        (["precision=bf16"], ["bf16"]),
        (["precision=fp32"], []),
        (["precision=bf16", "device=cuda"], []),
        (["precision=bf16", "seed=0,1", "hydra/launcher=slurm"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_plan_says_it_of_runs_on_this_machine(
    cpuinfo: Path,
    overrides: list[str],
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cpuinfo.write_text(SKYLAKE)
    monkeypatch.setattr("mixersweep.sweeps.launchers.local._all_gpus", lambda: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert main(["plan", f"runs_dir={tmp_path}", *overrides]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "no instructions" in line]
    assert [note.partition("precision=")[2].partition(":")[0] for note in notes] == told


def test_where_a_gpu_is_taken_the_cpu_does_not_matter(
    cpuinfo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpuinfo.write_text(SKYLAKE)
    monkeypatch.setattr("mixersweep.sweeps.launchers.local._all_gpus", lambda: ["0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert main(["plan", f"runs_dir={tmp_path}", "precision=bf16"]) == 0
    assert "no instructions" not in capsys.readouterr().err
