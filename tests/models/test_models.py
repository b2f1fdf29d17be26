"""Networks against the rule's arithmetic, and against the papers' equations written out with explicit matrices."""

import pytest
import torch
from torch import nn

from mixersweep.compose import config_of
from mixersweep.layers import Factors, LowRank, SparseMap, SparseWeights
from mixersweep.layers.pack import call
from mixersweep.models import build
from mixersweep.models.mixer import MixerBlock, MixerNetwork
from mixersweep.models.mlp import MLPNetwork, choose_storage
from mixersweep.models.parts import KeptEntries, PatchEmbedding, patches
from mixersweep.runs import solve

SMALL = ["connections=auto", "tokens=9", "channels=14", "depth=2", "image_size=32", "patch_size=8"]
OWN = ["tokens=auto", "channels=auto"]
NETWORKS = {
    "s_mixer": [],
    "s_mixer square": ["tokens=16"],
    "s_mixer always skips": ["tokens=16", "model.skip_layer=always"],
    "s_mixer never skips": ["tokens=16", "model.skip_layer=never"],
    "s_mixer resize": ["model.stem=resize"],
    "s_mixer linear": ["model.head=linear"],
    "s_mixer no bias": ["model.bias=false"],
    "rp_s_mixer": [],
    "rp_s_mixer token": ["model.random_layers=token"],
    "rp_s_mixer one block": ["model.random_blocks=[1]"],
    "mixer": ["expansion=1.5"],
    "mixer apart": ["model.token_expansion=0.5", "model.channel_expansion=3"],
    "rp_mixer": [],
    "pk": [],
    "pk untied": ["model.tied=false"],
    "pk untied hidden": ["model.tied=false", "model.hidden=true", "expansion=2"],
    "pk untied random": ["model.tied=false", "model.random_layers=both"],
    "monarch": [],
    "monarch tied inner": ["model.tied=true", "model.inner_activation=true", "tokens=16"],
    "shallow_monarch": ["tokens=auto", "channels=auto", "image_size=28", "patch_size=4"],
    "shallow_kronecker": ["tokens=auto", "channels=auto", "image_size=28", "patch_size=4", "depth=3"],
    "sw_mlp": [],
    "sw_mlp hidden": ["model.hidden=true", "expansion=2"],
    "sw_mlp narrow": ["tokens=auto", "channels=auto", "width=13", "connections=100", "model.head=linear"],
    "sw_mlp whole": ["tokens=auto", "channels=auto", "width=64", "connections=300"],
    "sw_mlp one layer a block": ["model.layers_per_block=1"],
    "sw_mlp linear": ["model.head=linear"],
    "sw_mlp fan-in": ["model.mask=fixed_fan_in", "model.rescale=forward"],
    "s_mixer groups": ["model.head=groups"],
    "rp_mixer signed groups": ["model.head=signed_groups", "model.readout_dimension=17"],
    "pk untied signed groups": ["model.tied=false", "model.head=signed_groups"],
    "monarch signed groups": ["model.head=signed_groups"],
    "hashed": ["model.sharing=7"],
    "hashed hidden": ["model.hidden=true", "expansion=2"],
    "sw_mlp groups": ["model.head=groups", "model.readout_dimension=126"],
    "mlp signed groups": ["model.head=signed_groups", "model.readout_dimension=32"],
    "block_diagonal": [*OWN, "width=126", "connections=1134"],
    "block_diagonal plain": [*OWN, "width=126", "connections=882", "model.permuted=false", "model.bias=false"],
    "btt": [*OWN, "width=126", "connections=2898"],
    "btt of rank 2": [*OWN, "width=63", "connections=2016", "model.rank=2", "model.head=linear"],
    "butterfly": [*OWN, "width=128", "connections=1792"],
    "butterfly of 3 factors": [*OWN, "width=126", "connections=2016", "model.factors=3"],
    "low_rank": [*OWN, "width=126", "connections=1386"],
    "low_rank no bias": [*OWN, "width=63", "connections=315", "model.bias=false", "model.head=linear"],
    "mlp": [],
    "mlp hidden": ["model.hidden=true", "expansion=2"],
}


