"""Counts, against networks written out: every effective weight matrix holds the number of the parameter behind each
entry (0: no connection), so connections are its nonzeros and parameters its distinct numbers.
"""

import itertools

import numpy as np
import pytest

from mixersweep.budget import Request, solve

PATCHES, PATCH_VALUES, CLASSES = 6, 3, 4


class Written:
    """A network as effective matrices and biases of parameter numbers, and the sizes of its norms."""

    def __init__(self):
        self.numbers = itertools.count(1)
        self.matrices, self.biases, self.norms = {}, {}, []

    def new(self, *shape):
        return np.array(list(itertools.islice(self.numbers, int(np.prod(shape))))).reshape(shape)

    def add(self, part, matrix, bias=None):
        self.matrices.setdefault(part, []).append(matrix)
        if bias is not None:
            self.biases.setdefault(part, []).append(bias)

    def connections(self, part):
        return sum(int(np.count_nonzero(matrix)) for matrix in self.matrices.get(part, []))

    def weights(self, part):
        return len({number for matrix in self.matrices.get(part, []) for number in matrix.flat} - {0})

    def parameters(self):
        weights = sum(self.weights(part) for part in self.matrices)
        biases = sum(len(np.unique(bias)) for several in self.biases.values() for bias in several)
        return weights + biases + 2 * sum(self.norms)


def stem_and_head(net, channels, features):
    """Per-patch FC with a bias, classifier with a bias (on features that pooling, if any, has averaged)."""
    net.add("stem", np.kron(np.eye(PATCHES, dtype=int), net.new(channels, PATCH_VALUES)), net.new(channels))
    net.add("head", net.new(CLASSES, features), net.new(CLASSES))


def mixing(net, blocks, outputs, inputs, *, tied, token, bias):
    """The effective matrix of one mixing matrix: I ⊗ W for tokens, Vᵀ ⊗ I for channels; untied, a block each."""
    matrix = np.zeros((blocks, outputs, blocks, inputs), dtype=int)
    shared = net.new(outputs, inputs)
    biases = np.zeros((blocks, outputs), dtype=int)
    shared_bias = net.new(outputs)
    for block in range(blocks):
        matrix[block, :, block, :] = shared if tied else net.new(outputs, inputs)
        biases[block] = shared_bias if tied else net.new(outputs)
    full = matrix.reshape(blocks * outputs, blocks * inputs)
    if tied:
        eye = np.eye(blocks, dtype=int)
        full = np.kron(eye, shared) if token else np.kron(shared, eye)
    net.add("mixing", full, biases if bias else None)


def written_mixer(tokens, channels, token_hidden, channel_hidden, *, depth, tied, hidden, stem, skip, head, bias):
    net = Written()
    stem_and_head(net, channels, channels if head == "pool" else tokens * channels)
    eye = np.eye(channels, dtype=int)
    if stem == "resize":
        net.add("resize", np.kron(eye, net.new(tokens, PATCHES)))
    if skip:
        net.add("skip", np.kron(eye, net.new(tokens, PATCHES)))
        net.norms.append(channels)
    for block in range(depth):
        first = PATCHES if block == 0 and stem == "patch" else tokens
        token = [(token_hidden, first), (tokens, token_hidden)] if hidden else [(tokens, first)]
        channel = [(channel_hidden, channels), (channels, channel_hidden)] if hidden else [(channels, channels)]
        for sizes in token:
            mixing(net, channels, *sizes, tied=tied, token=True, bias=bias)
        for sizes in channel:
            mixing(net, tokens, *sizes, tied=tied, token=False, bias=bias)
        net.norms += [channels, channels]
    net.norms.append(channels)
    return net


def assert_same(found, net):
    """What the budget says of a network is what the written-out one has."""
    mixing_connections = net.connections("mixing")
    matrices = len(net.matrices["mixing"])
    assert found.total_connections == mixing_connections
    assert found.connections_counted == pytest.approx(mixing_connections / matrices)
    assert found.mixing_parameters == net.weights("mixing")
    assert found.stem_parameters == net.weights("stem") + net.weights("resize")
    assert found.head_parameters == net.weights("head")
    assert found.skip_parameters == net.weights("skip")
    assert found.skip_connections == net.connections("skip")
    assert found.parameters == net.parameters()
    assert found.flops_per_image == 2 * sum(net.connections(part) for part in net.matrices)


@pytest.mark.parametrize("tokens", [PATCHES, 5, 8])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("stem", "skip_layer"), [("patch", "auto"), ("patch", "always"), ("resize", "auto")])
@pytest.mark.parametrize(("head", "bias"), [("pool", True), ("linear", False)])
def test_a_mixer_counts_as_written_out(tokens, hidden, tied, stem, skip_layer, head, bias):
    channels, depth = 4, 2
    sizes = {"expansion": 2, "token_expansion": 0.5} if hidden else {}
    found = solve(
        Request(
            structure="kronecker" if tied else "block_diagonal",
            **{"tokens": tokens, "channels": channels, "depth": depth, "hidden": hidden, **sizes},
            **{"patches": PATCHES, "patch_values": PATCH_VALUES, "classes": CLASSES},
            **{"stem": stem, "skip_layer": skip_layer, "head": head, "bias": bias},
        )
    )
    token_hidden, channel_hidden = (max(1, round(tokens / 2)), 2 * channels) if hidden else (tokens, channels)
    skip = stem == "patch" and (skip_layer == "always" or tokens != PATCHES)
    wiring = {"depth": depth, "tied": tied, "hidden": hidden, "stem": stem, "skip": skip, "head": head, "bias": bias}
    net = written_mixer(tokens, channels, token_hidden, channel_hidden, **wiring)
    assert_same(found, net)
    if stem == "resize" or tokens == PATCHES:  # every layer is square: the rule's formula is the mean that is there
        assert found.connections == pytest.approx(found.connections_counted)


