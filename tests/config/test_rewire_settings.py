"""Settings of connections that move: what cannot be is refused, and what a mask loses is said."""

import pytest

from mixersweep.compose import config_of
from mixersweep.config import warnings
from mixersweep.errors import UserError
from mixersweep.runs import solve


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=s_mixer", "optim.rewire=set"],
            "optim.rewire=set: s_mixer has no masked weights to move; use model=sw_mlp or model=golubeva_mlp, "
            "or set it to none",
        ),
        (
            ["model=sw_mlp", "optim.rewire=set", "compile=true"],
            "compile=true: a compiled network keeps its connections, which optim.rewire=set moves; set it to false",
        ),
        (
            ["model=sw_mlp", "optim.rewire=rigl", "precision=fp16"],
            "precision=fp16: its gradients may overflow, which optim.rewire=rigl chooses by; use bf16 or fp32",
        ),
        (
            ["model=sw_mlp", "optim.rewire=rigl", "epochs=1", "batch_size=90"],
            "optim.rewire_every=auto: the first rewiring, at step 100, is none of the 75 in which connections move; "
            "the nearest is 74",
        ),
        (
            ["model=sw_mlp", "optim.rewire=set", "optim.rewire_every=500", "epochs=2", "batch_size=90"],
            "optim.rewire_every=500: the first rewiring, at step 500, is none of the 200 in which connections move; "
            "the nearest is 199",
        ),
        (
            ["model=sw_mlp", "optim.rewire=set", "epochs=1", "batch_size=9000"],
            "optim.rewire_every=auto: the first rewiring, at step 1, is none of the 1 in which connections move; "
            "raise epochs",
        ),
    ],
)
def test_what_cannot_be_rewired_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        config_of(overrides)
    assert refused.value.args[0] == message


@pytest.mark.parametrize(
    ("kind", "mask", "is_left"),
    [("set", "block", True), ("rigl", "fixed_fan_in", True), ("srigl", "fixed_fan_in", False), ("set", "exact", False)],
)
def test_a_run_says_that_its_mask_will_be_left(kind: str, mask: str, is_left: bool) -> None:
    run = solve(config_of(["model=sw_mlp", f"optim.rewire={kind}", f"model.mask={mask}"]))
    said = f"model.mask={mask} is where connections begin; optim.rewire={kind} moves them out of it"
    assert (said in warnings(run.config, run.architecture)) == is_left
