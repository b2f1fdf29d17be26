"""Benchmarks of layers and blocks, forward and backward, against masked dense weights, torch, GEMM and timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.bench.harness import Case, captured
from mixersweep.budget import Architecture
from mixersweep.compose import config_of
from mixersweep.layers import SparseWeights, draw_mask, layouts, nonzeros, product
from mixersweep.layers.product import linear
from mixersweep.models import initialize
from mixersweep.models.mixer import MixerBlock
from mixersweep.models.parts import StructureSeed
from mixersweep.runs import Run, solve

BATCH = 128
SPARSE_SIZES = [(1024, 2**16), (4096, 2**18), (16384, 2**18)]
WIDE_SIZES = [(65536, 2**18), (262144, 2**18)]
PRODUCT_SIZES = [(32, 4096), (64, 8192), (128, 8192), (1024, 128)]
"""The width and the number of rows of a Mixer's products, for all images of a batch at once, and of a dense MLP's."""
MATRIX_SIZES = [(32, 32), (64, 64), (226, 64)]
MIXER_SIZES = [(64, 64), (128, 128), (226, 64)]


def layer_cases(everything: bool) -> Iterator[Case]:
    """Yield all comparisons of layers and blocks; ``everything`` adds sizes that take minutes."""
    for width, connections in SPARSE_SIZES:
        sizes = {"model": "sw_mlp", "width": width, "connections": connections, "batch_size": BATCH}
        sparse, dense = SparseLayer(width, connections, "sparse"), MaskedDense(width, connections)
        yield Case("sw_mlp_vs_masked_dense", sizes, sparse, dense, memory=width == SPARSE_SIZES[-1][0])
    yield from _nonzeros_cases(*SPARSE_SIZES[0])
    yield from _nonzeros_cases(*SPARSE_SIZES[0], batch_size=100)
    yield from _product_cases()
    for tokens, channels in MATRIX_SIZES:
        sizes = {"model": None, "width": tokens * channels, "connections": tokens * channels, "batch_size": BATCH}
        for to in ("features", "table"):
            own, torchs = (LayoutConversion(tokens, channels, to, by) for by in ("own", "torch"))
            yield Case(f"permuted_to_{to}_vs_torch", sizes, own, torchs, torchs_own=True)
    for family in ("s_mixer", "mixer"):
        for tokens, channels in MIXER_SIZES:
            for compiled in (False, True):
                yield from _block_cases(family, tokens, channels, compiled)
    if everything:
        for width, connections in SPARSE_SIZES[1:] + WIDE_SIZES:
            yield from _nonzeros_cases(width, connections)
        yield from _nonzeros_cases(*SPARSE_SIZES[0], batch_size=512)
        yield from _nonzeros_cases(*SPARSE_SIZES[0], runs=16)
        for width in (256, 1024):
            for fan_in in (width // 2, width // 4, width // 16):
                for batch_size in (32, 128, 512):
                    sizes = {"model": "sw_mlp", "width": width, "connections": width * fan_in, "batch_size": batch_size}
                    sparse = SparseLayer(width, width * fan_in, "sparse", batch_size)
                    yield Case("sparse_vs_dense_storage", sizes, sparse, replace(sparse, storage="dense"))


def _nonzeros_cases(width: int, connections: int, batch_size: int = BATCH, runs: int = 1) -> Iterator[Case]:
    """Yield products with nonzeros against torch's, and against a masked dense matrix where that is small."""
    sizes = {"model": "sw_mlp", "width": width, "connections": connections, "batch_size": batch_size, "runs": runs}
    for of in ("product", "gradients"):
        own = Nonzeros(width, connections, batch_size, runs, of)
        for other in ("torch", "masked") if width * width * runs <= 2**24 else ("torch",):
            reference = replace(own, by=other)
            name, extra = f"sparse_{of}_vs_{other}", {"read_bytes": own.read_bytes}
            yield Case(name, sizes, own, reference, torchs_own=other == "torch", extra=extra)


def _product_cases() -> Iterator[Case]:
    """Yield the dense products that layers call against torch's, and oneDNN's too where it is available."""
    for width, rows in PRODUCT_SIZES:
        sizes = {"model": None, "width": width, "connections": width**2, "batch_size": rows}
        torchs = DenseLayer(width, rows, F.linear)
        yield Case("product_vs_mm", sizes, replace(torchs, linear=linear), torchs, torchs_own=True)
        left, other = (LeftProduct(width, rows, by) for by in (product.product, _addmm))
        yield Case("left_product_vs_mm", sizes, left, other, torchs_own=True)
        if product.is_available():
            yield Case("onednn_vs_mm", sizes, replace(torchs, linear=linear, routine="onednn"), torchs)


