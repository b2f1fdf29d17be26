"""The coordinate check: its statistics by hand, what it measures, the rules of width that it is for, and the verb."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixersweep.analysis.coordinates import FLAT, Watched, analyze, check, curves, slope, verdict
from mixersweep.cli import main
from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.models import build
from mixersweep.runs import Run, solve
from mixersweep.training.learner import Learner
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.parallel import World

CPU = torch.device("cpu")
SMALL = ("depth=1", "patch_size=8", "augment=none", "model.head=signed_groups", "model.readout_dimension=16")
PLAIN = ("optim=sgd", "optim.momentum=0", "optim.nesterov=false", "optim.weight_decay=0")
SQUARES = (8, 16, 32)


def run(*overrides: str) -> Run:
    return solve(config_of(list(overrides)))


def squares(*overrides: str) -> list[Run]:
    """Mixers of S = C, all with the skip W̃, and 16 patches."""
    shapes = [(f"tokens={size}", f"channels={size}", "model.skip_layer=always") for size in SQUARES]
    return [run(*SMALL, *overrides, *shape) for shape in shapes]


def test_a_power_law_has_its_exponent_and_a_tolerance_from_the_seeds_alone() -> None:
    x = [64, 256, 1024]
    exact = [[3 * width**-0.5] * 2 for width in x]
    assert slope(x, exact) == (pytest.approx(-0.5), pytest.approx(0, abs=1e-12))
    assert slope(x, [values[:1] for values in exact]) == (pytest.approx(-0.5), None)
    spread = [[2**-0.5 * a, 2**0.5 * a] for a, _ in exact]  # logs 1 apart: variance 1/2 of one, 1/4 of a mean of two
    found, tolerance = slope(x, spread)
    assert found == pytest.approx(-0.5)
    assert tolerance == pytest.approx(3.182446 * math.sqrt(0.25 / 8))  # t of 3 degrees; log2 x is -2, 0, 2 off its mean
    bent = [[a * factor, b * factor] for (a, b), factor in zip(exact, (1, 4, 1), strict=True)]
    assert slope(x, bent)[1] == pytest.approx(0, abs=1e-12), "what is no straight line is no noise"


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_what_has_no_logarithm_has_no_slope(size: float) -> None:
    assert slope([1, 2], [[1.0, 1.0], [1.0, size]]) == (None, None)
    assert verdict(None, None) == "none"


@pytest.mark.parametrize(
    ("found", "tolerance", "said"),
    [
        (0.05, 0.04, "flat"),
        (-0.12, 0.0, "flat"),
        (0.2, 0.05, "grows"),
        (-0.2, 0.05, "vanishes"),
        (-0.2, 0.1, "unclear"),
        (0.1, 0.05, "unclear"),
        (0.5, None, "grows"),
    ],
)
def test_verdicts(found: float, tolerance: float | None, said: str) -> None:
    assert verdict(found, tolerance) == said


def test_what_is_measured_is_the_change_by_the_optimisers_own_steps() -> None:
    (small, *_) = squares("model=rp_s_mixer", *PLAIN, "optim.lr_scaling=mup_tied")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(12, 1, 32, 32, generator=generator), torch.arange(12) % 10
    rows = check(small, CPU, images, labels, (1, 3))
    network = build(small.config, small.architecture)
    optimizer = make_optimizer(network, small.config.optim)
    for group in optimizer.param_groups:
        group["lr"] = small.config.optim.lr * group["lr_scale"]
    logits: list[Tensor] = []
    for _ in range(4):
        optimizer.zero_grad()
        out = network(images)
        logits.append(out.detach())
        nn.functional.cross_entropy(out, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    start, after_1, after_3 = (row["size"] for row in rows if row["layer"] == "logits")
    for found, wanted in ((start, logits[0]), (after_1, logits[1] - logits[0]), (after_3, logits[3] - logits[0])):
        assert found == pytest.approx(float(wanted.square().mean().sqrt()), rel=1e-4)
    assert [row["layer"] for row in rows if row["step"] == 1] == [
        "embedding",
        "blocks.0.token_mixing",
        "blocks.0.channel_mixing",
        "logits",
    ]


@pytest.mark.parametrize(
    "overrides",
    [("model=sw_mlp", "width=64", "density=0.25", "model.head=linear"), ("model=s_fc",), ("model=golubeva_mlp",)],
)
def test_every_kind_of_network_is_watched_image_by_image(overrides: tuple[str, ...]) -> None:
    learner = Learner(run(*overrides, "data=digits", "augment=none"), CPU, World(), "auto")
    with Watched(learner.network) as watched:
        size = learner.config.image_size
        images = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))
        together, alone = watched.of(learner, images), watched.of(learner, images[:1])
    assert list(together)[-1] == "logits" and len(together) > 1
    for name, value in together.items():
        assert value.shape[0] == 3 and value.dtype == torch.float64
        torch.testing.assert_close(alone[name], value[:1], rtol=1e-4, atol=1e-5)


def test_curves_are_of_equal_settings_and_what_is_held_fixed_tells_the_rest_apart() -> None:
    def sparse(width: int, density: float, *more: str) -> Run:
        return run("model=sw_mlp", "model.head=linear", f"width={width}", f"density={density}", *more)

    grid = [sparse(width, density) for width in (64, 256) for density in (0.25, 0.0625)]
    assert [(curve.family, [x for x, _ in curve.points]) for curve in curves(grid)] == [
        ("sw_mlp density=0.25", [64, 256]),
        ("sw_mlp density=0.0625", [64, 256]),
    ]
    assert [(curve.family, [x for x, _ in curve.points]) for curve in curves(grid, "density")] == [
        ("sw_mlp width=64", [0.0625, 0.25]),
        ("sw_mlp width=256", [0.0625, 0.25]),
    ]
    rules = [
        sparse(width, 0.25, "optim=adamw", f"optim.lr_scaling={r}") for width in (64, 256) for r in ("none", "mup")
    ]
    deep = [sparse(width, 0.25, "depth=2") for width in (64, 256)]
    assert [(curve.family, curve.optimizer, curve.rule) for curve in curves([*rules, *deep])] == [
        ("sw_mlp depth=4", "adamw", "none"),
        ("sw_mlp depth=4", "adamw", "mup"),
        ("sw_mlp depth=2", "sgd", "none"),
    ]
    with pytest.raises(UserError, match=r"^width=64: the only one of sw_mlp, sgd; .* e\.g\. width=64,256$"):
        curves(grid[:1])
    with pytest.raises(UserError, match=r"^width=64: 2 networks of sw_mlp, sgd have it, and with none of connections"):
        curves(grid[:3])


def test_shared_weights_move_features_alike_at_all_widths_under_mup_tied_and_not_under_mup() -> None:
    """Both for blocks that are alike (SGD: c^1/2) and for those that a random permutation gathers (c)."""
    runs = [
        one
        for model in ("s_mixer", "rp_s_mixer")
        for rule in ("mup", "mup_tied")
        for one in squares(f"model={model}", *PLAIN, f"optim.lr_scaling={rule}")
    ]
    document, table = analyze(runs, CPU, steps=(1, 8), seeds=6, images=48)
    assert document["sizes"]
    for row in table:
        if row["layer"] == "logits":
            continue
        assert abs(row["start"]) < FLAT + row["start_tolerance"], row
        for step in ("change_1", "change_8"):
            if row["rule"] == "mup_tied":
                assert abs(row[step]) < FLAT + row[f"{step}_tolerance"], (row["family"], row["layer"], row[step])
        if row["rule"] == "mup":
            assert row["change_1"] + row["change_1_tolerance"] < -FLAT, (row["family"], row["layer"], row["change_1"])


def test_on_random_masks_adamws_mup_is_flat_over_densities_and_widths() -> None:
    """SμPar (Dey et al. 2024): what grows with the fan-in is neither width nor density, but their product."""
    shapes = {"density": [(512, 0.25), (512, 0.0625), (512, 0.015625)], "width": [(256, 0.0625), (1024, 0.0625)]}
    for over, some in shapes.items():
        grid = [
            run(*SMALL, "model=sw_mlp", "optim=adamw", f"width={w}", f"density={p}", f"optim.lr_scaling={rule}")
            for rule in ("none", "mup")
            for w, p in some
        ]
        _, table = analyze(grid, CPU, over=over, steps=(4,), seeds=3, images=48)
        for row in table:
            found, tolerance = row["change_4"], row["change_4_tolerance"]
            if row["rule"] == "mup" and row["layer"].startswith("layers"):
                assert abs(found) < FLAT + tolerance, row
            if row["rule"] == "none" and row["layer"] == "logits":
                assert found - tolerance > FLAT, row


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model=s_mixer,sw_mlp", "match=mixer", *SMALL, "optim=sgd,adamw"]
    flags = ["--sizes", "8,16", "--steps", "1,2", "--seeds", "2", "--images", "16", "--device", "cpu"]
    assert main(["analyze", "coordinates", *settings, *flags, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "a" / "coordinates.json")
    assert "| s_mixer | sgd | none |" in said.err and "| features after 1 | logits after 1 |" in said.err
    found = json.loads((tmp_path / "a" / "coordinates.json").read_text())
    assert len(found["sizes"]) == 2 * 2 * 2 * 2 * 3 * 4  # families, optimisers, widths, seeds, steps and 0, layers
    assert {row["width"] for row in found["sizes"]} == {64, 256}
    with (tmp_path / "a" / "coordinates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4 and {row["verdict"] for row in rows} <= {"flat", "grows", "vanishes", "unclear"}
    first = found["layers"][0]
    values = [
        [row["size"] for row in found["sizes"] if row["step"] == 2 and row["width"] == width
         and all(row[key] == first[key] for key in ("family", "optimizer", "rule", "layer"))]
        for width in (64, 256)
    ]  # fmt: skip
    assert first["change_2"] == pytest.approx(np.diff(np.log2(values).mean(1))[0] / 2)
    assert main(["analyze", "coordinates", *settings, *flags, "--out", str(tmp_path / "b")]) == 0
    for name in ("coordinates.json", "coordinates.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps 0: takes whole numbers of at least 1"),
        (["--steps", "1,two"], "--steps 1,two: takes whole numbers of at least 1"),
        (["--seeds", "0"], "--seeds 0 --images 64: at least 1 seed and 2 images"),
        (["model=s_mixer", "--images", "100000"], "--images 100000: the training set has 9,000"),
        (["model=s_mixer", "width=256", "--sizes", "8"], "--sizes 8: the networks have shapes of their own"),
        (["model=sw_mlp", "width=256", "density=0.25"], "width=256: the only one of sw_mlp, sgd"),
        (["modell=s_mixer"], "modell"),
        (["no_such_directory"], "no_such_directory"),
    ],
)
def test_mistakes_of_the_verb_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["analyze", "coordinates", *arguments, "--no-figure", "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
