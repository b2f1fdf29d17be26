"""beta-LASSO against its two lines in a plain loop, and whole runs of the networks that are lists of layers."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixersweep.compose import config_of
from mixersweep.errors import RunStopped
from mixersweep.layers import SparseConv, SparseMap
from mixersweep.models import build
from mixersweep.runs import RunDirectory, same_experiment_same_numbers, solve
from mixersweep.training.beta_lasso import BetaLassoSGD
from mixersweep.training.optimizer import make_optimizer, pruned
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train
from tests.training.small import StopAfter

# --- one step ----------------------------------------------------------------------------------------------------


def parameter(*values: float) -> nn.Parameter:
    made = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    made.grad = torch.zeros_like(made)
    return made


def one_step(theta: nn.Parameter, gradient: list[float], *, lr: float = 0.1, beta: float = 50, lasso: float | None):
    theta.grad = torch.tensor(gradient, dtype=torch.float64)
    BetaLassoSGD([{"params": [theta], "lasso": lasso}], lr=lr, beta=beta).step()
    return theta.detach().tolist()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_many_steps_equal_a_plain_loop(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    thetas = [torch.randn(7, 5, generator=generator, dtype=torch.float64) * 0.02 for _ in range(3)]
    parameters = [nn.Parameter(theta.clone()) for theta in thetas]
    lassos, beta = [1e-4, 2e-4, None], 50.0
    groups = [
        {"params": [p], "lasso": lasso, "weight_decay": weight_decay}
        for p, lasso in zip(parameters, lassos, strict=True)
    ]
    optimizer = BetaLassoSGD(groups, lr=0.1, beta=beta)
    expected = [theta.flatten().tolist() for theta in thetas]
    revived = 0
    for step in range(30):
        lr = 0.1 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for index, (p, lasso) in enumerate(zip(parameters, lassos, strict=True)):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2
            for i, gradient in enumerate(p.grad.flatten().tolist()):
                old = theta = expected[index][i]
                penalty = 0.0 if lasso is None else lasso * ((theta > 0) - (theta < 0))
                theta = theta - lr * (gradient + penalty + weight_decay * theta)
                if lasso is not None and abs(theta) < beta * lasso:
                    theta = 0.0
                revived += old == 0 and theta != 0
                expected[index][i] = theta
        optimizer.step()
    for p, values in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach().flatten().tolist(), values, rtol=1e-12, atol=1e-15)
    assert revived > 0
    shares = [sum(value != 0 for value in values) / 35 for values in expected]
    assert shares[2] == 1 > max(shares[:2])
    assert optimizer.density() == (shares[0] + shares[1]) / 2


def test_the_threshold_is_beta_lambda_whatever_the_learning_rate() -> None:
    lasso = 2.0**-10  # exact numbers: the threshold is 0.0625 with beta 64
    for lr in (1e-9, 0.5):
        theta = parameter(0.0625, -0.0625, 0.062, -0.0624, 1.0, 0.0)
        after = one_step(theta, [-lasso, lasso, -lasso, lasso, -lasso, 0.0], lr=lr, beta=64, lasso=lasso)
        assert after == [0.0625, -0.0625, 0.0, 0.0, 1.0, 0.0]  # the gradients undo the penalties


def test_a_zero_revives_by_a_gradient_that_lifts_it_over_the_threshold() -> None:
    assert one_step(parameter(0.0, 0.0), [-3.0, -0.01], lasso=1e-3) == [pytest.approx(0.3), 0.0]


def test_biases_and_norms_are_plain_sgd() -> None:
    assert one_step(parameter(1e-9, -1.0), [0.0, 1.0], lasso=None) == [1e-9, -1.1]
    assert one_step(parameter(1e-9, -1.0), [0.0, 1.0], lasso=0.0) == [1e-9, -1.1]


def test_what_is_not_a_number_stays_one_so_that_the_run_diverges() -> None:
    assert np.isnan(one_step(parameter(float("nan")), [0.0], lasso=1e-3)[0])


def test_parameters_without_a_gradient_are_left_alone() -> None:
    theta = parameter(1e-6)
    theta.grad = None
    BetaLassoSGD([{"params": [theta], "lasso": 1.0}, {"params": []}], lr=1.0, beta=1).step()
    assert theta.item() == 1e-6


# --- in a network ------------------------------------------------------------------------------------------------


def test_the_first_layer_and_convolutions_have_a_penalty_of_their_own() -> None:
    settings = ["optim=beta_lasso", "optim.conv_lambda=1e-6", "optim.fc_lambda=2e-5", "optim.beta=7"]
    for model in (["model=s_fc", "model.alpha=1"], ["model=golubeva_resnet18"], ["model=s_mixer"]):
        run = solve(config_of([*model, *settings]))
        network = build(run.config, run.architecture)
        optimizer = make_optimizer(network, run.config.optim)
        conv, fc, free = optimizer.param_groups
        maps = [layer for layer in network.modules() if isinstance(layer, SparseMap)]
        kernels = [layer.weight for layer in maps if layer is maps[0] or isinstance(layer, SparseConv)]
        assert {id(p) for p in conv["params"]} == {id(p) for p in kernels}
        assert {id(p) for p in [*conv["params"], *fc["params"]]} == {id(layer.weight) for layer in maps}
        assert (conv["lasso"], fc["lasso"], free["lasso"], conv["beta"]) == (1e-6, 2e-5, None, 7.0)
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        assert count == len(list(network.parameters()))
        assert pruned(optimizer) == {"density": 1.0}


def test_the_settings_are_those_of_the_paper_and_other_optimisers_have_no_density() -> None:
    config = config_of(["optim=beta_lasso"])
    assert (config.batch_size, config.optim.lr, config.optim.schedule, config.optim.beta) == (512, 0.1, "cosine", 50)
    assert config_of(["optim=beta_lasso", "batch_size=64"]).batch_size == 64
    assert config_of([]).batch_size == 128
    run = solve(config_of(["model=s_fc", "model.alpha=1"]))
    assert pruned(make_optimizer(build(run.config, run.architecture), run.config.optim)) == {}


def test_its_state_is_saved_and_restored() -> None:
    one = BetaLassoSGD([{"params": [parameter(1.0)], "lasso": 1e-3}, {"params": [parameter(2.0)]}], lr=0.1, beta=50)
    one.param_groups[0]["lr"] = 0.02
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other = BetaLassoSGD([{"params": [parameter(1.0)], "lasso": 0.5}, {"params": [parameter(2.0)]}], lr=9.0, beta=1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.state_dict() == one.state_dict()


# --- whole runs --------------------------------------------------------------------------------------------------

FAST = ["epochs=3", "threads=1", "tracking=none", "model.alpha=1"]
SHARP = ["optim=beta_lasso", "optim.beta=100", "optim.conv_lambda=1e-4", "optim.fc_lambda=2e-4"]


def directory(tmp_path: Path, *overrides: str) -> RunDirectory:
    return RunDirectory.create(solve(config_of(list(overrides))), tmp_path)


def test_s_fc_under_beta_lasso_learns_gets_sparse_and_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = directory(tmp_path / "whole", "model=s_fc", *FAST, *SHARP)
    train(whole, StopSignals(), lambda text: None)
    densities = [row["density"] for row in whole.rows()]
    assert 0 < densities[-1] < 0.8
    assert densities == sorted(densities, reverse=True)
    assert (whole.result() or {})["test_accuracy"] > 0.6
    assert (whole.result() or {})["density"] == 1.0  # of the network as planned

    parts = directory(tmp_path / "parts", "model=s_fc", *FAST, *SHARP)
    for checks in (30, 25):
        with pytest.raises(RunStopped):
            train(parts, StopAfter(checks), lambda text: None)
    train(parts, StopSignals(), lambda text: None)
    assert same_experiment_same_numbers(parts.result() or {}, whole.result() or {})
    assert [row["density"] for row in parts.rows()] == densities


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=golubeva_mlp", "width=250", "optim.lr=0.1", "optim.momentum=0", "optim.nesterov=false"],
        ["model=golubeva_resnet18", "width=10", "image_size=28", "optim.lr=0.02"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_golubevas_networks_train_and_go_on_to_the_same_numbers(
    tmp_path: Path, overrides: list[str], few_images: Callable[[int, int], list[str]]
) -> None:
    """Of batches of 54, the last has one image."""
    common = [*overrides, *few_images(271, 100), "batch_size=54", "validation=0"]
    common += ["epochs=2", "threads=1", "tracking=none"]
    whole = directory(tmp_path / "whole", *common)
    train(whole, StopSignals(), lambda text: None)
    first, last = whole.rows()
    assert last["train_loss"] < first["train_loss"]
    assert "density" not in last
    record = whole.result() or {}
    assert record["total_connections"] in (3970, 175_048)

    parts = directory(tmp_path / "parts", *common)
    with pytest.raises(RunStopped):
        train(parts, StopAfter(10), lambda text: None)
    assert len(parts.rows()) == 1
    train(parts, StopSignals(), lambda text: None)
    assert same_experiment_same_numbers(parts.result() or {}, record)
    assert (parts.result() or {})["environment"] == record["environment"]