def _block_cases(family: str, tokens: int, channels: int, compiled: bool) -> Iterator[Case]:
    block = Block(family, tokens, channels, compiled)
    sizes = {"model": family, "width": tokens * channels, "connections": block.connections}
    sizes |= {"tokens": tokens, "channels": channels, "batch_size": BATCH}
    mode = "compiled" if compiled else "eager"
    multiply_adds = block.multiply_adds * BATCH * 3  # forward, and backward for inputs and weights
    yield Case("mixer_vs_gemm", sizes, block, gemm, mode, scale=multiply_adds / GEMM_SIZE**3)
    if family == "mixer":
        yield Case("mixer_vs_timm", sizes, block, TimmBlock(tokens, channels, compiled), mode)


def _addmm(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """Compute ``product`` by torch."""
    return torch.addmm(bias, a, b)


GEMM_SIZE = 1024


def gemm(device: torch.device) -> Callable[[], object]:
    """Prepare one square matrix product, whose rate stands for the speed of this machine."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device) for _ in range(2))
    return lambda: a @ b


@dataclass(frozen=True)
class DenseLayer:
    """The forward and both backward products of a dense layer on ``rows`` rows, by ``linear`` in place of ``F.linear``.

    ``routine`` is the routine of ``layers.product`` that multiplies, by default the one in use.
    """

    width: int
    rows: int
    linear: Callable[[Tensor, Tensor, Tensor], Tensor]
    routine: product.Routine | None = None

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        layer = nn.Linear(self.width, self.width, device=device)
        x = torch.randn(self.rows, self.width, device=device)
        run = forward_and_backward(layer, x, lambda x: self.linear(x, layer.weight, layer.bias))
        return run if self.routine is None else partial(_run_with, self.routine, run)


@dataclass(frozen=True)
class LeftProduct:
    """The forward and both backward products of a weight times ``columns`` columns, as in token mixing."""

    width: int
    columns: int
    multiply: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        layer = nn.Linear(self.width, self.width, device=device)
        x = torch.randn(self.width, self.columns, device=device)
        return forward_and_backward(layer, x, lambda x: self.multiply(layer.weight, x, layer.bias[:, None]))


@dataclass(frozen=True)
class LayoutConversion:
    """Features permuted on the way between the layouts (rows, B, columns) and (features, B)."""

    tokens: int
    channels: int
    to: str
    by: str

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        position = torch.randperm(self.tokens * self.channels, generator=torch.Generator().manual_seed(0)).to(device)
        feature_at = position.argsort()
        if self.to == "features":
            x_sbc = torch.randn(self.tokens, BATCH, self.channels, device=device)
            if self.by == "own":
                return captured(lambda: layouts.rbc_to_mb(x_sbc, position, feature_at), device)
            return captured(lambda: layouts.torch_rbc_to_mb(x_sbc, feature_at), device)
        x = torch.randn(self.tokens * self.channels, BATCH, device=device)
        if self.by == "own":
            return captured(lambda: layouts.mb_to_rbc(x, position, feature_at, self.tokens), device)
        return captured(lambda: layouts.torch_mb_to_rbc(x, position, self.tokens), device)


def _run_with(routine: product.Routine, run: Callable[[], object]) -> object:
    before = product.routine()
    product.use(routine)
    try:
        return run()
    finally:
        product.use(before)


@dataclass(frozen=True)
class SparseLayer:
    """The forward and both backward products of a sparse-weight layer."""

    width: int
    connections: int
    storage: str
    batch_size: int = BATCH

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        generator = torch.Generator().manual_seed(0)
        positions = draw_mask(self.width, self.width, self.connections, "exact", generator)
        layer = SparseWeights(self.width, self.width, positions, bias=False, storage=self.storage)  # type: ignore[arg-type]
        layer.initialize(generator)
        layer.to(device)
        return forward_and_backward(
            layer, torch.randn(self.width, self.batch_size, device=device), partial(layer, features_first=True)
        )


@dataclass(frozen=True)
class Nonzeros:
    """A x, or both of its gradients, for the sparse matrices of several runs at once; on a GPU without launch times."""

    width: int
    connections: int
    batch_size: int
    runs: int
    of: Literal["product", "gradients"]
    by: Literal["own", "torch", "masked"] = "own"

    @property
    def read_bytes(self) -> int:
        """The bytes read from some cache: per nonzero a row of x or of its gradient, and two or three numbers."""
        numbers = 2 if self.of == "product" else 3
        return self.runs * self.connections * 4 * (self.batch_size + numbers)

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        generator = torch.Generator().manual_seed(0)
        masks = [draw_mask(self.width, self.width, self.connections, "exact", generator) for _ in range(self.runs)]
        layers = [SparseWeights(self.width, self.width, positions).to(device) for positions in masks]
        values = torch.randn(self.runs * self.connections, device=device)
        x, gradient = (torch.randn(self.runs * self.width, self.batch_size, device=device) for _ in range(2))
        if self.by == "masked":
            return captured(self._masked(masks, values, x, gradient), device)
        structure = nonzeros.block_diagonal(nonzeros.stack_structures([layer.structure for layer in layers]))
        if self.of == "product":
            by_row = structure.row_starts, structure.column_of
            product = nonzeros.product if self.by == "own" else nonzeros.torch_product
            return captured(lambda: product(*by_row, values, x, None), device)
        by_column = structure.column_starts, structure.rows_by_column, structure.by_column
        gradients = nonzeros.gradients if self.by == "own" else nonzeros.torch_gradients
        return captured(lambda: gradients(*by_column, values, x, gradient), device)

    def _masked(self, masks: list[Tensor], values: Tensor, x: Tensor, gradient: Tensor) -> Callable[[], object]:
        weights, mask = (x.new_zeros(self.runs, self.width * self.width) for _ in range(2))
        for run, positions in enumerate(masks):
            mask[run, positions.to(x.device)] = 1
            weights[run, positions.to(x.device)] = values.view(self.runs, -1)[run]
        weights, mask = (matrix.unflatten(1, (self.width, self.width)) for matrix in (weights, mask))
        x, gradient = (tensor.unflatten(0, (self.runs, self.width)) for tensor in (x, gradient))
        if self.of == "product":
            return lambda: (weights * mask) @ x
        return lambda: ((weights * mask).mT @ gradient, (gradient @ x.mT) * mask)


@dataclass(frozen=True)
class MaskedDense:
    """The usual implementation of sparse weights, ``F.linear(x, W * mask)``."""

    width: int
    connections: int

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        generator = torch.Generator().manual_seed(0)
        layer = _Masked(self.width, draw_mask(self.width, self.width, self.connections, "exact", generator))
        return forward_and_backward(layer.to(device), torch.randn(BATCH, self.width, device=device))


class _Masked(nn.Module):
    mask: Tensor

    def __init__(self, width: int, positions: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.register_buffer("mask", torch.zeros(width, width))
        self.mask.view(-1)[positions] = 1

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask)


@dataclass(frozen=True)
class Block:
    """A Mixer block of mixersweep, forward and backward."""

    family: str
    tokens: int
    channels: int
    compiled: bool

    @property
    def connections(self) -> int:
        """The connections of each matrix."""
        return int(self._architecture().connections)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of one image's forward pass."""
        return self._architecture().total_connections

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        config = self._run().config
        block = MixerBlock(
            config.model,  # type: ignore[arg-type]
            self._architecture(),
            0,
            self.tokens,
            skip=False,
            structure=StructureSeed(0),
        )
        initialize(block, 0)
        block.to(device)
        x = torch.randn(self.tokens, BATCH, self.channels, device=device)
        return forward_and_backward(block, x, torch.compile(block) if self.compiled else None)

    def _run(self) -> Run:
        sizes = [f"tokens={self.tokens}", f"channels={self.channels}", "depth=1", "model.stem=resize"]
        return solve(config_of([f"model={self.family}", *sizes]))

    def _architecture(self) -> Architecture:
        return self._run().architecture


@dataclass(frozen=True)
class TimmBlock:
    """timm's ``MixerBlock`` of the same sizes, forward and backward."""

    tokens: int
    channels: int
    compiled: bool

    def __call__(self, device: torch.device) -> Callable[[], object]:
        """Set it up on a device."""
        from timm.models.mlp_mixer import MixerBlock as TimmMixerBlock

        ratios = (2 * self.tokens / self.channels, 2.0)  # timm gives the hidden tokens as a multiple of the channels
        block = TimmMixerBlock(self.channels, self.tokens, mlp_ratio=ratios).to(device)
        x = torch.randn(BATCH, self.tokens, self.channels, device=device)
        return forward_and_backward(block, x, torch.compile(block) if self.compiled else None)


def forward_and_backward(
    layer: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> Callable[[], object]:
    """Return a function that runs ``forward``, by default the layer itself, and its backward pass.

    It returns the gradients of the input and of all parameters.
    """
    forward = layer if forward is None else forward
    x.requires_grad_()
    upstream = torch.randn_like(x)
    parameters = [x, *layer.parameters()]

    def run() -> list[Tensor | None]:
        for parameter in parameters:
            parameter.grad = None
        forward(x).backward(upstream)
        return [parameter.grad for parameter in parameters]

    return run
