"""The experiments under ``configs/experiment``: their runs have the papers' numbers, and each shape of them trains."""

import dataclasses
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, get_args

import pytest
import yaml

from mixersweep.config import architecture
from mixersweep.errors import UserError
from mixersweep.families import FAMILIES
from mixersweep.families.base import BlockFamily
from mixersweep.kinds import MaskKind
from mixersweep.paths import config_dir
from mixersweep.runs import Run
from mixersweep.sweeps.expand import Expansion, expand
from mixersweep.sweeps.point import Point
from tests.speed import HANGS

FOLDER = config_dir() / "experiment"

RUNS: dict[str, dict[str, int]] = {
    "fig2_cka": {"mixer": 6, "sw_mlp": 66},
    "fig2_monarch": {"shallow_monarch": 5, "shallow_kronecker": 5},
    "fig4_width": {"mixer": 52, "sw_mlp": 52},
    "fig4_spectrum": {"mixer": 130, "sw_mlp": 130},
    "fig5_width": {"s_mixer": 144, "rp_s_mixer": 144, "sw_mlp": 45},
    "fig6_shape": {"s_mixer": 91, "rp_s_mixer": 91, "mixer": 18, "rp_mixer": 18},
    "fig7_depth": {"s_mixer": 45, "rp_s_mixer": 45, "mixer": 15, "rp_mixer": 15},
    "table1_beta_lasso": {"mixer_ss_8": 6, "mixer_ss_w": 6, "s_fc": 50},
    "table1_imagenet": {"mixer_b16": 3, "mixer_b_w": 3},
    "figS1_trainability": {"sw_mlp": 45},
    "figS1_spectrum": {"sw_mlp": 7},
    "figS2_width_gamma": {"mixer": 84, "rp_mixer": 84, "sw_mlp": 30},
    "figS3_expansion": {"mixer": 102, "rp_mixer": 102},
    "figS4_single_block": {"s_mixer": 6, "rp_s_mixer": 30},
    "figS5_patch_size": {"s_mixer": 48, "rp_s_mixer": 48},
    "figS6_overfitting": {"s_mixer": 18, "rp_s_mixer": 18, "mixer": 15, "rp_mixer": 15},
    "tableS3_cost": {"mixer": 2, "rp_mixer": 2, "sw_mlp": 2},
    "golubeva_mlp": {"golubeva_mlp": 40},
    "golubeva_resnet18": {"golubeva_resnet18": 225},
    "untied": {"s_mixer": 35, "rp_s_mixer": 35, "monarch": 35, "pk": 70, "sw_mlp": 20, "mlp": 5},
    "matched_parameters": {"s_mixer": 45, "rp_s_mixer": 45, "pk": 25, "sw_mlp": 25, "mlp": 5},
    "lr_per_width": {"s_mixer": 35, "rp_s_mixer": 35, "sw_mlp": 30, "mlp": 5},
    "fashion_mnist_width": {"s_mixer": 40, "rp_s_mixer": 40, "pk": 40, "sw_mlp": 35, "mlp": 5},
    "fashion_mnist_parameters": {"s_mixer": 20, "rp_s_mixer": 20, "pk": 10, "sw_mlp": 20, "mlp": 5},
    "fashion_mnist_wide": {"sw_mlp": 12},
    "readouts": {"s_mixer": 120, "rp_s_mixer": 120, "pk": 120, "sw_mlp": 160, "mlp": 30},
    "no_effect": {"sw_mlp": 30},
    "known_effect": {"sw_mlp": 25},
    **dict.fromkeys(
        ("structures", "structures_flops", "structures_parameters"),
        {"s_mixer": 5, "rp_s_mixer": 5, "pk": 10, "monarch": 10, "sw_mlp": 80, "hashed": 10}
        | {"block_diagonal": 20, "low_rank": 10, "btt": 10, "butterfly": 10, "mlp": 5},
    ),
    "expansion_width": {"sw_mlp": 100},
    "rewire": {"sw_mlp": 75},
}
"""The presets, and how many runs of each family they have; runs of a search not counted."""

OWN = (
    "lr_per_width",
    "fashion_mnist_width",
    "fashion_mnist_parameters",
    "readouts",
    "untied",
    "matched_parameters",
    "fashion_mnist_wide",
    "no_effect",
    "known_effect",
    "structures",
    "structures_flops",
    "structures_parameters",
    "expansion_width",
    "rewire",
)
"""Experiments that no paper has printed: each searches its learning rates."""