def made(name: str, *more: str) -> tuple:
    run = solve(config_of([f"model={name.split()[0]}", *SMALL, *NETWORKS[name], *more]))
    return run, build(run.config, run.architecture)


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(8))


def mixing_maps(network: nn.Module) -> list[SparseMap]:
    parts = network.blocks if hasattr(network, "blocks") else network.layers
    return [layer for name, layer in parts.named_modules() if isinstance(layer, SparseMap) and "skip" not in name]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_built_network_has_what_the_rule_counts(name: str) -> None:
    run, network = made(name)
    a = run.architecture
    maps = mixing_maps(network)
    nonzeros = [int((layer.to_dense() != 0).sum()) for layer in maps]
    assert nonzeros == [layer.connections for layer in maps]
    assert sum(nonzeros) == a.total_connections
    products = sum(len(product.factors) - 1 for product in network.modules() if isinstance(product, Factors))
    assert sum(nonzeros) / (len(maps) - products) == a.connections_counted
    assert sum(layer.weights for layer in maps) == a.mixing_parameters
    assert sum(p.numel() for p in network.parameters()) == a.parameters
    assert network.head.weight.numel() == a.head_parameters
    last = maps[-1]
    assert last.out_width == a.width
    if isinstance(network, MixerNetwork):
        skips = [m.map.weight.numel() for key, m in network.named_modules() if key.endswith("skip.0")]
        assert sum(skips) == a.skip_parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    run, network = made(name)

    def weighted_sums(x: tuple[int, ...], positions: tuple[int, ...], *_: object, **__: object) -> int:
        """A row of x for each nonzero, which torch has no formula for; it would count a masked matrix as if full."""
        return 2 * positions[0] * x[1]

    for layer in network.modules():
        if isinstance(layer, SparseWeights):
            layer.storage = "sparse"
    formulas = {torch.ops.aten._embedding_bag_forward_only: weighted_sums}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        network(images(1, run.config.image_size))
    diagonals = sum(2 * layer.out_width for layer in network.modules() if isinstance(layer, LowRank))  # by entries
    assert counter.get_total_flops() + diagonals == run.architecture.flops_per_image


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_maps_images_to_logits_whatever_the_batch_and_repeats_itself(name: str) -> None:
    before = torch.get_rng_state()
    run, network = made(name)
    _, again = made(name)
    x = images(size=run.config.image_size)
    logits = network(x)
    assert logits.shape == (3, 10)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, again(x))
    torch.testing.assert_close(network(x[:1]), logits[:1])
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "groups" in name])
def test_a_head_of_groups_reads_vectorised_features_whatever_their_layout(name: str) -> None:
    _, network = made(name)
    kept: list[torch.Tensor] = []
    network.norm.register_forward_hook(lambda *found: kept.append(found[2].detach()))
    logits = network(images())
    (x,) = kept
    vectors = x.transpose(0, 1).flatten(1) if x.dim() == 3 else x.t()  # a Mixer's table row by row
    torch.testing.assert_close(logits, vectors @ network.head.to_dense().t())
    _, again = made(name, "seeds.initialization=7")
    _, other = made(name, "seeds.structure=7")
    assert torch.equal(network.head.group, again.head.group)
    assert not torch.equal(network.head.group, other.head.group)


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if "mlp" not in name and "hashed" not in name and NETWORKS[name][:2] != OWN]
)
def test_shapes_alone_take_no_memory(name: str) -> None:
    run = made(name)[0]
    with torch.device("meta"):
        network = build(run.config, run.architecture)
    logits = network(torch.empty(3, 1, run.config.image_size, run.config.image_size, device="meta"))
    logits.sum().backward()
    assert logits.shape == (3, 10)
    assert all(p.is_meta and p.grad is not None for p in network.parameters())


