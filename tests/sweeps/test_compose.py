"""One compose for each set of group choices, and values set on copies, mean what Hydra's own compose means."""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from mixersweep.compose import Composer, parse_overrides
from mixersweep.errors import UserError
from mixersweep.paths import config_dir, config_groups
from mixersweep.sweeps.expand import grid_of

CHOICES = [
    [],
    ["model=sw_mlp"],
    ["model=mixer", "optim=adamw"],
    ["optim=beta_lasso"],
    ["data=fashion_mnist", "augment=none", "tracking=none"],
    ["~augment"],
]
VALUES = [
    [],
    ["width=512", "seed=3", "epochs=2"],
    ["connections=2**15", "optim.lr=1e-2", "model.bias=false"],
    ["data.crop_padding=3"],  # augment.crop_padding reads it
    ["augment.crop_padding=2", "data.flip=false"],
    ["augment.flip=${data.flip}", "data.flip=false"],
    ["data.mean=[0.5,0.25]", "data.std=[1,2]"],
    ["tracking.entity=null", "tracking.project='a, b'", 'device="cuda:1"'],
    ["+depthh=3", "++epochs=7", "++optim.other={a:1,b:[2,x]}"],
    ["~seeds.order", "~validation=0.1"],
    ["seeds={order:4}"],
    ["optim={lr:0.5}", "seeds.split=7"],
    ["runs_dir=${oc.env:HOME}/x", "data_dir=${runs_dir}"],
    ["width=${epochs}", "epochs=12"],
]


@pytest.fixture(scope="module")
def composer() -> Composer:
    """One for all, so that what one run leaves would be seen by the next."""
    return Composer()


@lru_cache
def by_hydra(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        composed = compose("train", list(overrides))
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    values.pop("sweep")
    return values


@pytest.mark.parametrize(("choices", "values"), list(itertools.product(CHOICES, VALUES)), ids=str)
def test_values_are_those_of_hydra(composer: Composer, choices: list[str], values: list[str]) -> None:
    overrides = [*values, *choices]  # Hydra takes them in any order
    try:
        wanted = by_hydra(*overrides)
    except Exception:
        with pytest.raises(UserError):
            composer.values(overrides)
        return
    assert composer.values(overrides) == wanted
    assert composer.values(choices) == by_hydra(*choices)  # and nothing sticks to the base


def test_most_of_these_compose() -> None:
    """Else the test above would compare refusals only."""
    composed = 0
    for choices, values in itertools.product(CHOICES[:2], VALUES):
        try:
            by_hydra(*values, *choices)
            composed += 1
        except Exception:
            continue
    assert composed >= 24


@pytest.mark.parametrize("model", config_groups()["model"])
def test_every_family_composes_the_same(composer: Composer, model: str) -> None:
    overrides = [f"model={model}", "seed=1", "width=64"]
    assert composer.values(overrides) == by_hydra(*overrides)


@pytest.mark.parametrize(
    "sweep",
    [
        ["width=256,512", "seed=0,1,2"],
        ["width=choice(256,512)", "seed=range(3)", "model=pk,sw_mlp"],
        ["optim.lr=0.1,1e-3,null", "connections=2**14,'2**15'", "tracking.project='a,b',c"],
        ["width=range(100,400,100)", "seed=sort(3,1,2)", "model.random_blocks=[0],[1,2],all"],
        ["model=glob(*s_mixer)", "+seeds.order=1,2", "epochs=5"],
    ],
    ids=str,
)
def test_a_command_line_is_the_grid_of_hydra_in_its_order(sweep: list[str]) -> None:
    (batch,) = BasicSweeper.split_arguments(parse_overrides(sweep), None)
    own = list(itertools.product(*grid_of(parse_overrides(sweep)).values()))
    assert len(own) > 2
    assert [_meant(job) for job in own] == [_meant(job) for job in batch]


def _meant(job: Sequence[str]) -> list[tuple[str, Any]]:
    return [(override.get_key_element(), override.value()) for override in parse_overrides(list(job))]