EXPAND_ALL = """
import pickle, sys
from mixersweep.sweeps.expand import expand
found = {name: expand([f"experiment={name}", "data_dir=/nowhere"]) for name in sys.argv[2:]}
assert not {"torch", "wandb", "numpy"} & set(sys.modules), "a plan needs neither"
runs = {name: ([p.run for p in e.points if p.run], [p for p in e.points if not p.run], e.notices)
        for name, e in found.items()}
with open(sys.argv[1], "wb") as file:
    pickle.dump(runs, file)
"""


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Run], list[Point], list[str]]]:
    """Of each preset its runs, its points without one, and what is told; expanded without data and without torch."""
    folder = tmp_path_factory.mktemp("presets")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MIXERSWEEP_")}
    command = [sys.executable, "-c", EXPAND_ALL, str(folder / "runs.pickle"), *RUNS]
    subprocess.run(command, check=True, cwd=folder, env=kept, timeout=HANGS)
    found: dict[str, tuple[list[Run], list[Point], list[str]]] = pickle.loads((folder / "runs.pickle").read_bytes())
    return found


def runs_of(presets: dict, name: str, **wanted: Any) -> list[Run]:
    """The runs, or points that wait for a learning rate, of one seed; those that agree with what is wanted."""
    runs, others, _ = presets[name]
    points = [*runs, *(p for p in others if p.config is not None)]
    seed = points[0].config.seed
    return [p for p in points if p.config.seed == seed and all(value_of(p, k) == v for k, v in wanted.items())]


def value_of(run: Run | Point, name: str) -> Any:
    config, architecture = run.config, run.architecture
    assert config is not None
    if name.startswith("model."):
        return getattr(config.model, name.partition(".")[2])
    if name in ("model", "data", "optim"):
        return getattr(config, name).name
    return getattr(architecture if hasattr(architecture, name) else config, name)


def column(runs: Iterable[Run], *names: str) -> list[Any]:
    """One value, or a tuple of several, of each run; each once, in their order."""
    rows = [tuple(value_of(run, name) for name in names) for run in runs]
    return list(dict.fromkeys(row[0] if len(names) == 1 else row for row in rows))


def head(name: str) -> str:
    """The comments of an experiment file, as text."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    comment = lines[1 : next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return re.sub(r"\\\n\s*", "", "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment))


def small_commands(name: str) -> list[list[str]]:
    """The overrides of the commands for a small machine that the file's comments name."""
    return [shlex.split(line) for line in re.findall(r"^  mixersweep train (.*)$", head(name), re.MULTILINE)]


# --- the files ---------------------------------------------------------------------------------------------------


def test_every_experiment_of_the_papers_is_there() -> None:
    there = {file.stem for file in FOLDER.glob("*.yaml")}
    assert set(RUNS) <= there
    assert {name for name in there - set(RUNS) if not name.startswith("small_")} == set()


@pytest.mark.parametrize("name", RUNS)
def test_a_file_says_what_it_shows_and_its_three_lists(name: str) -> None:
    text = head(name)
    source = "Golubeva" if name.startswith("golubeva") else "Hayase & Karakida"
    if name in OWN:
        assert "Chosen:" in text
        assert re.search(r"lacks|No figure of the papers", text)
    else:
        assert source in text.partition("As printed:")[0]
        for words in ("As printed", "Unstated, and chosen:", "Contradicted"):
            assert len(re.findall(f"^{words}", text, re.MULTILINE)) == 1, words
        assert "validation" in text
        assert re.search(r"last\s+epoch", text), "what is reported"
    for command in small_commands(name):
        assert command[0] == f"experiment={name}"


@pytest.mark.parametrize("name", [*OWN, "small_search"])
def test_own_presets_search_at_the_length_that_is_reported(name: str) -> None:
    search = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["sweep"]["search"]
    assert len(search["lr"]) >= 3 and len(search["seeds"]) >= 2
    assert search.get("epochs") is None
    assert search.get("grow", 3) > 0


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_are_as_many_as_were_meant_and_none_is_left_out(presets: dict, name: str) -> None:
    runs, others, notices = presets[name]
    if name in OWN:
        assert not runs
        assert all(point.waiting for point in others)
        runs = others
    else:
        assert not others
    assert Counter(run.config.model.name for run in runs) == RUNS[name]
    assert [notice for notice in notices if "left out" in notice or "took" in notice] == []


@pytest.mark.parametrize(
    "name", sorted(set(RUNS) - {"table1_beta_lasso", "table1_imagenet", "tableS3_cost", "fig2_monarch"})
)
def test_where_tokens_or_patches_change_all_mixers_have_the_skip_layer(presets: dict, name: str) -> None:
    """On each data set (science, 2); but for networks of a published size of their own."""
    for data in {value_of(run, "data") for run in runs_of(presets, name)}:
        mixers = [run for run in runs_of(presets, name, data=data) if run.architecture.tokens]
        if len(column(mixers, "tokens", "patches")) > 1:
            square = all(value_of(run, "model.stem") == "resize" for run in mixers)
            assert square or all(run.architecture.skip_parameters for run in mixers)


# --- the papers' numbers -----------------------------------------------------------------------------------------


