"""From what Hydra composes to a Config, or to one line that names the setting, its value, why not, and what can be."""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from mixersweep import config as schema
from mixersweep.config import parse
from mixersweep.config.parse import check_key, describe, keys, owners
from mixersweep.errors import UserError
from mixersweep.families import FAMILIES
from mixersweep.families.layered import LayeredFamily
from mixersweep.families.monarch import Shallow
from mixersweep.families.published_sizes import NamedMixer, PrintedMixer

CONFIGS = Path(__file__).parents[2] / "configs"
DATA_SETS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))


def composed(*overrides):
    """The plain mapping that an invocation means."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS.resolve())):
        return OmegaConf.to_container(compose(config_name="train", overrides=list(overrides)), resolve=True)


DEFAULTS = {family: composed(f"model={family}") for family in FAMILIES}
ADAMW = composed("optim=adamw")
BETA_LASSO = composed("optim=beta_lasso")
TIMM = composed("optim=timm")
FOLDER = composed("data=image_folder")
FACTS = ["data.classes=5", "data.train_images=50", "data.test_images=10", "data.content=0123"]


def with_value(key, value, base=None):
    """The default mapping with one dotted key set."""
    values = copy.deepcopy(DEFAULTS["pk"] if base is None else base)
    *groups, last = key.split(".")
    inner = values
    for group in groups:
        inner = inner[group]
    inner[last] = value
    return values


def without(key, base=None):
    values = with_value(key, None, base)
    *groups, last = key.split(".")
    inner = values
    for group in groups:
        inner = inner[group]
    del inner[last]
    return values


def refusal(values):
    with pytest.raises(UserError) as refused:
        parse(values)
    message = refused.value.args[0]
    assert "\n" not in message
    return message


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


# --- every file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("data", DATA_SETS)
def test_every_family_is_a_network_on_every_data_set_as_it_stands(family, data):
    values = composed(f"model={family}", f"data={data}", *(FACTS if data == "image_folder" else []))
    if values["image_size"] is None:  # a family on the images as they are, and images of many sizes
        assert refusal(values) == "image_size=null: expects a whole number, at least 1"
        return
    config = parse(values)
    assert (config.model.name, config.data.name) == (family, data)
    if family == "mlp" and config.patches > 181:  # its width: one unit of a patch, whose mean over patches is constant
        with pytest.raises(UserError, match="logits are constant at the start"):
            schema.architecture(config)
        config = parse(with_value("model.head", "signed_groups", values))
    network = schema.architecture(config)
    own_size = LayeredFamily, NamedMixer, PrintedMixer, Shallow
    if not isinstance(config.model, own_size):
        assert network.connections_target == 2**15
    if not isinstance(config.model, Shallow):  # which has no patches
        assert network.patches == config.patches == (config.image_size // config.patch_size) ** 2
    stem = config.data.image_channels * config.patch_size**2 * network.embedding_channels
    assert network.stem_parameters == stem
    found = schema.warnings(config, network)
    if (config.data.classes, config.image_size) != (10, 32):
        assert all("rank-limited" in text for text in found)
    elif family == "mlp":  # 181 wide over 64 patches: 3 channels for a pooled head
        assert [text.partition(" is")[0] for text in found] == ["embedding channels=3"]
    else:
        assert found == []


def test_every_family_class_has_a_file_and_every_file_a_class():
    assert {path.stem for path in (CONFIGS / "model").glob("*.yaml")} == set(FAMILIES)
    assert {path.stem for path in (CONFIGS / "optim").glob("*.yaml")} > set(schema.OPTIMIZERS)


@pytest.mark.parametrize(
    "choice",
    [f"{group}={path.stem}" for group in ("optim", "augment", "tracking") for path in (CONFIGS / group).glob("*")],
)
def test_every_choice_of_the_other_groups_parses_to_what_its_file_says(choice):
    group, _, name = choice.partition("=")
    found = parse(composed(choice))
    said = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    said.pop("defaults", None)
    if group not in said:  # a recipe sets more than its group
        said = {group: said}
    for where, values in ((found, said), (getattr(found, group), said.pop(group))):
        plain = {key: value for key, value in values.items() if "${" not in str(value)}
        assert {key: getattr(where, key) for key in plain} == plain


@pytest.mark.parametrize(
    ("family", "expansion"), [("s_mixer", 1), ("mixer", 2), ("rp_mixer", 2), ("pk", 1), ("sw_mlp", 1), ("mlp", 1)]
)
def test_a_family_sets_its_own_expansion_and_the_command_line_overrides_it(family, expansion):
    assert parse(DEFAULTS[family]).expansion == expansion
    assert parse(composed(f"model={family}", "expansion=3")).expansion == 3


def test_the_defaults_of_the_whole_are_the_widest_s_mixer():
    found = schema.architecture(parse(composed()))
    assert (found.tokens, found.channels, found.connections) == (32, 32, 2**15)


# --- what a Config means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "structure", "width"),
    [
        (["model=s_mixer", "connections=2**18", "width=3616"], "kronecker", 3616),
        (["model=pk", "model.tied=false"], "block_diagonal", 1024),
        (["model=sw_mlp", "width=2048"], "sparse", 2048),
        (["model=mlp"], "dense", 181),
        (["model=mixer", "tokens=20", "channels=10", "model.token_expansion=0.5"], "kronecker", 200),
    ],
)
def test_overrides_reach_the_rule(overrides, structure, width):
    config = parse(composed(*overrides))
    assert config.model.structure == structure
    assert schema.architecture(config).width == width


def test_an_expansion_set_apart_reaches_the_rule():
    config = parse(composed("model=mixer", "tokens=20", "channels=10", "model.token_expansion=0.5"))
    found = schema.architecture(config)
    assert (found.token_hidden, found.channel_hidden) == (10, 20)


def test_the_rule_is_told_of_the_head_the_stem_the_skip_layer_and_biases():
    plain = schema.architecture(parse(composed("tokens=20", "channels=10")))
    linear = schema.architecture(parse(composed("tokens=20", "channels=10", "model.head=linear")))
    assert (plain.head_parameters, linear.head_parameters) == (100, 2000)
    resize = schema.architecture(parse(composed("tokens=20", "channels=10", "model.stem=resize")))
    assert (resize.skip_parameters, resize.connections_counted) == (0, resize.connections)
    assert plain.skip_parameters == 20 * 64
    bare = schema.architecture(parse(composed("tokens=20", "channels=10", "model.bias=false")))
    assert plain.parameters - bare.parameters == 4 * (20 + 10)
    with pytest.raises(UserError, match="skip_layer=never"):
        schema.architecture(parse(composed("tokens=20", "channels=10", "model.skip_layer=never")))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tokens=64", "channels=4"], "channels=4 is below the 10 classes"),
        (["model=sw_mlp", "width=20000", "connections=20000"], "about 36.8% of the units have no input"),
        (["model=sw_mlp", "width=20000", "connections=20000", "model.mask=fixed_fan_in"], "about 0.0% of the units"),
    ],
)
def test_warnings_say_what_a_reader_has_to_know(overrides, said):
    config = parse(composed(*overrides))
    (warning,) = schema.warnings(config, schema.architecture(config))
    assert said in warning


@pytest.mark.parametrize(
    ("layers", "blocks", "random"),
    [
        ("none", "all", {}),
        ("both", "all", {(layer, block) for layer in ("token", "channel") for block in (0, 1)}),
        ("token", "all", {("token", 0), ("token", 1)}),
        ("channel", "[1]", {("channel", 1)}),
        ("both", "[]", {}),
    ],
)
def test_random_permutations_stand_in_the_layers_and_blocks_asked_for(layers, blocks, random):
    """model.random_layers and model.random_blocks (Fig. S.4)."""
    model = parse(composed(f"model.random_layers={layers}", f"model.random_blocks={blocks}", "depth=2")).model
    places = [(layer, block) for layer in ("token", "channel") for block in (0, 1)]
    assert {place for place in places if model.is_random(*place)} == set(random)


def test_a_family_without_random_permutations_has_none():
    assert not parse(DEFAULTS["s_mixer"]).model.is_random("token", 0)


# --- types, bounds and choices -----------------------------------------------------------------------------------

WHOLE = "a whole number, at least 1"
WRONG = {
    ("connections", "weights", "threads"): (
        [
            0,
            -1,
            1.0,
            1e5,
            True,
            False,
            None,
            "wide",
            [1],
            {},
            math.nan,
            "2**",
            "**3",
            "2**-1",
            "2**²",
            "1234**2",
            "50%",
        ],
        f"{WHOLE}, or auto",
    ),
    ("width", "tokens", "channels"): (
        [0, -1, 1.0, True, None, "wide", [1], {}, math.nan, "2**", "0%", "-5%", "%", "1e2%", "50 %", "1.%", "٣%"],
        f"{WHOLE}, or a percentage such as 50%, or auto",
    ),
    ("depth", "epochs", "batch_size", "image_size", "patch_size"): ([0, -1, 2.5, True, None, "auto", "four"], WHOLE),
    ("seed", "augment.crop_padding"): ([-1, 0.0, False, None, "auto"], "a whole number, at least 0"),
    ("seeds.split", "seeds.structure"): ([-1, 1.5, True, "auto"], "a whole number, at least 0, or null"),
    ("density",): (
        [0, 0.0, -0.5, 1.01, 2, True, None, math.nan, math.inf, "0.5x"],
        "a number, above 0 and at most 1, or auto",
    ),
    ("expansion", "model.token_expansion", "model.channel_expansion"): (
        [0, -2.0, True, None, math.nan, math.inf, -math.inf, "double"],
        "a number, above 0, or auto",
    ),
    ("validation", "stochastic_depth", "optim.momentum", "optim.label_smoothing"): (
        [-0.1, 1, 1.0, False, None, math.nan, "auto"],
        "a number, at least 0 and below 1",
    ),
    ("ema",): ([0, 1, 1.0, -0.5, True, math.nan, "auto"], "a number, above 0 and below 1, or null"),
    ("optim.milestones",): (
        [5, "5", True, [0], [1.5], [True], ["x"]],
        "a list such as [1,2] of a whole number, at least 1, or null",
    ),
    ("optim.lr", "optim.milestone_factor", "optim.base_fan_in", "model.norm_eps"): (
        [0, -1.0, True, None, math.nan, math.inf, "1e-3x"],
        "a number, above 0",
    ),
    ("optim.weight_decay", "optim.warmup_epochs", "optim.warmup_lr", "optim.min_lr", "tracking.timeout"): (
        [-1e-9, True, None, math.inf, "no"],
        "a number, at least 0",
    ),
    ("optim.clip_norm",): ([0, -1, True, math.nan, "auto"], "a number, above 0, or null"),
    ("gradient_checkpointing", "model.bias", "model.tied", "model.hidden", "augment.flip", "optim.nesterov"): (
        [0, 1, 1.0, "yes", "true", None],
        "true or false",
    ),
    ("device", "runs_dir", "data_dir", "tracking.project"): ([0, True, None, ["cpu"]], "a text"),
    ("run_dir", "tracking.entity"): ([0, True, 1.5], "a text, or null"),
    ("data.mean",): ([0.3, "0.3", None, [math.nan], [True], ["x"]], "a list such as [1,2] of a number"),
    ("data.std",): ([[0], [-1.0]], "a list such as [1,2] of a number, above 0"),
    ("data.classes",): ([1, 2.0], "a whole number, at least 2"),
    ("model.random_blocks",): (
        ["some", [-1], [0.5], [True], 0, None],
        "all, or a list such as [1,2] of a whole number, at least 0",
    ),
}


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [(key, value, takes) for several, (values, takes) in WRONG.items() for key in several for value in values],
    ids=lambda part: str(part)[:20],
)
def test_a_wrong_value_is_refused_with_what_the_setting_takes(key, value, takes):
    message = refusal(with_value(key, value))
    assert message.startswith(f"{key}=")
    assert message.partition(": expects ")[2].partition("; the nearest")[0] == takes
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        assert message.startswith(f"{key}={value}:")


CHOICES = {
    "branch": ("pk", {"tal": "tall", "wid": "wide", "Tall": "tall"}),
    "match": ("pk", {"mixr": "mixer", "non": "none"}),
    "model.head": ("pk", {"pol": "pool", "linaer": "linear"}),
    "model.activation": ("pk", {"gleu": "gelu", "rellu": "relu"}),
    "model.stem": ("pk", {"pach": "patch", "resise": "resize"}),
    "model.skip_layer": ("pk", {"nevr": "never", "allways": "always"}),
    "model.random_layers": ("pk", {"tokens": "token", "chanel": "channel"}),
    "model.random_blocks": ("pk", {"al": "all"}),
    "model.mask": ("sw_mlp", {"exakt": "exact", "fixed_fanin": "fixed_fan_in"}),
    "model.rescale": ("sw_mlp", {"forwards": "forward"}),
    "model.storage": ("sw_mlp", {"sparce": "sparse"}),
    "optim.schedule": ("pk", {"cosin": "cosine", "steps": "step"}),
    "optim.lr_scaling": ("pk", {"mupp": "mup", "fanin": "fan_in", "non": "none"}),
    "tracking.name": ("pk", {"wandbb": "wandb"}),
    "width": ("pk", {"aut": "auto"}),
    "expansion": ("pk", {"autoo": "auto"}),
}


@pytest.mark.parametrize(
    ("key", "family", "wrong", "nearest"),
    [(key, family, wrong, right) for key, (family, pairs) in CHOICES.items() for wrong, right in pairs.items()],
)
def test_a_misspelt_choice_is_refused_with_the_nearest(key, family, wrong, nearest):
    message = refusal(with_value(key, wrong, DEFAULTS[family]))
    assert message.startswith(f"{key}={wrong}: expects ")
    assert message.endswith(f"; the nearest is {nearest}")


def test_a_choice_that_resembles_none_lists_them():
    assert refusal(with_value("branch", "zzz")) == "branch=zzz: expects tall or wide"


@pytest.mark.parametrize("value", [0, 3, 2.0, True, "1"])
def test_layers_per_block_are_one_or_two(value):
    message = refusal(with_value("model.layers_per_block", value, DEFAULTS["sw_mlp"]))
    assert "expects a whole number, at least 1 and at most 2" in message


@pytest.mark.parametrize(
    ("key", "value"), [("model.tied", None), ("model.bias", 1), ("branch", "a\nb"), ("device", ["a\nb"])]
)
def test_a_refusal_is_one_line_in_the_words_of_an_override(key, value):
    shown = refusal(with_value(key, value)).partition(": ")[0].partition("=")[2]
    assert shown == {None: "null", 1: "1", "a\nb": "a b"}.get(value if not isinstance(value, list) else 0, '["a\\nb"]')


@pytest.mark.parametrize(
    ("key", "value", "means"),
    [
        ("connections", "2**15", 32768),
        ("width", "2**10", 1024),
        ("seed", "10**3", 1000),
        ("optim.lr", 1, 1.0),
        ("optim.clip_norm", 5, 5.0),
        ("optim.clip_norm", None, None),
        ("expansion", 2, 2.0),
        ("density", 1, 1.0),
        ("width", "auto", "auto"),
        ("validation", 0, 0.0),
        ("seeds.split", 0, 0),
        ("run_dir", "runs/a", "runs/a"),
        ("model.random_blocks", [0, 3], [0, 3]),
        ("optim.warmup_epochs", 30, 30.0),
    ],
)
def test_values_are_taken_as_people_write_them(key, value, means):
    found = value_of(parse(with_value(key, value)), key)
    assert found == means
    assert type(found) is type(means)


def test_the_mapping_that_was_given_is_left_as_it_was():
    values = copy.deepcopy(DEFAULTS["pk"])
    parse(values)
    assert values == DEFAULTS["pk"]


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("widht", "width"),
        ("conections", "connections"),
        ("model.tiedd", "model.tied"),
        ("model.hiden", "model.hidden"),
        ("optim.lrr", "optim.lr"),
        ("seeds.spilt", "seeds.split"),
        ("data.clases", "data.classes"),
        ("momentum", "optim.momentum"),
        ("tracking.projekt", "tracking.project"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest(key, nearest):
    assert refusal(with_value(key, 5)) == f"{key}=5: no such setting; the nearest is {nearest}"


def test_an_unknown_setting_that_resembles_none_is_refused_alone():
    assert refusal(with_value("qqqq", {"a": None})) == 'qqqq={"a": null}: no such setting'


NAMED = ["mixer_ss_8", "mixer_ss_w", "mixer_b16", "mixer_b_w"]


@pytest.mark.parametrize(
    ("key", "value", "base", "mine", "theirs"),
    [
        ("model.tied", False, "sw_mlp", "sw_mlp", ["pk", "monarch"]),
        ("model.mask", "exact", "pk", "pk", ["sw_mlp"]),
        ("model.token_expansion", 2, "s_mixer", "s_mixer", ["mixer", "rp_mixer", "pk", *NAMED]),
        ("model.random_layers", "both", "mixer", "mixer", ["rp_s_mixer", "rp_mixer", "pk"]),
        ("model.stem", "patch", "mlp", "mlp", ["s_mixer", "rp_s_mixer", "mixer", "rp_mixer", "pk", "monarch", *NAMED]),
        ("optim.beta1", 0.9, "pk", "sgd", ["adamw"]),
    ],
)
def test_a_setting_of_another_choice_is_refused_with_those_that_have_it(key, value, base, mine, theirs):
    message = refusal(with_value(key, value, DEFAULTS[base]))
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    assert message.startswith(f"{key}={shown}: {mine} has no setting {key.partition('.')[2]}")
    assert f"({', '.join(theirs)})" in message.replace("it belongs to ", "")
    assert owners(key) == theirs


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("width", "a whole number, at least 1, or a percentage such as 50%, or auto"),
        ("connections", "a whole number, at least 1, or auto"),
        ("seed", "a whole number, at least 0"),
        ("model.tied", "true or false"),
        ("model.head", "pool or linear or groups or signed_groups"),
        ("optim.lr", "a number, above 0"),
        ("seeds.split", "a whole number, at least 0, or null"),
        ("data.name", "a text"),
        ("data", "a group of settings"),
        ("seeds", "a group of settings"),
    ],
)
def test_a_missing_setting_is_named(key, takes):
    assert refusal(without(key)) == f"{key}: missing; it takes {takes}"


@pytest.mark.parametrize("group", ["model", "optim"])
@pytest.mark.parametrize("value", ["pkk", None, {}, {"name": None}, {"name": ["pk"]}, {"name": "pkk"}, 3])
def test_a_choice_of_a_group_that_does_not_exist_is_refused_with_those_that_do(group, value):
    message = refusal(with_value(group, value))
    assert message.startswith(f"{group}=")
    assert all(choice in message for choice in schema.VARIANTS[group])
    assert refusal(without(group)).startswith(f"{group}=")


@pytest.mark.parametrize("group", ["data", "augment", "tracking", "seeds"])
@pytest.mark.parametrize("value", ["all", None, 3])
def test_a_group_is_no_single_value(group, value):
    shown = "null" if value is None else value
    assert refusal(with_value(group, value)).startswith(f"{group}={shown}: a group of settings")


# --- impossible together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 5}, "patch_size=5: does not divide image_size=32; the nearest is 4"),
        ({"patch_size": 33}, "patch_size=33: does not divide image_size=32; the nearest is 32"),
        ({"patch_size": 8, "image_size": 30}, "patch_size=8: does not divide image_size=30; the nearest is 6"),
        ({"image_size": 16}, "image_size=16: fashion_mnist_10k has images of 28 pixels"),
        ({"image_size": 16, "data.fit": "resize"}, None),
        ({"image_size": 16, "data.fit": "crop", "data.crop_share": 0.5}, None),
        ({"data.crop_share": 0.5}, "data.crop_share=0.5: belongs to data.fit=crop, not pad"),
        ({"data.native_size": None}, "data.fit=pad: fashion_mnist_10k has images of many sizes; use data.fit=crop"),
        ({"data.mean": [0.5] * 3}, "data.mean=[0.5, 0.5, 0.5]: 3 values for images of 1 channels; give one each"),
        ({"data.image_channels": 3}, "data.mean=[0.286]: 1 values for images of 3 channels; give one each"),
        (
            {"augment.random_resized_crop": 0.08},
            "augment.random_resized_crop=0.08: is a crop already; set augment.crop",
        ),
        ({"augment.random_resized_crop": 0.08, "augment.crop_padding": 0}, None),
        ({"augment.rand_augment": "rand-m9-x3"}, "augment.rand_augment=rand-m9-x3: not timm's description"),
        ({"augment.rand_augment": "rand-n3-mstd0.5-mmax10-p0.9-inc0"}, None),
        ({"optim.momentum": 0}, "optim.momentum=0: Nesterov needs momentum; set optim.nesterov=false"),
        ({"optim.warmup_epochs": 31}, "optim.warmup_epochs=31: longer than epochs=30"),
        ({"optim.warmup_epochs": 0.5, "epochs": 1}, None),
        ({"optim.warmup_lr": 1e-3}, "optim.warmup_lr=0.001: there is no warm-up; set it to 0, or warmup_epochs"),
        ({"optim.warmup_lr": 0.2, "optim.warmup_epochs": 1}, "optim.warmup_lr=0.2: above optim.lr=0.1, the highest"),
        ({"optim.warmup_lr": 0.1, "optim.warmup_epochs": 1}, None),
        ({"optim.min_lr": 0.2}, "optim.min_lr=0.2: above optim.lr=0.1, the highest rate"),
        ({"optim.min_lr": 0.1}, None),
        (
            {"optim.min_lr": 0.1, "optim.schedule": "constant"},
            "optim.min_lr=0.1: is where schedule=cosine ends; set it to 0",
        ),
        ({"optim.schedule": "step"}, "optim.milestones=null: schedule=step needs the epochs of its steps"),
        (
            {"optim.schedule": "step", "optim.milestones": []},
            "optim.milestones=[]: schedule=step needs the epochs of its steps",
        ),
        ({"optim.milestones": [3]}, "optim.milestones=[3]: schedule=cosine has none; use null"),
        (
            {"optim.schedule": "step", "optim.milestones": [3, 3]},
            "optim.milestones=[3, 3]: epochs in rising order, each once",
        ),
        ({"optim.schedule": "step", "optim.milestones": [3, 50]}, None),
        ({"stochastic_depth": 0.5, "depth": 1}, "stochastic_depth=0.5: depth=1 is the first block, where it is 0"),
        ({"stochastic_depth": 0.5, "depth": 2, "gradient_checkpointing": True}, None),
        ({"optim.momentum": 0, "optim.nesterov": False}, None),
        ({"image_size": 28, "patch_size": 28}, None),
        ({"model.random_blocks": [0, 4]}, "model.random_blocks=[0, 4]: depth=4 has the blocks 0 to 3"),
        ({"model.random_blocks": [0, 3]}, None),
    ],
)
def test_settings_that_are_impossible_together_are_refused(changes, said):
    values = DEFAULTS["pk"]
    for key, value in changes.items():
        values = with_value(key, value, values)
    if said is None:
        parse(values)
    else:
        assert refusal(values).startswith(said)


def test_the_facts_of_an_image_folder_are_asked_for():
    message = refusal(FOLDER)
    assert message.startswith(
        "data=image_folder: data.classes, data.train_images, data.test_images, data.content not set"
    )
    assert message.endswith("; mixersweep data prepare image_folder --root DIR prints the settings of a folder")
    some = composed("data=image_folder", "data.root=/images", *FACTS[:3])
    assert "data.content not set; mixersweep data prepare image_folder --root /images" in refusal(some)
    assert parse(composed("data=image_folder", *FACTS)).image_size == 224


def test_adamw_has_no_momentum_to_miss():
    assert parse(ADAMW).optim.name == "adamw"


# --- a mapping with keys of its own ------------------------------------------------------------------------------


def test_arguments_of_an_optimiser_are_whatever_it_takes():
    arguments = {"betas": [0.9, 0.99], "trust_clip": True, "eps": 1e-6, "mode": "x", "max_grad_norm": None, "steps": 3}
    assert parse(with_value("optim.arguments", arguments, TIMM)).optim.arguments == arguments
    assert parse(composed("optim=timm", "+optim.arguments.eps=1e-6")).optim.arguments == {"eps": 1e-6}
    assert parse(TIMM).optim.arguments is None


@pytest.mark.parametrize("value", [3, "x", [1], {"betas": {"a": 1}}, {"betas": ["x"]}])
def test_arguments_that_are_no_mapping_of_plain_values_are_refused(value):
    message = refusal(with_value("optim.arguments", value, TIMM))
    assert message.endswith(": expects a mapping such as {name: value}, or null")


def test_keys_below_a_mapping_pass_where_the_mapping_does():
    check_key("optim.arguments.anything", 1)
    check_key("optim.arguments.anything", 1, "timm")
    with pytest.raises(UserError, match=r"^optim\.arguments=1: sgd has no setting arguments \(it belongs to timm\)"):
        check_key("optim.arguments.anything", 1, "sgd")
    with pytest.raises(UserError, match="no such setting"):
        check_key("optim.arguments.anything.deeper", 1)
    with pytest.raises(UserError, match="no such setting"):
        check_key("optim.lr.deeper", 1)


# --- the schema as completion and help see it --------------------------------------------------------------------


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_keys_are_those_of_the_files_and_no_others():
    composed_keys = {key for values in [*DEFAULTS.values(), ADAMW, BETA_LASSO, TIMM, FOLDER] for key in flat(values)}
    groups = {"model", "optim", "data", "augment", "tracking", "seeds", "checkpoint"}
    of_runs = {key for key in composed_keys if not key.startswith("sweep.")}
    assert {key for key, _ in keys()} == of_runs | groups


@pytest.mark.parametrize("key", ["width", "data.name", "nothing", "model.nothing", "seeds.split"])
def test_settings_that_no_choice_decides_have_no_owners(key):
    assert owners(key) == []


def test_settings_that_every_choice_has_are_owned_by_all():
    assert owners("model.name") == list(FAMILIES)
    assert owners("optim.lr") == list(schema.OPTIMIZERS)


@pytest.mark.parametrize(
    ("key", "choice"), [("width", None), ("model.tied", "pk"), ("model.tied", None), ("data.mean", "x")]
)
def test_keys_that_exist_pass(key, choice):
    check_key(key, 1, choice)


def test_every_setting_is_described_in_words():
    described = {key: describe(annotation) for key, annotation in keys()}
    assert not [text for text in described.values() if re.search(r"[<>]|class|typing|None|Literal", text)]
    assert described["model"] == " or ".join(FAMILIES)
    assert described["optim"] == " or ".join(schema.OPTIMIZERS)


@pytest.mark.parametrize("module", ["mixersweep.config", "mixersweep.budget"])
def test_planning_imports_nothing_heavy(module):
    """Completion, --help and plan answer at once."""
    heavy = ["torch", "hydra", "wandb", "pydantic", "numpy", "omegaconf"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
