"""Networks that are lists of layers: water-filling, the papers' counts, and what is refused."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixersweep.budget import Request, solve_layered
from mixersweep.budget.layered import water_filling
from mixersweep.errors import UserError
from mixersweep.families.golubeva import ResNet18, TwoLayerMLP
from mixersweep.families.s_fc import ThreeMatrices


def mlp(weights_total=3970, **asked):
    return solve_layered(Request(structure="layered", depth=1, **asked), TwoLayerMLP(1, 28, 10, weights_total))


def resnet(base_width=8, image_channels=3, image_size=32, **asked):
    kind = ResNet18(image_channels, image_size, 10, base_width)
    return solve_layered(Request(structure="layered", depth=8, **asked), kind)


def s_fc(alpha, image_size=32, **asked):
    return solve_layered(Request(structure="layered", depth=1, **asked), ThreeMatrices(3, image_size, 10, alpha))


def removed_one_by_one(sizes, total):
    """Golubeva's rule as it is told: take a weight from the largest tensor until they are few enough."""
    kept = list(sizes)
    while sum(kept) > total:
        largest = max(kept)
        kept[len(kept) - 1 - kept[::-1].index(largest)] -= 1  # of equals the last: the first keep one more
    return kept


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_water_filling_is_removing_from_the_largest(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    kept = water_filling(sizes, total)
    assert kept == removed_one_by_one(sizes, total)
    assert sum(kept) == total


def test_water_filling_by_hand():
    assert water_filling([100, 10, 50], 160) == [100, 10, 50]
    assert water_filling([100, 10, 50], 110) == [50, 10, 50]
    assert water_filling([100, 10, 50], 81) == [36, 10, 35]
    assert water_filling([100, 10, 50], 30) == [10, 10, 10]
    assert water_filling([100, 10, 50], 0) == [0, 0, 0]


@pytest.mark.parametrize(
    ("width", "first", "head"),
    [(5, 3920, 50), (80, 3170, 800), (198, 1990, 1980), (320, 1985, 1985), (640, 1985, 1985)],
)
def test_golubevas_mlp_keeps_its_head_until_it_equals_the_first_layer(width, first, head):
    found = mlp(width=width)
    assert (found.mixing_parameters, found.head_parameters) == (first, head)
    assert found.total_connections == 3970
    assert (found.connections, found.connections_counted, found.connections_target) == (1985, 1985.0, 1985)
    assert found.density == 3970 / (794 * width)
    assert found.parameters == 3970 + width + 10
    assert found.flops_per_image == 2 * 3970
    assert (found.width, found.hidden_width, found.depth, found.mixing_layers) == (width, width, 1, 2)
    assert (found.tokens, found.channels, found.stem_parameters, found.skip_parameters) == (None, None, 0, 0)


@pytest.mark.parametrize(("weights", "width"), [(3970, 5), (6352, 8), (3971, 6), (2, 1)])
def test_auto_is_the_base_width_or_the_next(weights, width):
    found = mlp(weights)
    assert found.width == width
    assert found.total_connections == weights
    assert (found.density == 1) == (weights % 794 == 0)


@pytest.mark.parametrize("width", [8, 32, 128, 216, 328, 512, 635])
def test_figure_8_has_its_6352_weights_at_every_width(width):
    assert mlp(6352, width=width).total_connections == 6352


def resnet_weights(width, image_channels=3, classes=10):
    """Kernels in units of width²: 4·9; then 18 + 3·36 and a shortcut of 2, times 1, 4 and 16."""
    return (36 + (18 + 3 * 36 + 2) * (1 + 4 + 16)) * width**2 + 9 * image_channels * width + 8 * width * classes


@pytest.mark.parametrize(("base_width", "published"), [(8, 1.8e5), (12, 4.0e5), (18, 9.0e5), (40, 4.4e6), (64, 1.1e7)])
def test_the_dense_resnets_have_the_papers_weights(base_width, published):
    found = resnet(base_width)
    assert found.total_connections == resnet_weights(base_width)
    assert found.total_connections == pytest.approx(published, rel=0.03)
    assert (found.density, found.mixing_layers, found.depth) == (1.0, 21, 8)
    assert found.skip_parameters == 2 * 21 * base_width**2
    assert found.head_parameters == 80 * base_width
    norms = 2 * base_width * (1 + 4 + 5 * (2 + 4 + 8))
    assert found.parameters == found.total_connections + norms + 10


def test_resnet18_at_64_is_the_one_that_everybody_counts():
    """11,173,962 parameters of the usual CIFAR ResNet-18: weights, norms and the head's bias; 0.56 G multiply-adds."""
    found = resnet(64)
    assert found.parameters == 11_173_962
    assert found.flops_per_image == 2 * 555_422_720


def test_a_wider_resnet_keeps_the_weights_and_its_small_layers():
    base, wide = resnet(8), resnet(8, width=64)
    assert wide.total_connections == base.total_connections == resnet_weights(8)
    assert (wide.connections, wide.connections_target) == (base.connections, base.connections_target)
    assert wide.density == pytest.approx(resnet_weights(8) / resnet_weights(64))
    assert wide.head_parameters == 80 * 64  # dense still
    assert (wide.width, wide.hidden_width) == (64, 512)
    assert wide.parameters - wide.total_connections == resnet(64).parameters - resnet(64).total_connections


def test_a_resnet_on_odd_images_halves_upwards():
    """28, 14, 7, 4 pixels."""
    w = 8
    places = [28**2, 14**2, 7**2, 4**2]
    counted = 9 * w * places[0] + 36 * w * w * places[0] + 80 * w
    for stage in (1, 2, 3):
        counted += 128 * w * w * 4 ** (stage - 1) * places[stage]
    assert resnet(8, image_channels=1, image_size=28).flops_per_image == 2 * counted


def test_s_fc_has_the_weights_of_the_paper():
    found = s_fc(150)
    assert found.total_connections == 3072 * 38400 + 38400 * 3600 + 3600 * 10 == 256_240_800
    assert (found.width, found.hidden_width, found.mixing_layers, found.density) == (38400, 38400, 3, 1.0)
    assert found.parameters == 256_240_800 + 2 * (38400 + 3600) + 10
    assert found.connections == round(Fraction(256_240_800, 3))
    assert s_fc(2, image_size=28).width == 14 * 14 * 2
    assert s_fc(2, width=512) == s_fc(2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: mlp(width=4), "width=4: too narrow for the 3970 weights of model.weights_total; .* holds them: 5"),
        (lambda: mlp(1), "model.weights_total=1: a weight for each of the 2 matrices is the least"),
        (lambda: resnet(12, width=11), "width=11: too narrow for the 393540 weights of model.base_width; .*: 12"),
        (lambda: s_fc(2, width=700), "width=700: s_fc with model.alpha=2 has the one width 512; .* is model.alpha=3"),
        (lambda: s_fc(2, width=1), "model.alpha=1$"),
        (lambda: mlp(tokens=4), "tokens=4: golubeva_mlp has as many weights as model.weights_total says"),
        (lambda: mlp(channels=4), "channels=4: .*no setting channels; leave channels=auto"),
        (lambda: resnet(density=0.5), r"density=0\.5: golubeva_resnet18 has"),
        (lambda: mlp(connections=2**15), r"connections=32768: .* \(connections=1985 a matrix\)"),
        (lambda: mlp(weights=1985), "weights=1985: "),
        (lambda: mlp(budget="parameters"), "budget=parameters: "),
        (lambda: mlp(expansion=2), "expansion=2: golubeva_mlp has expansion=1 and no other"),
    ],
)
def test_what_these_networks_cannot_be_is_refused_by_name(asked, said):
    with pytest.raises(UserError, match=said) as refused:
        asked()
    assert "\n" not in str(refused.value)


def test_a_depth_of_others_is_refused_and_their_own_connections_are_not():
    with pytest.raises(UserError, match="depth=4: golubeva_mlp has depth=1 and no other"):
        solve_layered(Request(structure="layered", depth=4), TwoLayerMLP(1, 28, 10, 3970))
    assert mlp(connections=1985) == mlp()