def test_fig2_holds_the_width_and_sweeps_the_density(presets: dict) -> None:
    assert column(runs_of(presets, "fig2_cka", model="mixer"), "tokens", "channels", "mixing_layers", "width") == [
        (64, 64, 6, 4096),
        (32, 32, 6, 1024),
    ]
    for width, matched in ((4096, 64), (1024, 32)):
        sparse = runs_of(presets, "fig2_cka", model="sw_mlp", width=width)
        assert column(sparse, "density") == [2.0**-n for n in range(11)]
        assert column(sparse, "mixing_layers", "hidden_width") == [(6, 2 * width)]
        (mixer,) = runs_of(presets, "fig2_cka", model="mixer", width=width)
        same = [
            run.architecture.density for run in sparse if value_of(run, "connections") == mixer.architecture.connections
        ]
        assert same == [1 / matched]
    (optim,) = column(runs_of(presets, "fig2_cka"), "optim")
    assert optim == "adamw"
    config = runs_of(presets, "fig2_cka")[0].config
    assert (config.epochs, config.batch_size, config.optim.lr, config.augment.policy) == (
        600,
        128,
        0.01,
        "auto_augment",
    )


def test_fig2_monarch_has_28_times_the_weights_of_kronecker(presets: dict) -> None:
    shapes = column(runs_of(presets, "fig2_monarch"), "width", "tokens", "channels", "mixing_parameters")
    assert shapes == [(784, 28, 28, 87_808), (784, 28, 28, 3_136)]


FIG4 = {4: 360, 8: 252, 12: 203, 16: 173, 20: 152, 24: 136, 28: 124, 32: 113, 36: 104, 40: 96, 44: 89, 48: 83, 64: 64}
FIG4_X = [2880, 4032, 4872, 5536, 6080, 6528, 6944, 7232, 7488, 7680, 7832, 7968, 8192]


@pytest.mark.parametrize("name", ["fig4_width", "fig4_spectrum"])
def test_fig4_has_the_13_pairs_of_appendix_c2_and_sparse_mlps_of_their_widths(presets: dict, name: str) -> None:
    mixers, sparse = runs_of(presets, name, model="mixer"), runs_of(presets, name, model="sw_mlp")
    assert dict(column(mixers, "channels", "tokens")) == FIG4
    assert column(mixers, "hidden_width") == column(sparse, "hidden_width") == FIG4_X
    assert column(mixers, "width", "connections") == column(sparse, "width", "connections")
    assert column(sparse, "density")[0] == pytest.approx(0.126, abs=5e-4)
    assert column(sparse, "density")[-1] == 1 / 64
    assert column([*mixers, *sparse], "mixing_layers", "connections_target") == [(6, 2**19)]
    assert all(run.config.model.hidden for run in sparse)


FIG5 = {2**18: {(16, 173), (32, 113), (48, 83)}, 2**21: {(16, 504), (32, 346), (64, 226)}}
FIG5[2**27] = {(128, 1386), (256, 904)}


def test_fig5_has_the_pairs_of_appendix_c4_both_ways_and_narrow_sparse_mlps(presets: dict) -> None:
    for model in ("s_mixer", "rp_s_mixer"):
        for data in ("cifar10", "cifar100", "stl10"):
            runs = runs_of(presets, "fig5_width", model=model, data=data)
            assert column(runs, "mixing_layers") == [16]
            for connections, pairs in FIG5.items():
                found = set(
                    column([r for r in runs if value_of(r, "connections_target") == connections], "channels", "tokens")
                )
                assert found == pairs | {(s, c) for c, s in pairs}
    sparse = runs_of(presets, "fig5_width", model="sw_mlp", data="stl10")
    assert column(sparse, "width") == [540, 612, 724, 935, 1619]
    assert column(sparse, "connections", "mixing_layers", "total_connections") == [(2**18, 8, 2**21)]
    assert [round(1 - p, 1) for p in column(sparse, "density")] == [0.1, 0.3, 0.5, 0.7, 0.9]
    config = sparse[0].config
    assert (config.epochs, config.batch_size, config.optim.lr, config.optim.nesterov) == (200, 128, 0.02, True)


