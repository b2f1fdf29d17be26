"""Conditions on runs as people type them, and what they are told when one cannot be meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixersweep.errors import UserError
from mixersweep.runs.where import parse_where

RUN = {
    "width": 1024,
    "model": "sw_mlp",
    "optim.lr": 1e-3,
    "seed": 0,
    "model.tied": True,
    "started": "2026-01-01T10:00:00",
    "device": "cuda:1",
    "experiment": None,
    "android": 2.5,
    "model.random_blocks": [0, 2],
}
KNOWN = {*RUN, "test_accuracy", "notes"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("width>=1000 and model=sw_mlp", True),
        ("width>=1000 and model=s_mixer", False),
        ("width >= 2**10", True),
        ("width > 2**10", False),
        ("width<=1.024e3", True),
        ("width<1e3 or optim.lr==1e-3", True),
        ("optim.lr != 0.001", False),
        ("optim.lr=+.001", True),
        ("seed in [0, 1]", True),
        ("seed in [1]", False),
        ("seed in []", False),
        ("model in [sw_mlp, 's_mixer']", True),
        ("not seed=1 and not (width=1 or width=2)", True),
        ("not width=1024 or seed=0", True),  # not binds first
        ("width=1 and seed=1 or seed=0", True),  # and before or
        ("width=1 and (seed=1 or seed=0)", False),
        ("WIDTH=1", None),
        ("width=1024 AND NOT seed IN [3]", True),
        ('model="sw_mlp"', True),
        ("model='sw mlp'", False),
        ("device=cuda:1", True),
        ("started>2026-01-01 and started<'2026-01-02'", True),
        ("model.tied=true", True),
        ("model.tied=1", False),  # a truth value is no number
        ("seed=false", False),
        ("android>2", True),  # begins as `and` does
        ("experiment=null", True),
        ("experiment!=null", False),
        ("test_accuracy=null", True),  # missing
        ("width!=null", True),
        ("experiment=fig4", False),
        ("experiment!=fig4", False),  # null is neither equal nor unequal to something
        ("test_accuracy<1", False),
        ("test_accuracy in [1]", False),
        ("not test_accuracy<1", True),
        ("model>100", False),  # a text is not above a number
        ("model.random_blocks=0", False),
    ],
)
def test_a_condition_means_what_it_says(text: str, holds: bool | None) -> None:
    if holds is None:
        with pytest.raises(UserError, match="the nearest is width"):
            parse_where(text, KNOWN)
    else:
        assert parse_where(text, KNOWN)(RUN) is holds


@given(
    st.sampled_from(["=", "==", "!=", "<", "<=", ">", ">="]),
    st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False)),
    st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_numbers_compare_as_numbers_do(sign: str, value: float, wanted: float) -> None:
    means = {"=": "==", "==": "=="}.get(sign, sign)
    expected = {
        "==": value == wanted,
        "!=": value != wanted,
        "<": value < wanted,
        "<=": value <= wanted,
        ">": value > wanted,
        ">=": value >= wanted,
    }[means]
    assert parse_where(f"width {sign} {wanted!r}", KNOWN)({"width": value}) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width", r"quote it: --where 'width>1000'"),
        ("model=sw_mlp and width", r"quote it: --where 'model=sw_mlp and width>1000'"),
        ("(optim.lr", r"compares optim.lr with nothing"),
        ("", "cannot be read at its end"),
        ("width>", "cannot be read at its end|cannot be read at '>'"),
        ("width>1000<3", "cannot be read at '<3'"),
        ("512<=width", r"cannot be read at '512<=width'.*the name first"),
        ("width is 3", "cannot be read at 'is 3'"),
        ("width>1 model=3", "cannot be read at 'model=3'"),
        ("width>1 && seed=0", "cannot be read at '&& seed=0'.*joined by and"),
        ("(width>1", "cannot be read at its end"),
        ("seed in [0,1", "cannot be read at its end"),
        ("widht>3", "widht: runs have no such value; the nearest is width"),
        ("lr>3", "lr: runs have no such value; the nearest is optim.lr"),
        ("qqqq=3", "qqqq: runs have no such value$"),
        ("width>null", "only = and != make sense"),
        ("width<true", "only = and != make sense"),
        ("__import__('os')", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        parse_where(text, KNOWN)
    assert "\n" not in str(told.value)


def test_a_number_against_a_text_is_told_when_it_is_seen() -> None:
    condition = parse_where("width>wide", KNOWN)
    with pytest.raises(UserError, match=r"width is a number \(such as 1024\), wide is a text"):
        condition(RUN)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.lr>0", {"optim.lr": 0.1}),
        ("model.mask=exact", {"model.mask": "exact"}),
        ("mean_fan_in<4", {"mean_fan_in": 3.5}),
        ("test_accuracy>0.8", {"test_accuracy": 0.9}),
        ("state=lost", {"state": "lost"}),
        ("epoch>3", {"epoch": 4}),
    ],
)
def test_settings_and_keys_of_the_record_and_the_status_are_known(text: str, values: dict[str, object]) -> None:
    condition = parse_where(text)
    assert condition(values) is True
    assert condition(dict.fromkeys(values)) is False  # null is neither
