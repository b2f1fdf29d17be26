"""What is compared is the same work, and ends: the loop, the usual one, the model alone, and a command's start."""

from pathlib import Path

import pytest
import torch

from mixersweep.bench.loader import some_images
from mixersweep.bench.train import FirstStep, ModelAlone, Ours, Theirs, cifar_run, import_torch, write_data
from mixersweep.compose import config_of
from mixersweep.data.splits import open_splits

CPU = torch.device("cpu")


def test_all_train_the_network_that_they_are_said_to() -> None:
    run = cifar_run()
    assert (run.config.model.name, run.architecture.tokens, run.architecture.channels) == ("s_mixer", 32, 32)
    epoch, alone = Theirs(130)(CPU), ModelAlone(130)(CPU)
    for _ in range(2):
        loss, accuracy = epoch()
        assert 2 < loss < 4  # about log 10
        assert 0 <= accuracy < 0.5
        alone()


def test_an_epoch_of_ours_is_one_with_its_checkpoint_and_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    epoch = Ours(130)(CPU)
    assert list(tmp_path.iterdir()) == []
    for number in (1, 2, 3):
        epoch()
        (rows,) = tmp_path.glob("*/*/metrics.jsonl")
        assert len(rows.read_text().splitlines()) == number
        assert (rows.parent / "checkpoint.pt").exists()
    assert capsys.readouterr() == ("", "")
    del epoch
    assert list(tmp_path.iterdir()) == []


def test_the_data_are_of_cifars_kind(tmp_path: Path) -> None:
    splits = open_splits(config_of(["data=cifar10", "validation=0", *write_data(tmp_path, 300, 40)]), CPU)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (300, 0, 40)
    ((images, labels),) = splits.test.batches(40, None, None)
    assert images.shape == (40, 3, 32, 32)
    assert labels.tolist() == some_images(40).labels.tolist()


def test_a_start_ends_at_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = FirstStep(1000)(CPU)
    for number in (1, 2):
        start()
        assert len([*tmp_path.glob("*/runs*/*/checkpoint.pt")]) == number
    assert not any(path.read_bytes() for path in tmp_path.glob("*/runs*/*/metrics.jsonl"))
    del start
    assert list(tmp_path.iterdir()) == []
    import_torch(CPU)()