def test_fig6_follows_table_s2_and_on_imagenet_tokens_follow_from_the_patch(presets: dict) -> None:
    recipes = {
        "cifar10": ("adamw", 0.02, 1024, 2000, "auto_augment", 2**21, 12),
        "cifar100": ("sgd", 0.1, 128, 600, "none", 2**21, 12),
        "stl10": ("sgd", 0.1, 128, 2000, "none", 2**18, 12),
        "imagenet": ("adamw", 1e-3, 4096, 300, "rand_augment", 290_217_984, 8),
    }
    for data, recipe in recipes.items():
        runs = runs_of(presets, "fig6_shape", data=data)
        found = {
            (c.optim.name, c.optim.lr, c.batch_size, c.epochs, c.augment.policy, a.connections_target, c.depth)
            for c, a in ((run.config, run.architecture) for run in runs)
        }
        assert found == {recipe}
    ratios = {
        data: sorted(c / s for c, s in column(runs_of(presets, "fig6_shape", data=data), "channels", "tokens"))
        for data in recipes
    }
    assert (
        ratios["cifar10"] == ratios["cifar100"] == pytest.approx([0.032, 0.092, 0.283, 1, 3.53, 10.8, 31.5], rel=0.01)
    )
    assert ratios["stl10"] == pytest.approx([0.092, 0.283, 0.578, 1, 1.73, 3.53, 10.8], rel=0.01)
    shapes = column(runs_of(presets, "fig6_shape", data="imagenet", model="mixer"), "patch_size", "channels", "tokens")
    assert shapes == [(7, 147, 923), (8, 192, 779), (14, 588, 283), (16, 768, 196), (28, 2352, 26), (32, 3072, 15)]
    assert all(channels == 3 * patch**2 for patch, channels, _ in shapes)
    printed = [patch**2 / (224 // patch) ** 2 for patch, _, _ in shapes]  # its axis: P²/S0
    assert printed == pytest.approx([0.048, 0.082, 0.766, 1.306, 12.25, 20.9], rel=0.01)


def test_fig7_has_five_depths(presets: dict) -> None:
    for data in ("cifar10", "cifar100", "stl10"):
        shapes = column(runs_of(presets, "fig7_depth", data=data), "model", "depth", "tokens", "channels")
        assert shapes == [(model, depth, 128, 128) for model in ("s_mixer", "rp_s_mixer") for depth in range(4, 21, 4)]
    shapes = column(runs_of(presets, "fig7_depth", data="imagenet"), "model", "depth", "tokens", "channels")
    assert shapes == [(model, depth, 283, 588) for model in ("mixer", "rp_mixer") for depth in range(4, 21, 4)]


def test_table1_has_its_totals_its_widths_and_its_learning_rates(presets: dict) -> None:
    def total(run: Run) -> int:
        a = run.architecture
        return a.total_connections + a.patches * a.stem_parameters  # the patch FC counts there

    for data in ("cifar10", "cifar100"):
        small, wide = (
            runs_of(presets, "table1_beta_lasso", model=m, data=data)[0] for m in ("mixer_ss_8", "mixer_ss_w")
        )
        assert [total(small), total(wide)] == pytest.approx([255.9e6, 255.4e6], abs=6e4)
        assert [small.architecture.hidden_width, wide.architecture.hidden_width] == pytest.approx(
            [6.3e4, 1.2e5], rel=0.01
        )
        assert (small.config.optim.lr, wide.config.optim.lr) == (0.06 if data == "cifar100" else 0.04, 0.04)
        assert {(r.config.batch_size, r.config.epochs) for r in (small, wide)} == {(1024, 4000)}
        lasso = runs_of(presets, "table1_beta_lasso", model="s_fc", data=data)
        assert len({(r.config.optim.conv_lambda, r.config.optim.fc_lambda) for r in lasso}) == len(lasso) == 25
        assert {r.config.optim.beta for r in lasso} == {50}
        assert {(r.config.batch_size, r.config.epochs) for r in lasso} == {(512, 4000)}
        assert lasso[0].architecture.total_connections == pytest.approx(256.2e6, rel=2e-3)
    b16, wide = runs_of(presets, "table1_imagenet")
    assert [b16.architecture.connections, wide.architecture.connections] == pytest.approx([2.601e8, 2.605e8], rel=2e-4)
    assert [b16.architecture.hidden_width, wide.architecture.hidden_width] == pytest.approx([6.02e5, 6.17e5], rel=1e-3)
    assert b16.architecture.width == wide.architecture.width == 150_528
    assert (b16.config.depth, wide.config.depth, wide.config.patch_size) == (12, 8, 14)


def test_figs1_sweeps_the_density_at_fixed_connections(presets: dict) -> None:
    runs = runs_of(presets, "figS1_trainability")
    assert column(runs, "width") == [2560, 1810, 1478, 1280, 1145, 810, 362, 286, 270]
    assert column(runs, "connections") == [2**16]
    assert column(runs, "density") == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.5, 0.8, 0.9], rel=0.01)
    spectra = runs_of(presets, "figS1_spectrum")
    assert column(spectra, "width") == [round(1000 ** ((1 + n / 4) / 2)) for n in range(7)]
    assert column(spectra, "density") == pytest.approx([1000 ** -(n / 4) for n in range(7)], rel=0.03)
    assert column(spectra, "mixing_layers", "connections") == [(50, 1000)]


