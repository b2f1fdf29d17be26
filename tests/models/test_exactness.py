"""Exactness where the papers state equalities, and the spectra that they predict at initialisation.

Whole networks with their fast paths against explicit index permutations; Corollary 3.4; the largest singular values
of Mixers and sparse-weight MLPs (section 4.3); masked weights through training, eager and compiled.
"""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mixersweep.compose import config_of
from mixersweep.config import architecture
from mixersweep.layers import (
    Commutation,
    IndexPermutation,
    PermutedKronecker,
    RandomPermutation,
    SparseMap,
    SparseWeights,
    draw_mask,
)
from mixersweep.models import build
from mixersweep.models.mlp import choose_storage
from mixersweep.training.optimizer import make_optimizer


def network_of(*overrides: str) -> nn.Module:
    config = config_of(list(overrides))
    return build(config, architecture(config))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_biases(network: nn.Module) -> None:
    """Biases start at zero: give them values that a test can see."""
    with torch.no_grad():
        for number, layer in enumerate(network.modules()):
            if isinstance(layer, SparseMap) and layer.bias is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=seeded(number)) * 0.3)


# --- PK with explicit permutations -----------------------------------------------------------------------------------

MIXERS = {
    "s_mixer": ["model=s_mixer"],
    "s_mixer resize": ["model=s_mixer", "model.stem=resize"],
    "s_mixer no bias": ["model=s_mixer", "model.bias=false", "model.head=linear"],
    "mixer": ["model=mixer", "expansion=1.7"],
    "mixer apart": ["model=mixer", "model.token_expansion=0.4", "model.channel_expansion=3"],
    "pk untied": ["model=pk", "model.tied=false"],
    "pk untied hidden": ["model=pk", "model.tied=false", "model.hidden=true", "expansion=1.3"],
}
SHAPES = {"odd": (9, 13), "square": (16, 16), "one token": (1, 7), "two channels": (11, 2)}


def transposing(rows: int, columns: int) -> IndexPermutation:
    """J_c of a (rows, columns) table that is stored row by row, index by index."""
    indices = torch.empty(rows * columns, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            indices[j * rows + i] = i * columns + j
    return IndexPermutation(indices)


def by_indices(network: nn.Module) -> nn.Module:
    """A copy that permutes by index everywhere: no strided copy, and a gather even for the identity."""
    slow = copy.deepcopy(network)
    for layer in slow.modules():
        if isinstance(layer, PermutedKronecker):
            for place in ("before", "after"):
                fast = getattr(layer, place)
                assert not isinstance(fast, IndexPermutation)
                transposed = isinstance(fast, Commutation)
                explicit = transposing(fast.rows, fast.columns) if transposed else transposing(1, fast.width)
                setattr(layer, place, explicit)
            layer._map_features_first = partial(with_images_first, layer)
    return slow


def with_images_first(layer: PermutedKronecker, x: Tensor) -> Tensor:
    """The layer on features first, by its plain definition."""
    return layer(x.reshape(layer.in_width, -1).t()).t()


def both(name: str, shape: str, *overrides: str) -> tuple[nn.Module, nn.Module]:
    """A network, and the same one by indices."""
    tokens, channels = SHAPES[shape]
    sizes = [f"tokens={tokens}", f"channels={channels}", "depth=2", "patch_size=8"]
    fast = network_of(*MIXERS[name], *sizes, *overrides)
    drawn_biases(fast)
    slow = by_indices(fast)
    assert sum(isinstance(part, IndexPermutation) for part in slow.modules()) >= 8
    return fast, slow


def outputs_and_gradients(network: nn.Module, images: Tensor, upstream: Tensor) -> list[Tensor]:
    """The logits, and the gradients of the images and of all parameters."""
    x = images.to(upstream).requires_grad_()
    logits = network(x)
    return [logits.detach(), *torch.autograd.grad(logits, [x, *network.parameters()], upstream)]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MIXERS)