def test_a_skip_that_is_never_a_layer_is_an_identity():
    asked = {"structure": "kronecker", "tokens": PATCHES, "channels": 4, "patches": PATCHES}
    never, auto = (solve(Request(**asked, skip_layer=choice)) for choice in ("never", "auto"))
    assert never == auto
    assert (never.skip_parameters, never.skip_connections) == (0, 0)


@pytest.mark.parametrize("structure", ["sparse", "dense"])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("layers_per_block", [1, 2])
@pytest.mark.parametrize(("head", "bias"), [("pool", True), ("linear", False)])
@pytest.mark.parametrize("width", [12, 14, 4])
def test_an_mlp_counts_as_written_out(structure, hidden, layers_per_block, head, bias, width):
    """C_e = ceil(m/S0) embedding channels; where S0·C_e exceeds m, m entries are kept."""
    depth, hidden_width = 2, 2 * width if hidden else width
    connections = width * hidden_width if structure == "dense" else width * hidden_width // 3
    found = solve(
        Request(
            **{"structure": structure, "width": width, "connections": connections, "hidden": hidden},
            **{"expansion": 2 if hidden else 1, "depth": depth, "layers_per_block": layers_per_block},
            **{"patches": PATCHES, "patch_values": PATCH_VALUES, "classes": CLASSES, "head": head, "bias": bias},
        )
    )
    embedding_channels = -(-width // PATCHES)
    net = Written()
    stem_and_head(net, embedding_channels, embedding_channels if head == "pool" else width)
    generator = np.random.default_rng(0)
    for _ in range(depth * layers_per_block):
        for shape in [(hidden_width, width), (width, hidden_width)] if hidden else [(width, width)]:
            matrix = np.zeros(shape, dtype=int)
            kept = generator.choice(matrix.size, connections, replace=False)
            matrix.flat[kept] = net.new(connections)
            net.add("mixing", matrix, net.new(shape[0]) if bias else None)
        net.norms.append(width)
    net.norms.append(width)
    assert_same(found, net)
    assert found.connections == found.connections_counted
    assert found.embedding_channels == embedding_channels
    assert found.mixing_layers == depth * layers_per_block


# --- sizes with a name -------------------------------------------------------------------------------------------


def named(**asked):
    return solve(Request(structure="kronecker", hidden=True, **asked))


@pytest.mark.parametrize(
    ("patch_size", "tokens", "channels", "millions"), [(8, 16, 986, 255.9), (4, 64, 467, 255.4), (4, 64, 487, 276.3)]
)
def test_mixer_ss_has_the_connections_of_table_1_with_its_patch_layer(patch_size, tokens, channels, millions):
    """The upper table's column is a total with the per-patch FC; C=487 is as printed there."""
    values = 3 * patch_size**2
    found = named(tokens=tokens, channels=channels, expansion=4, depth=2, patches=tokens, patch_values=values)
    patch_layer = tokens * values * channels
    assert (found.total_connections + patch_layer) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("asked", "connections", "hidden_width"),
    [
        ({"tokens": 256, "channels": 588, "expansion": 4.1, "depth": 8}, 2.60e8, 6.2e5),
        ({"tokens": 196, "channels": 768, "token_expansion": 384 / 196, "channel_expansion": 4}, 2.601e8, 6.02e5),
    ],
    ids=["mixer_b_w", "mixer_b16"],
)
def test_the_large_mixers_have_the_connections_of_the_lower_table_1(asked, connections, hidden_width):
    """There Omega is a mean; both have the same width."""
    found = named(**asked)
    assert found.connections == pytest.approx(connections, rel=0.003)
    assert found.hidden_width == pytest.approx(hidden_width, rel=0.005)
    assert found.width == 150_528


def test_mixer_b16_has_its_hidden_sizes():
    found = named(tokens=196, channels=768, token_expansion=384 / 196, channel_expansion=4, depth=12, patches=196)
    assert (found.token_hidden, found.channel_hidden) == (384, 3072)
    assert found.connections_counted == found.connections
    assert found.mixing_layers == 24


def test_at_fixed_connections_a_square_mixer_has_the_fewest_weights():
    """A block of an S-Mixer has S² + C² weights: 30,185 at (173, 16), 8,192 at (64, 64), both 2^18 connections."""
    pairs = {(173, 16): 30185, (113, 32): 13793, (83, 48): 9193, (64, 64): 8192}
    for (tokens, channels), weights in pairs.items():
        found = solve(Request(structure="kronecker", tokens=tokens, channels=channels, depth=1, patches=tokens))
        assert found.mixing_parameters == weights