def test_figs2_has_the_hidden_widths_that_the_figure_shows(presets: dict) -> None:
    for model in ("mixer", "rp_mixer"):
        runs = runs_of(presets, "figS2_width_gamma", model=model, data="cifar10")
        few = [run for run in runs if run.architecture.connections < 2**19]
        assert sorted(set(column(few, "hidden_width"))) == [2768, 4068, 5312, 5888, 6400, 6528]
        assert sorted(column(few, "channels")) == [16, 32, 48, 64, 83, 113, 173]
        many = [run for run in runs if run not in few]
        assert sorted(set(column(many, "hidden_width"))) == [11072, 14464, 15936, 16384]
        assert sorted(column(many, "channels")) == [16, 32, 48, 64, 83, 113, 173]
        assert column(runs, "mixing_layers", "expansion") == [(16, 4.0)]
    sparse = runs_of(presets, "figS2_width_gamma", model="sw_mlp", data="cifar100")
    assert column(sparse, "hidden_width") == [2160, 2448, 2896, 3740, 6476]
    assert column(sparse, "connections", "mixing_layers") == [(2**20, 8)]
    assert {run.config.optim.lr for run in runs_of(presets, "figS2_width_gamma")} == {0.1}


def test_figs3_fixes_width_connections_and_shape_and_gamma_follows(presets: dict) -> None:
    runs = runs_of(presets, "figS3_expansion", model="rp_mixer")
    assert column(runs, "width") == [4096, 4104, 4080, 4088]
    for run in runs:
        a = run.architecture
        assert a.connections == pytest.approx(a.connections_target, rel=0.005)
        assert a.expansion == pytest.approx(2 * a.connections_target / (a.width * (a.tokens + a.channels)), rel=1e-6)
    left = [run for run in runs if run.architecture.width == 4096]
    assert len(left) == 28
    assert min(column(left, "expansion")) == pytest.approx(0.0625, abs=0.001)
    assert max(column(left, "expansion")) == 16
    right = [s / c for s, c in column([run for run in runs if run not in left], "tokens", "channels")]
    assert sorted(right) == pytest.approx([0.092, 0.283, 0.77, 1.30, 3.5, 10.8], rel=0.06)


def test_figs4_replaces_one_block_at_a_time(presets: dict) -> None:
    runs = runs_of(presets, "figS4_single_block", data="stl10")
    random = [run.config.model.random_blocks for run in runs if run.config.model.name == "rp_s_mixer"]
    assert random == [[0], [1], [2], [3], "all"]
    assert column(runs, "tokens", "channels", "depth") == [(128, 128, 4)]