def test_seeds_of_weights_and_structure_are_apart() -> None:
    _, one = made("rp_s_mixer")
    _, weights = made("rp_s_mixer", "seeds.initialization=5")
    _, structure = made("rp_s_mixer", "seeds.structure=5")

    def indices(network: nn.Module) -> torch.Tensor:
        return network.blocks[0].token_mixing[0].before.indices()

    assert torch.equal(indices(one), indices(weights))
    assert not torch.equal(one.head.weight, weights.head.weight)
    assert not torch.equal(indices(one), indices(structure))
    assert torch.equal(one.head.weight, structure.head.weight)


def test_every_permutation_of_an_rp_mixer_is_its_own() -> None:
    _, network = made("rp_s_mixer", "tokens=16", "channels=16")
    drawn = [
        tuple(permutation.indices().tolist())
        for block in network.blocks
        for layer in (block.token_mixing[0], block.channel_mixing[0])
        for permutation in (layer.before, layer.after)
    ]
    assert len(set(drawn)) == len(drawn) == 8


def commutation(rows: int, columns: int) -> torch.Tensor:
    """J_c of column-stacked matrices: J_c vec(X) = vec(Xᵀ), built entry by entry."""
    matrix = torch.zeros(rows * columns, rows * columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            matrix[i * columns + j, j * rows + i] = 1
    return matrix


def test_proposition_3_2_an_s_mixer_is_an_mlp_with_kronecker_and_commutation_matrices() -> None:
    """H = act(act(W X) V): vec(H) = act(J_cᵀ (I x Vᵀ) act(J_c (I x W) vec(X))), column stacking."""
    _, network = made("s_mixer", "model.bias=false")
    block: MixerBlock = network.double().blocks[1]
    tokens, channels = 9, 14
    weight, value = block.token_mixing[0].weight, block.channel_mixing[0].weight.t()
    x = torch.randn(tokens, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = block.channel_mixing(block.token_mixing(x[:, None]))[:, 0]

    act = nn.GELU()
    j = commutation(tokens, channels)
    vec = x.t().reshape(-1)
    hidden = act(j @ torch.kron(torch.eye(channels), weight) @ vec)
    papers = act(j.t() @ torch.kron(torch.eye(tokens), value.t()) @ hidden)
    torch.testing.assert_close(ours.t().reshape(-1), papers, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, act(act(weight @ x) @ value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["s_mixer", "s_mixer square", "mixer", "pk untied"])
def test_a_block_is_the_papers_block(name: str) -> None:
    """U = skip(X) + token(LN(X)), Y = U + channel(LN(U)), matrix by matrix (eqs 1-5, A.2.4)."""
    _, network = made(name)
    network = network.double()
    for block in network.blocks:
        for layer in block.modules():
            if isinstance(layer, SparseMap) and layer.bias is not None:
                nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 16, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for block in network.blocks:
        normed = block.token_norm(x)
        token = block.token_mixing
        if name == "pk untied":
            mixed = torch.einsum("cst,btc->bsc", token[0].weight, normed) + token[0].bias.t()
            mixed = nn.functional.gelu(mixed)
        elif name == "mixer":
            hidden = nn.functional.gelu(token[0].weight @ normed + token[0].bias[:, None])
            mixed = token[2].weight @ hidden + token[2].bias[:, None]
        else:
            mixed = nn.functional.gelu(token[0].weight @ normed + token[0].bias[:, None])
        skip = x
        if not isinstance(block.skip, nn.Identity):
            skip = block.skip[1](block.skip[0].map.weight @ x)
        u = skip + mixed
        normed, channel = block.channel_norm(u), block.channel_mixing
        if name == "pk untied":
            mixed = torch.einsum("sdc,bsc->bsd", channel[0].weight, normed) + channel[0].bias
            mixed = nn.functional.gelu(mixed)
        elif name == "mixer":
            mixed = channel[2](nn.functional.gelu(channel[0](normed.flatten(1)))).view_as(u)
        else:
            mixed = nn.functional.gelu(normed @ channel[0].weight.t() + channel[0].bias)
        y = u + mixed
        torch.testing.assert_close(block(x.transpose(0, 1)).transpose(0, 1), y, rtol=1e-12, atol=1e-12)
        x = y


@pytest.mark.parametrize("tied", [False, True])
def test_a_monarch_block_is_the_product_of_two_block_diagonal_factors(tied: bool) -> None:
    """x + act(L R LN(x)), R of C blocks S x S and L of S blocks C x C (eq 12)."""
    _, network = made("monarch", f"model.tied={str(tied).lower()}", "model.bias=false")
    block = network.double().blocks[1]
    x = torch.randn(2, 9, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right = block.mixing[0].weight.expand(14, 9, 9)
    left = block.mixing[2].weight.expand(9, 14, 14)
    mixed = torch.einsum("cst,btc->bsc", right, block.norm(x))
    mixed = torch.einsum("sdc,bsc->bsd", left, mixed)
    found = block(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(found, x + nn.functional.gelu(mixed), rtol=1e-12, atol=1e-12)
    _, active = made("monarch", f"model.tied={str(tied).lower()}", "model.bias=false", "model.inner_activation=true")
    mixed = nn.functional.gelu(torch.einsum("cst,btc->bsc", right, block.norm(x)))
    mixed = torch.einsum("sdc,bsc->bsd", left, mixed)
    found = active.double().blocks[1](x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(found, x + nn.functional.gelu(mixed), rtol=1e-12, atol=1e-12)


def test_a_shallow_kronecker_net_multiplies_pixels_from_both_sides() -> None:
    """B = V x W on vec(X) is W X Vᵀ (eq 6); ReLU between the two products, a dense classifier behind them."""
    run, network = made("shallow_kronecker", "depth=2", "model.bias=false")
    network = network.double()
    x = images(2, 28).double()
    w1, v1, w2, v2 = (layer.weight for layer in network.layers if isinstance(layer, SparseMap))
    pixels = x.squeeze(1)
    features = w2 @ torch.relu(w1 @ pixels @ v1.t()) @ v2.t()
    torch.testing.assert_close(network(x), features.flatten(1) @ network.head.weight.t(), rtol=1e-12, atol=1e-12)
    assert (run.architecture.width, run.architecture.connections) == (784, 28**3)


@pytest.mark.parametrize(
    ("overrides", "total", "connections", "hidden_width"),
    [
        (["model=mixer_ss_8"], 255.9e6, None, 986 * 64),
        (["model=mixer_ss_w"], 255.4e6, None, None),
        (["model=mixer_ss_w", "model.as_printed=true"], 276.3e6, None, 487 * 256),
        (["model=mixer_b16"], None, 2.601e8, 3072 * 196),
        (["model=mixer_b_w"], None, 2.60e8, 6.2e5),
        (["model=mixer_b_w", "model.as_printed=true"], None, 290217984, None),
    ],
)
def test_the_published_sizes_have_the_connections_of_their_tables(
    overrides: list[str], total: float | None, connections: float | None, hidden_width: float | None
) -> None:
    run = solve(config_of([*overrides, "data=cifar10"]))
    a = run.architecture
    if total:  # the upper table counts all layers and the patch FC
        patch_fc = a.patches * 3 * run.config.patch_size**2 * a.embedding_channels
        assert a.total_connections + patch_fc == pytest.approx(total, rel=3e-4)
    if connections:
        assert a.connections == pytest.approx(connections, rel=2e-3)
    if hidden_width:
        assert a.hidden_width == pytest.approx(hidden_width, rel=5e-3)


def test_a_random_permutation_layer_has_the_singular_values_of_the_normal_one() -> None:
    _, normal = made("s_mixer")
    _, random = made("rp_s_mixer")
    for one, other in zip(mixing_maps(normal), mixing_maps(random), strict=True):
        with torch.no_grad():
            other.weight.copy_(one.weight)
        spectrum = torch.linalg.svdvals(one.to_dense().double())
        torch.testing.assert_close(spectrum, torch.linalg.svdvals(other.to_dense().double()), rtol=1e-6, atol=1e-6)


def test_patches_come_in_the_order_of_a_convolution() -> None:
    embedding = PatchEmbedding(4, 3 * 16, 5)
    embedding.projection.initialize(torch.Generator().manual_seed(0))
    pictures = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    kernel = embedding.projection.weight.view(5, 3, 4, 4)
    by_convolution = nn.functional.conv2d(pictures, kernel, stride=4).flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(embedding(pictures), by_convolution)


@pytest.mark.parametrize("size", [1, 2, 4, 6, 8, 12])
def test_patches_are_the_same_however_they_are_moved(size: int) -> None:
    pictures = torch.randn(3, 2, 24, 48, generator=torch.Generator().manual_seed(1))
    slow = torch.stack(
        [
            pictures[:, :, top : top + size, left : left + size].flatten(1)
            for top in range(0, 24, size)
            for left in range(0, 48, size)
        ]
    )
    for given in (pictures, pictures.double(), pictures.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        assert torch.equal(patches(given, size), slow.to(given.dtype))
    assert torch.equal(patches(pictures[1:], size), slow[:, 1:])
    assert torch.equal(call(lambda images: patches(images, size), pictures[None]), slow[None])  # in a pack
    pictures.requires_grad_()
    (gradient,) = torch.autograd.grad((patches(pictures, size) * slow).sum(), pictures)
    assert torch.equal(gradient, pictures)


@pytest.mark.parametrize("width", [1, 5, 16, 17, 40, 47, 48])
def test_kept_entries_are_spread_evenly_and_pooled_by_channel(width: int) -> None:
    entries = KeptEntries(16, width, torch.Generator().manual_seed(0))
    assert entries.kept.numel() == width == entries.kept.unique().numel()
    per_patch = torch.bincount(entries.kept // entries.channels, minlength=16)
    assert int(per_patch.max() - per_patch.min()) <= 1
    embedded = torch.randn(2, 16, entries.channels, generator=torch.Generator().manual_seed(1))
    features = entries(embedded.transpose(0, 1))
    assert features.shape == (width, 2)
    pooled = entries.pool(features)
    for channel in range(entries.channels):
        patches = [int(k) // entries.channels for k in entries.kept if int(k) % entries.channels == channel]
        expected = embedded[:, patches, channel].mean(1) if patches else torch.zeros(2)
        torch.testing.assert_close(pooled[:, channel], expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_weights_stay_exactly_zero_through_momentum_decay_and_clipping(optimizer: str) -> None:
    from mixersweep.training.optimizer import make_optimizer

    run, network = made("sw_mlp", f"optim={optimizer}", "optim.weight_decay=0.1", "optim.lr=0.05")
    maps = [layer for layer in network.modules() if isinstance(layer, SparseWeights)]
    masks = [layer.to_dense() != 0 for layer in maps]
    updates = make_optimizer(network, run.config.optim)
    for step in range(20):
        updates.zero_grad()
        nn.functional.cross_entropy(network(images() + step), torch.tensor([0, 1, 2])).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        updates.step()
    for layer, mask in zip(maps, masks, strict=True):
        assert torch.equal(layer.to_dense() != 0, mask)


def test_storage_changes_how_a_network_computes_and_not_what() -> None:
    cpu = torch.device("cpu")
    _, sparse = made("sw_mlp")
    _, dense = made("sw_mlp")
    assert choose_storage(sparse, "sparse", cpu, 3) == "sparse"
    assert choose_storage(dense, "dense", cpu, 3) == "dense"
    torch.testing.assert_close(sparse(images()), dense(images()))
    assert sparse.state_dict().keys() == dense.state_dict().keys()
    assert isinstance(sparse, MLPNetwork)
    assert choose_storage(sparse, "auto", cpu, 3) == ("sparse" if torch.backends.mkl.is_available() else "dense")
    _, thick = made("sw_mlp narrow")
    assert choose_storage(thick, "auto", cpu, 128) == "dense"