def test_pk_with_explicit_permutations_is_the_mixer(name: str, shape: str, batch: int) -> None:
    """In float64, where only the order of adding differs: as near as one rounding of every number leaves it."""
    fast, slow = (network.double() for network in both(name, shape))
    images = torch.randn(batch, 1, 32, 32, dtype=torch.float64, generator=seeded(1))
    upstream = torch.randn(batch, 10, dtype=torch.float64, generator=seeded(2))
    found, expected = (outputs_and_gradients(network, images, upstream) for network in (fast, slow))
    draws = [rounded(slow, images, upstream, seeded(seed)) for seed in range(3)]
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        scale = max(1.0, float(other.abs().max()))  # an error is one of the largest sum in a gradient
        moved = max(float((draw[place] - other).abs().max()) for draw in draws)
        assert float((one - other).abs().max()) <= ROUNDINGS * (moved + EPS * scale)


ROUNDINGS = 16
"""Sums of a hundred numbers err by some ten roundings. A LayerNorm of one or two channels makes more of each: its
gradients are what is left of numbers 1 / sqrt(norm_eps) = 316 times as large, which ``rounded`` shows too."""
EPS = torch.finfo(torch.float64).eps


def rounded(network: nn.Module, images: Tensor, upstream: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Outputs and gradients where each weight and pixel is one rounding off, up or down at random."""

    def off(numbers: Tensor) -> Tensor:
        up = torch.randint(2, numbers.shape, generator=generator, dtype=torch.float64)
        return numbers * (1 + EPS * (2 * up - 1))

    network = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(off(parameter))
    return outputs_and_gradients(network, off(images), upstream)


class Remainders(nn.Module):
    """In place of a norm or an activation: keeps numbers whole and from -5 to 5, and gradients on their way back."""

    def __init__(self, *like: nn.Module) -> None:
        super().__init__()
        for name, parameter in (pair for module in like for pair in module.named_parameters()):
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y = _Remainders.apply(x)
        return y * self.weight + self.bias if hasattr(self, "weight") else y


class _Remainders(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x + 5) % 11 - 5

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return (g + 5) % 11 - 5


def with_whole_numbers(network: nn.Module) -> nn.Module:
    """A copy all of whose sums fp32 has exactly, in whatever order a processor adds."""
    whole = copy.deepcopy(network)
    for parent in list(whole.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm | nn.GELU):
                setattr(parent, name, Remainders(child))
    with torch.no_grad():
        for number, parameter in enumerate(whole.parameters()):
            parameter.copy_(torch.randint(1, 3, parameter.shape, generator=seeded(number)))
            parameter.mul_(1 - 2 * torch.randint(2, parameter.shape, generator=seeded(number + 100)))
    return whole


@pytest.mark.parametrize("batch", [1, 5, 32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MIXERS)
def test_pk_with_explicit_permutations_is_the_mixer_to_the_bit(name: str, shape: str, batch: int) -> None:
    """In fp32, which has kernels of its own: of whole numbers, with no rounding that could hide a wrong one."""
    fast, slow = (with_whole_numbers(network) for network in both(name, shape, "model.head=linear"))
    images = torch.randint(-4, 5, (batch, 1, 32, 32), generator=seeded(1))
    upstream = torch.randint(-4, 5, (batch, 10), generator=seeded(2))
    found = outputs_and_gradients(fast, images, upstream.float())
    expected = outputs_and_gradients(slow.double(), images, upstream.double())
    assert sum(bool((one != 0).any()) for one in expected) > 0.7 * len(expected), "a few cancel, of one channel"
    assert all(torch.equal(one.double(), other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["mixer", "mixer apart", "pk untied hidden"])
def test_any_permutation_and_its_inverse_may_stand_around_the_inner_activation(name: str) -> None:
    """Token = PK_W2(PK_W1(X; I, J); Jᵀ, J_c) for arbitrary J (S.22, S.23)."""
    plain = network_of(*MIXERS[name], "tokens=9", "channels=13", "depth=2", "patch_size=8").double()
    drawn_biases(plain)
    shuffled = copy.deepcopy(plain)
    for number, block in enumerate(shuffled.blocks):
        for mixing in (block.token_mixing, block.channel_mixing):
            drawn = RandomPermutation(mixing[0].out_width, seeded(number))
            mixing[0].permute(mixing[0].before, drawn)
            mixing[2].permute(IndexPermutation(drawn.inverse_indices), mixing[2].after)
    images = torch.randn(3, 1, 32, 32, dtype=torch.float64, generator=seeded(1))
    torch.testing.assert_close(shuffled(images), plain(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("indices", [[0, 0, 1], [0, 1, 3], [-1, 0, 1]])
def test_what_is_no_permutation_is_none(indices: list[int]) -> None:
    with pytest.raises((AssertionError, IndexError)):
        IndexPermutation(torch.tensor(indices))


# --- Corollary 3.4 ---------------------------------------------------------------------------------------------------


def commutation(tokens: int, channels: int) -> Tensor:
    """J_c of column-stacked matrices: J_c vec(X) = vec(Xᵀ), entry by entry."""
    matrix = torch.zeros(tokens * channels, tokens * channels, dtype=torch.float64)
    for i in range(tokens):
        for j in range(channels):
            matrix[i * channels + j, j * tokens + i] = 1
    return matrix


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("tokens", "channels"), [(9, 13), (16, 16), (25, 4)])
def test_corollary_3_4_a_block_without_inner_activation_is_monarch(tokens: int, channels: int, tied: bool) -> None:
    """vec(W X V) = J_cᵀ L J_c R vec(X): R of C blocks W (S×S), L of S blocks Vᵀ (C×C); tied, all blocks are equal."""
    sizes = [f"tokens={tokens}", f"channels={channels}", "depth=2", "patch_size=8", "model.bias=false"]
    block = network_of("model=pk", f"model.tied={tied}", *sizes).double().blocks[1]
    token, channel = block.token_mixing[0], block.channel_mixing[0]
    with torch.no_grad():
        ours = channel.to_dense() @ token.to_dense()  # of features stored row by row
        right = torch.block_diag(*token.weight.expand(channels, tokens, tokens))
        left = torch.block_diag(*channel.weight.expand(tokens, channels, channels))
    j = commutation(tokens, channels)
    monarch = j.t() @ left @ j @ right
    torch.testing.assert_close(j @ monarch @ j.t(), ours, rtol=1e-12, atol=1e-12)

    x = torch.randn(tokens, channels, dtype=torch.float64, generator=seeded())
    by_block = channel(token(x.reshape(1, -1))).view(tokens, channels)
    torch.testing.assert_close(by_block.t().reshape(-1), monarch @ x.t().reshape(-1), rtol=1e-12, atol=1e-12)
    if tied:
        torch.testing.assert_close(by_block, token.weight @ x @ channel.weight.t(), rtol=1e-12, atol=1e-12)
    assert int((monarch != 0).sum()) == (tokens * channels) ** 2  # a product of two sparse factors is dense
    factors = [int((factor != 0).sum()) for factor in (left, right)]
    assert factors == [channel.connections, token.connections]


# --- spectra at initialisation (section 4.3) -------------------------------------------------------------------------


def largest_singular_value(layer: SparseMap, steps: int = 80) -> float:
    """Rayleigh-Ritz on the Krylov space of MᵀM, whose products are the layer's own forward and backward."""
    layer.requires_grad_(False)
    v = torch.randn(layer.in_width, dtype=torch.float64, generator=seeded(99))
    basis, images = [], []
    for _ in range(steps):
        if basis:
            known = torch.stack(basis)
            for _ in range(2):  # orthogonal to rounding error
                v = v - known.t() @ (known @ v)
        v = v / v.norm()
        x = v[None].requires_grad_()
        y = layer(x)
        basis.append(v)
        (gradient,) = torch.autograd.grad(y, x, y.detach())
        v = gradient[0]
        images.append(v)
    reduced = torch.stack(basis) @ torch.stack(images).t()
    return math.sqrt(float(torch.linalg.eigvalsh((reduced + reduced.t()) / 2)[-1]))


def sparse_lambda(width: int, gamma: int, fan_in: int, seed: int) -> float:
    """Of a fresh (gamma·m, m) sparse matrix, through its nonzeros alone."""
    rows = gamma * width
    layer = SparseWeights(width, rows, draw_mask(rows, width, fan_in * rows, "exact", seeded(seed))).double()
    layer.initialize(seeded(seed + 1000))
    return largest_singular_value(layer)


def edge(width: int, gamma: int, fan_in: int) -> float:
    """sqrt(L+) of a (gamma·m, m) matrix with fan-in q² = p·m and entries of variance 1/(p·m) where the mask is one.

    L+ = c² (1 + 3 (1 - p) / (sqrt(gamma)·q²)) + O(q⁻⁴), c = 1 + sqrt(gamma): c² is the edge of a dense Gaussian matrix,
    and 3 (1 - p) / q² the excess kurtosis per entry of a masked one. A transposed matrix has the same singular values:
    in terms of its own sizes 1/gamma and gamma·q² the formula has to give L+ / gamma, and does. (Section 4.3 prints
    sqrt(gamma) in the numerator, which for gamma = 1 is the same, and else lacks that symmetry; see the test.)
    """
    c = 1 + math.sqrt(gamma)
    return c * math.sqrt(1 + 3 * (1 - fan_in / width) / (math.sqrt(gamma) * fan_in))


@pytest.mark.parametrize(("rows", "columns"), [(500, 300), (1200, 1200)])
def test_the_largest_singular_value_is_found(rows: int, columns: int) -> None:
    layer = SparseWeights(columns, rows, draw_mask(rows, columns, 20 * rows, "exact", seeded())).double()
    layer.initialize(seeded(1))
    exact = float(torch.linalg.svdvals(layer.to_dense().detach())[0])
    assert largest_singular_value(layer) == pytest.approx(exact, rel=1e-5)


def mean_lambda(family: str, size: int, gamma: float) -> float:
    """Mean largest singular value of the first matrices of all mixing layers of a fresh Mixer with S = C."""
    image = 4 * math.isqrt(size)
    sizes = [f"tokens={size}", f"channels={size}", f"image_size={image}", "patch_size=4", "depth=12"]
    network = network_of(f"model={family}", f"expansion={gamma}", *sizes, "data.native_size=8")
    layers = [mixing[0] for block in network.blocks for mixing in (block.token_mixing, block.channel_mixing)]
    assert all(isinstance(layer, PermutedKronecker) for layer in layers)
    # I x W between permutations has the singular values of W (``test_layers``, and the one on random permutations)
    values = [float(torch.linalg.svdvals(layer.weight.detach().double())[0]) for layer in layers]
    return sum(values) / len(values)


@pytest.mark.parametrize(("family", "gamma"), [("s_mixer", 1), ("mixer", 1), ("mixer", 2), ("mixer", 4)])
def test_lambda_of_a_fresh_mixer_nears_one_plus_the_root_of_gamma(family: str, gamma: int) -> None:
    """Within 5% from S = C = 64 on, and closer as S grows; whole networks, as a mean over their matrices."""
    limit = 1 + math.sqrt(gamma)
    gaps = [abs(mean_lambda(family, size, gamma) / limit - 1) for size in (64, 144, 324)]
    assert gaps[0] < 0.05
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.015


def test_lambda_of_a_mixer_is_that_of_its_effective_matrix_whatever_the_permutations() -> None:
    for family in ("s_mixer", "rp_s_mixer"):
        network = network_of(f"model={family}", "tokens=16", "channels=12", "depth=1", "patch_size=8").double()
        layer = network.blocks[0].token_mixing[0]
        whole = torch.linalg.svdvals(layer.to_dense().detach())
        small = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(whole, small.repeat_interleave(12), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize(("width", "fan_in"), [(1024, 16), (1024, 32), (2048, 32), (2048, 64), (4096, 64)])
def test_lambda_of_a_fresh_sparse_matrix_is_the_edge_of_its_spectrum(width: int, fan_in: int, gamma: int) -> None:
    """sqrt(L+) within 2%, as a mean over draws: single heavy rows carry single draws of fan-in 16 up to 6% beyond."""
    draws = 8 if fan_in == 16 else 4
    measured = sum(sparse_lambda(width, gamma, fan_in, seed) for seed in range(draws)) / draws
    assert measured == pytest.approx(edge(width, gamma, fan_in), rel=0.02)


def test_the_edge_for_unequal_sides_is_not_the_one_that_is_printed() -> None:
    width, gamma, fan_in = 2048, 2, 64
    c = 1 + math.sqrt(gamma)
    printed = c * math.sqrt(1 + 3 * math.sqrt(gamma) * (1 - fan_in / width) / fan_in)
    measured = sum(sparse_lambda(width, gamma, fan_in, seed) for seed in range(4)) / 4
    assert abs(measured / edge(width, gamma, fan_in) - 1) < 0.01
    assert printed / measured - 1 > 0.015
    transposed = c / math.sqrt(gamma) * math.sqrt(1 + 3 * (1 - fan_in / width) * math.sqrt(gamma) / (gamma * fan_in))
    assert transposed == pytest.approx(edge(width, gamma, fan_in) / math.sqrt(gamma), rel=1e-12)


def test_lambda_grows_with_the_width_at_fixed_connections_only_where_weights_are_unstructured() -> None:
    """Section 4.3: at 2^16 connections a sparse matrix twice as wide is four times as sparse."""
    sparse = [sparse_lambda(width, 1, 2**16 // width, 0) for width in (512, 1024, 2048)]
    assert sparse == sorted(sparse)
    assert sparse[-1] / sparse[0] > 1.05


# --- masked weights --------------------------------------------------------------------------------------------------

SPARSE = {
    "one matrix": [],
    "two matrices": ["model.hidden=true", "expansion=1.5"],
    "bernoulli, rescaled": ["model.mask=bernoulli", "model.rescale=forward"],
}


def assert_fifty_steps_keep_the_mask(name: str, storage: str, batches: list[int], *, compiled: bool) -> None:
    """Train with AdamW, decay and clipping: the nonzeros stay as many and where they were, the others are 0.0."""
    sizes = ["width=61", "connections=900", "depth=1", "patch_size=8", "optim=adamw", "optim.lr=0.02"]
    config = config_of(["model=sw_mlp", *SPARSE[name], *sizes, "optim.weight_decay=0.3"])
    solved = architecture(config)
    network = build(config, solved)
    choose_storage(network, storage, torch.device("cpu"), 16)
    layers = [layer for layer in network.modules() if isinstance(layer, SparseWeights)]
    before = [layer.to_dense().detach() for layer in layers]
    optimizer = make_optimizer(network, config.optim)
    forward = torch.compile(network, dynamic=False) if compiled else network
    for step in range(50):
        batch = batches[step % len(batches)]
        images = torch.randn(batch, 1, 32, 32, generator=seeded(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(images), torch.arange(batch)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
    for layer, start in zip(layers, before, strict=True):
        matrix = layer.to_dense().detach()
        masked = start == 0
        assert torch.equal(matrix[masked], torch.zeros(int(masked.sum())))
        assert int((matrix != 0).sum()) == layer.connections == layer.weight.numel()
        assert config.model.mask == "bernoulli" or layer.connections == solved.connections == 900
        assert float((matrix - start).abs().max()) > 0.01  # it did train


@pytest.mark.parametrize("storage", ["sparse", "dense"])
@pytest.mark.parametrize("name", SPARSE)
def test_masked_weights_are_exactly_zero_after_decay_momentum_and_clipping(name: str, storage: str) -> None:
    assert_fifty_steps_keep_the_mask(name, storage, [6, 1], compiled=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings, and of CSR products that it skips
@pytest.mark.parametrize("storage", ["sparse", "dense"])
def test_masked_weights_are_exactly_zero_where_the_network_is_compiled(storage: str) -> None:
    assert_fifty_steps_keep_the_mask("one matrix", storage, [6], compiled=True)