def test_figs5_changes_the_patch_and_nothing_else(presets: dict) -> None:
    small = column(
        runs_of(presets, "figS5_patch_size", data="cifar10", model="s_mixer"), "patch_size", "tokens", "channels"
    )
    assert small == [(2**n, 64, 64) for n in range(6)]
    stl10 = runs_of(presets, "figS5_patch_size", data="stl10", model="rp_s_mixer")
    assert column(stl10, "patch_size", "patches") == [(p, (90 // p) ** 2) for p in (1, 3, 6, 10, 18, 30)]
    assert {(run.config.epochs, run.config.image_size) for run in stl10} == {(400, 90)}


def test_figs6_has_its_three_figures(presets: dict) -> None:
    shapes = column(runs_of(presets, "figS6_overfitting", model="rp_s_mixer", optim="sgd"), "channels", "tokens")
    assert shapes == [(16, 173), (32, 113), (64, 64), (114, 32), (173, 16)]
    hidden = runs_of(presets, "figS6_overfitting", model="mixer")
    assert column(hidden, "channels", "tokens")[2] == (64, 64)
    assert column(hidden, "batch_size", "expansion", "epochs") == [(256, 4.0, 600)]
    adamw = runs_of(presets, "figS6_overfitting", optim="adamw")
    assert column(adamw, "model", "channels", "tokens") == [("s_mixer", 64, 64), ("rp_s_mixer", 64, 64)]
    assert {run.config.optim.lr for run in adamw} == {0.01}


def test_tables3_has_two_columns_of_equal_connections(presets: dict) -> None:
    for data, connections, layers in (("cifar10", 344_064, 6), ("imagenet", 254_091_264, 16)):
        runs = runs_of(presets, "tableS3_cost", data=data)
        assert column(runs, "connections", "mixing_layers", "batch_size") == [(connections, layers, 128)]
        assert column(runs, "model") == ["mixer", "rp_mixer", "sw_mlp"]
    sparse = runs_of(presets, "tableS3_cost", data="imagenet", model="sw_mlp")[0].architecture
    assert 2 * 4 * sparse.width * sparse.hidden_width * 2 * 16 == pytest.approx(23.2e12, rel=2e-3)  # as masked dense


def test_golubevas_networks_keep_their_weights_as_they_widen(presets: dict) -> None:
    mlps = runs_of(presets, "golubeva_mlp")
    assert column(mlps, "width") == [5 * 2**n for n in range(8)]
    assert column(mlps, "total_connections", "patches") == [(3970, 49)]
    for base, weights in ((8, 1.8e5), (12, 4.0e5), (18, 9.0e5), (40, 4.4e6), (64, 1.1e7)):
        runs = [r for r in runs_of(presets, "golubeva_resnet18", data="cifar10") if r.config.model.base_width == base]
        (total,) = column(runs, "total_connections")
        assert total == pytest.approx(weights, rel=0.04)
        assert column(runs, "width")[0] == base
        assert column(runs, "density")[0] == 1
    points = [p for p in expand(["experiment=golubeva_resnet18", "seed=0"]).points if p.config]
    augmented = {(p.config.data.name, p.config.augment.crop_padding, p.config.augment.flip) for p in points}
    assert augmented == {("cifar10", 4, True), ("cifar100", 4, True), ("svhn", 4, True)}, "as the authors' code does"


def test_controls_have_equal_connections_or_equal_weights(presets: dict) -> None:
    untied = runs_of(presets, "untied")
    assert {r.architecture.residual < 0.01 for r in untied} == {True}
    assert column(untied, "mixing_layers", "connections_real_target") == [(16, 2**18)]
    tall, wide = {(70, 56), (91, 42), (123, 28), (190, 14)}, {(53, 73), (35, 101), (18, 156)}
    for model in ("s_mixer", "rp_s_mixer", "monarch", "pk"):
        found = set(column([r for r in untied if r.config.model.name == model], "tokens", "channels"))
        assert found == tall | wide
    assert set(column([r for r in untied if r.config.model.name == "sw_mlp"], "width")) == {s * c for s, c in tall}
    matched = runs_of(presets, "matched_parameters")
    assert all(r.architecture.weights_real == pytest.approx(4096, rel=0.02) for r in matched)
    assert max(column([r for r in matched if r.config.model.name == "s_mixer"], "width")) == 4096
    sparse = [r for r in matched if r.config.model.name == "sw_mlp"]
    assert column(sparse, "mean_fan_in")[-1] == 4
    searched = runs_of(presets, "lr_per_width")
    assert max(column(searched, "width")) == 4 * 3920
    assert max(column(runs_of(presets, "fashion_mnist_width"), "width")) == 4 * 360
    for name in ("untied", "lr_per_width", "fashion_mnist_width", "readouts"):
        assert all(
            abs(value_of(r, "connections_real") / value_of(r, "connections_real_target") - 1) < 0.02
            for r in runs_of(presets, name)
        )


def test_the_wide_ones_have_their_mean_fan_in(presets: dict) -> None:
    runs = runs_of(presets, "fashion_mnist_wide")
    assert column(runs, "mean_fan_in") == [32, 16, 8, 4, 2, 0.5]
    assert 4 * column(runs, "width")[-1] ** 2 >= 64 * 2**30


def test_where_no_effect_is_two_names_have_the_same_sizes_at_widths_as_good_as_one(presets: dict) -> None:
    runs = runs_of(presets, "no_effect")
    names = {run.config.seeds.structure for run in runs}
    assert len(names) == 2 and None not in names
    of_each = {name: {r.architecture for r in runs if r.config.seeds.structure == name} for name in names}
    (sizes, same) = of_each.values()
    assert sizes == same and len(sizes) == 3
    assert max(a.width for a in sizes) < 1.05 * min(a.width for a in sizes)
    assert {(a.connections, a.readout_dimension) for a in sizes} == {(2**14, 64)}


def test_where_an_effect_is_known_wider_networks_see_more_of_the_image_and_nothing_else_differs(presets: dict) -> None:
    sizes = {run.architecture for run in runs_of(presets, "known_effect")}
    assert sorted(a.width for a in sizes) == [16, 23, 32, 45, 64]
    assert {(a.patches, a.embedding_channels) for a in sizes} == {(256, 1)}  # each unit reads a patch of its own
    assert all(a.readout_dimension is not None and a.readout_dimension < a.width for a in sizes)
    alike = ("connections_real", "mixing_parameters", "flops_per_image", "readout_dimension", "stem_parameters")
    assert len({tuple(getattr(a, name) for name in alike) for a in sizes}) == 1
    assert min(a.mean_fan_in for a in sizes) == 4


TOURNAMENTS = {
    "structures": ("connections_real", 18_432),
    "structures_flops": ("flops_per_image", 165_120),
    "structures_parameters": ("weights_real", 2_080),
}
"""What each tournament of structures holds, and how many of them."""


@pytest.mark.parametrize("name", TOURNAMENTS)
def test_a_tournament_has_every_structure_at_one_budget_and_one_readout(presets: dict, name: str) -> None:
    runs = runs_of(presets, name)
    held, wanted = TOURNAMENTS[name]
    assert {abs(value_of(run, held) / wanted - 1) <= 0.02 for run in runs} == {True}
    assert len(column(runs, "model.head", "model.readout_dimension")) == 1
    assert column(runs, "mixing_layers") == [4]
    with_hidden_layers = {family for family in FAMILIES if family == "rp_mixer" or family.startswith("mixer")}
    blocks = {family for family, kind in FAMILIES.items() if issubclass(kind, BlockFamily)}
    assert set(column(runs, "model")) == blocks - with_hidden_layers
    masks = [run for run in runs if run.config.model.name == "sw_mlp"]
    assert set(column(masks, "model.mask")) == set(get_args(MaskKind)) - {"bernoulli"}


def test_the_tournaments_mixers_have_square_layers_and_no_skip(presets: dict) -> None:
    for name in ("structures", "structures_flops"):
        mixers = [run for run in runs_of(presets, name) if run.architecture.tokens]
        assert column(mixers, "tokens", "patches", "channels", "skip_parameters") == [(64, 64, 8, 0)]
    assert {run.architecture.skip_parameters for run in runs_of(presets, "structures_parameters")} == {0}


def test_expansion_multiplies_the_units_of_a_dense_network(presets: dict) -> None:
    runs = runs_of(presets, "expansion_width")
    for mask, factors in (("expansion", (1, 2, 4, 8)), ("degree_regular", (2, 4, 8)), ("exact", (2, 4, 8))):
        sizes = [(value_of(r, "connections"), value_of(r, "width")) for r in runs if r.config.model.mask == mask]
        assert sizes == [(dense**2, factor * dense) for dense in (64, 128) for factor in factors]


def test_what_moves_stands_beside_what_stays_at_three_densities(presets: dict) -> None:
    runs = runs_of(presets, "rewire")
    ways = [("exact", way) for way in ("none", "set", "rigl")]
    ways += [("fixed_fan_in", way) for way in ("none", "srigl")]
    found = Counter((r.config.model.mask, r.config.optim.rewire, round(value_of(r, "density"), 2)) for r in runs)
    assert found == Counter((*way, density) for way in ways for density in (0.1, 0.05, 0.02))
    assert column(runs, "connections") == [2**14]


@pytest.mark.parametrize("name", sorted(name for name in RUNS if name.startswith("fig")))
def test_a_preset_of_the_papers_says_what_its_mixers_have_beside_the_formula(presets: dict, name: str) -> None:
    """Where first layer and skip make more than 2% of difference, which integers make anyway."""
    mixers = [run.architecture for run in runs_of(presets, name) if run.architecture.tokens]
    times = [a.connections_real / a.connections for a in mixers if a.connections_real is not None]
    said = re.search(
        r"^Residual: with first layer and skip the Mixers have (\S+) to (\S+) times", head(name), re.MULTILINE
    )
    if all(abs(share - 1) <= 0.02 for share in times):
        assert said is None
    else:
        assert said is not None
        assert [float(share) for share in said.groups()] == pytest.approx([min(times), max(times)], rel=0.01)


# --- on a small machine ------------------------------------------------------------------------------------------

FIXED_SIZES = ("fig2_cka", "fig2_monarch", "table1_beta_lasso", "table1_imagenet", "tableS3_cost", "golubeva_mlp")
FIXED_SIZES = (*FIXED_SIZES, "golubeva_resnet18", "matched_parameters", "figS1_spectrum")
FIXED_SIZES = (*FIXED_SIZES, "fashion_mnist_parameters", "fashion_mnist_wide", "no_effect", "known_effect")
FIXED_SIZES = (*FIXED_SIZES, "structures", "structures_flops", "structures_parameters", "expansion_width")
"""What does not hold a number of connections that may be another; their files say how they become small."""


@cache
def small(name: str) -> list[Expansion]:
    """What the commands for a small machine mean, of one seed."""
    commands = small_commands(name) or [[f"experiment={name}", "data=fashion_mnist_10k"]]
    return [expand([*(part for part in command if not part.startswith("seed=")), "seed=0"]) for command in commands]


@pytest.mark.parametrize("name", RUNS)
def test_the_commands_for_a_small_machine_have_the_families_and_fit_it(name: str) -> None:
    models: set[str] = set()
    for expansion in small(name):
        points = [point for point in expansion.points if point.config is not None]
        assert len(points) == len(expansion.points) > 0
        models |= {point.config.model.name for point in points}
        assert {p.config.data.name for p in points} <= {"fashion_mnist_10k", "digits"}
        if name != "golubeva_resnet18":
            assert max(p.architecture.parameters for p in points) < 3e7
    of_images = {"mixer", "rp_mixer"} if name in ("fig6_shape", "fig7_depth") else set()  # ImageNet's fall away
    assert models == set(RUNS[name]) - of_images


@pytest.mark.parametrize("name", sorted(set(RUNS) - set(FIXED_SIZES)))
def test_other_connections_leave_several_shapes(name: str) -> None:
    (expansion,) = small(name)
    sizes = [p.architecture for p in expansion.points]
    connections = {a.connections_real_target or a.connections_target for a in sizes}
    assert len(connections) == 1
    wanted = {"fig7_depth": 1, "figS4_single_block": 1, "figS5_patch_size": 1}.get(name, 3)
    for model in {p.config.model.name for p in expansion.points} - {"mlp"}:
        shapes = {
            (p.architecture.width, p.architecture.channels) for p in expansion.points if p.config.model.name == model
        }
        assert len(shapes) >= wanted, model


def test_another_family_or_optimiser_leaves_out_what_it_has_not() -> None:
    only = ["experiment=fig4_width", "channels=16,64", "seed=0"]
    mixers = expand([*only, "model=s_mixer", "expansion=1"]).points
    found = [(point.architecture.channels, point.config.model.skip_layer) for point in mixers]
    assert found == [(16, "always"), (64, "always"), (16, "auto"), (64, "auto")]
    both = expand([*only, "model=mixer,sw_mlp"]).points
    assert Counter(p.config.model.name for p in both) == {"mixer": 4, "sw_mlp": 2}  # a single layer has no expansion
    adamw = expand(["experiment=table1_beta_lasso", "model=s_fc", "optim=adamw", "data=cifar10", "seed=0"]).points
    assert [p.config.optim.name for p in adamw] == ["adamw"] * len(adamw)
    with pytest.raises(UserError, match=r"model\.tied=false: sw_mlp has no setting tied"):
        expand([*only, "model=sw_mlp", "model.tied=false"])


# --- a step of every shape ---------------------------------------------------------------------------------------

REAL, REAL_MASKED = 1e7, 7e6
"""Weights, and connections in all, up to which a network is really built and trained. Beyond, Mixers and dense
networks are on meta tensors. Masks cannot be drawn there, so wider sparse MLPs have a single block, and Golubeva's
ResNets are all built.
"""

NOT_DRAWN = {("fig2_cka", 4096, 2.0**-n) for n in range(4)} | {
    ("tableS3_cost", 150_528, 254_091_264 / (4 * 150_528**2))
}
"""Sparse MLPs (preset, width, density) of which one block takes gigabytes: their arithmetic alone is tested."""


def shape_of(run: Run | Point) -> str:
    """What decides the tensors of a training step; of networks that differ in the number of classes one is enough."""
    config, a = run.config, run.architecture
    assert config is not None and a is not None
    sizes = (
        a.width,
        a.hidden_width,
        a.tokens,
        a.channels,
        a.connections,
        a.mixing_layers,
        a.patches,
        a.skip_parameters,
    )
    return repr((config.model, sizes, config.image_size, config.data.image_channels, type(config.optim)))


def distinct(runs: Iterable[Run | Point]) -> list[Run | Point]:
    return list({shape_of(run): run for run in runs}.values())


def with_one_block(run: Run | Point) -> Run | Point:
    config = dataclasses.replace(run.config, depth=1)
    return dataclasses.replace(run, config=config, architecture=architecture(config))


def train_one_step(run: Run | Point, device: str = "cpu") -> None:
    """Build the network, and update it once with a batch of two images."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from mixersweep.models import build
    from mixersweep.models.mlp import choose_storage
    from mixersweep.training.optimizer import make_optimizer

    config, a = run.config, run.architecture
    assert config is not None and a is not None
    with torch.device(device):
        network = build(config, a)
    network.to(device)
    choose_storage(network, "auto", torch.device("cpu"), 2)
    drawn = a.connections * getattr(config.model, "mask", "exact").startswith("bernoulli") * a.mixing_layers * 2
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(a.parameters, abs=6 * math.sqrt(drawn))
    optimizer = make_optimizer(network, config.optim)
    before = [p.detach().clone() for p in network.parameters()] if device == "cpu" else []
    images = torch.randn(2, config.data.image_channels, config.image_size, config.image_size, device=device)
    logits = network(images)
    assert logits.shape == (2, config.data.classes)
    loss = F.cross_entropy(logits, torch.zeros(2, dtype=torch.long, device=device))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
    optimizer.step()
    if device == "cpu":
        assert math.isfinite(loss.item())
        assert all(bool(torch.isfinite(p).all()) for p in network.parameters())
        moved = [not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True)]
        assert any(moved)


@pytest.mark.parametrize("name", RUNS)
def test_each_shape_on_a_small_machine_trains(name: str) -> None:
    points = [point for expansion in small(name) for point in expansion.points]
    shapes = [point for point in distinct(points) if total(point) < REAL]
    assert shapes
    for point in shapes:
        train_one_step(point)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_each_shape_as_printed_trains(presets: dict, name: str) -> None:
    runs, others, _ = presets[name]
    not_drawn = set()
    for run in distinct([*runs, *others]):
        family = run.config.model.name
        if family != "sw_mlp":
            has_masks = family == "golubeva_resnet18"
            train_one_step(run, "cpu" if has_masks or total(run) < REAL else "meta")
        elif total(run) < REAL_MASKED or total(with_one_block(run)) < REAL:
            train_one_step(run if total(run) < REAL_MASKED else with_one_block(run))
        else:
            not_drawn.add((name, run.architecture.width, run.architecture.density))
    assert not_drawn == {shape for shape in NOT_DRAWN if shape[0] == name}


def total(run: Run | Point) -> int:
    """Weights or connections, whichever are more."""
    assert run.architecture is not None
    return max(run.architecture.parameters, run.architecture.total_connections)
