"""The recipes of the papers: what each file means, written down a second time; and that they are choices like any."""

import pytest

from mixersweep.completer import overrides as completions
from mixersweep.compose import config_of
from mixersweep.config.schema import SGD, AdamW
from mixersweep.errors import UserError

PAPER_SGD = {"epochs": 200, "batch_size": 128, "lr": 0.02, "momentum": 0.9, "nesterov": True, "schedule": "cosine"}
RECIPES = {
    "paper_sgd": (SGD, PAPER_SGD),
    "paper_adamw": (AdamW, {"epochs": 600, "batch_size": 128, "lr": 0.01, "schedule": "cosine", "min_lr": 0}),
    "paper_table1": (AdamW, {"epochs": 4000, "batch_size": 1024, "lr": 0.04, "schedule": "cosine"}),
    "imagenet_timm": (
        AdamW,
        {
            "epochs": 300,
            "batch_size": 4096,
            "lr": 1e-3,
            "warmup_epochs": 5,
            "warmup_lr": 1e-6,
            "min_lr": 1e-5,
            "weight_decay": 0.05,
            "label_smoothing": 0.1,
            "schedule": "cosine",
        },
    ),
    "golubeva_mlp": (
        SGD,
        {
            "epochs": 300,
            "batch_size": 100,
            "lr": 0.1,
            "momentum": 0,
            "nesterov": False,
            "weight_decay": 0,
            "schedule": "constant",
        },
    ),
    "golubeva_resnet18": (
        SGD,
        {
            "epochs": 300,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4,
            "schedule": "step",
            "milestones": [50, 120, 200],
            "milestone_factor": 0.1,
        },
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_what_its_paper_says(recipe: str) -> None:
    kind, expected = RECIPES[recipe]
    config = config_of([f"optim={recipe}"])
    assert type(config.optim) is kind
    for name, value in expected.items():
        holder = config if name in ("epochs", "batch_size") else config.optim
        assert getattr(holder, name) == value, name
    assert (config.optim.clip_norm, config.ema, config.stochastic_depth) == (None, None, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_line_wins_over_a_recipe(recipe: str) -> None:
    config = config_of(["epochs=7", "batch_size=3", f"optim={recipe}", "optim.lr=0.5", "optim.warmup_epochs=6"])
    assert (config.epochs, config.batch_size, config.optim.lr, config.optim.warmup_epochs) == (7, 3, 0.5, 6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_family_keeps_its_shape_under_a_recipe(recipe: str) -> None:
    config = config_of(["model=golubeva_mlp", f"optim={recipe}"])
    assert (config.depth, config.image_size, config.epochs) == (1, 28, RECIPES[recipe][1]["epochs"])


def test_a_recipe_is_completed_and_a_misspelt_one_is_told_the_nearest() -> None:
    assert completions("optim=paper_") == ["optim=paper_adamw", "optim=paper_sgd", "optim=paper_table1"]
    assert completions("optim.lr_scaling=") == [
        f"optim.lr_scaling={rule}" for rule in ("none", "fan_in", "mup", "mup_tied")
    ]
    assert completions("optim.arguments=") == []
    with pytest.raises(UserError, match=r"optim\.momentun=0\.8.*nearest is optim\.momentum"):
        config_of(["optim=paper_sgd", "+optim.momentun=0.8"])
