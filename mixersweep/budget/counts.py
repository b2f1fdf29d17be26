"""Count the nonzeros, trainable weights and multiply-adds of a network of a given shape, part by part."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from mixersweep.budget.readout import head_features
from mixersweep.budget.terms import Architecture, Request, Shape
from mixersweep.errors import UserError


class Matrix(NamedTuple):
    """The counts of one effective weight matrix: its nonzeros, its trainable weights and its trainable biases."""

    connections: int
    weights: int
    biases: int


def mixer_matrices(request: Request, shape: Shape) -> list[Matrix]:
    """Return the effective matrices of all blocks of a Mixer; the first one maps patches to tokens."""
    tokens, channels = shape.tokens, shape.channels
    tied = request.structure == "kronecker"

    def matrix(blocks: int, outputs: int, inputs: int) -> Matrix:
        copies = 1 if tied else blocks
        return Matrix(blocks * outputs * inputs, copies * outputs * inputs, copies * outputs)

    matrices = []
    for block in range(request.depth):
        inputs = request.patches if block == 0 and request.stem == "patch" else tokens
        if request.hidden:
            matrices += [
                matrix(channels, shape.token_hidden, inputs),
                matrix(channels, tokens, shape.token_hidden),
                matrix(tokens, shape.channel_hidden, channels),
                matrix(tokens, channels, shape.channel_hidden),
            ]
        else:
            matrices += [matrix(channels, tokens, inputs), matrix(tokens, channels, channels)]
    return matrices


def mlp_matrices(request: Request, shape: Shape) -> list[Matrix]:
    """Return the matrices of all mixing layers of an MLP."""
    connections = int(shape.connections)
    weights = -(-connections // request.sharing)
    layer = [Matrix(connections, weights, shape.width)]
    if request.hidden:
        layer = [Matrix(connections, weights, shape.hidden_width), *layer]
    return layer * (request.layers_per_block * request.depth)


def count(request: Request, shape: Shape, matrices: list[Matrix], embedding_channels: int) -> Architecture:
    """Add up the parts of a network with these mixing matrices to an ``Architecture``.

    Raises ``UserError`` where ``skip_layer=never`` does not fit the tokens.
    """
    mixer = shape.tokens > 0
    embedded = request.stem != "none"
    resized = mixer and request.stem == "resize"
    skip = mixer and embedded and not resized and _has_skip_layer(request, shape.tokens)
    norm_size = 2 * (shape.channels if mixer else shape.width)  # a LayerNorm's scale and shift
    mixing_layers = request.layers_per_block * request.depth

    stem = request.patch_values * embedding_channels
    resize = shape.tokens * request.patches
    features = head_features(request, shape.width, embedding_channels)
    head = features * request.classes
    total = sum(matrix.connections for matrix in matrices)
    weights = sum(matrix.weights for matrix in matrices)
    stem_parameters = stem + resize * resized
    skip_parameters = resize * skip
    biases = embedding_channels * embedded + request.classes
    biases += sum(matrix.biases for matrix in matrices) if request.bias else 0
    before_layers = request.layers_per_block if request.norms_per_block is None else request.norms_per_block
    norms = norm_size * (before_layers * request.depth + embedded + skip)  # the skip layer has one too
    connections, behind = shape.connections, _weights_behind(request, shape)
    skip_connections = embedding_channels * resize if skip else 0
    return Architecture(
        **_targets(request, shape),
        width=shape.width,
        width_target=shape.width_target,
        hidden_width=shape.hidden_width,
        tokens=shape.tokens or None,
        channels=shape.channels or None,
        token_hidden=shape.token_hidden or None,
        channel_hidden=shape.channel_hidden or None,
        embedding_channels=embedding_channels,
        patches=request.patches,
        expansion=shape.expansion,
        depth=request.depth,
        mixing_layers=mixing_layers,
        connections=int(connections) if connections.denominator == 1 else float(connections),
        connections_target=shape.connections_target,
        connections_counted=total / len(matrices),
        total_connections=total,
        weights=int(behind) if behind.denominator == 1 else float(behind),
        density=_density(shape, mixer),
        mean_fan_in=float(connections / (shape.hidden_width if request.hidden else shape.width)),
        parameters=stem_parameters + weights + skip_parameters + head + biases + norms,
        stem_parameters=stem_parameters,
        mixing_parameters=weights,
        head_parameters=head,
        skip_parameters=skip_parameters,
        skip_connections=skip_connections,
        connections_real=(total + skip_connections) / len(matrices),
        weights_real=(weights + skip_parameters) / len(matrices),
        readout_dimension=features,
        flops_per_image=2 * (request.patches * stem + embedding_channels * resize * (skip or resized) + total + head),
    )


def _weights_behind(request: Request, shape: Shape) -> Fraction:
    """Return the trainable weights of a mixing layer by the formula, in the mean of tokens and channels for a Mixer."""
    if request.structure == "kronecker":
        return Fraction(shape.tokens * shape.token_hidden + shape.channels * shape.channel_hidden, 2)
    return Fraction(-(-shape.connections // request.sharing)) if request.sharing > 1 else shape.connections


def _targets(request: Request, shape: Shape) -> dict[str, int | None]:
    """Return the target of the budget by its name in ``Architecture``, where it is not the formula's connections."""
    real = "_real" if request.count == "real" else ""
    if request.budget == "flops":
        return {"flops_target": request.flops}
    if request.budget == "parameters":
        return {f"weights{real}_target": request.weights}
    return {f"connections{real}_target": shape.target} if real else {}


def _density(shape: Shape, mixer: bool) -> float:
    """Return the density p = Omega / (g·m²); for an MLP with the rounded hidden size in place of g·m."""
    if mixer:
        return float(shape.connections / (Fraction(shape.expansion) * shape.width**2))
    return float(shape.connections / (shape.width * shape.hidden_width))


def _has_skip_layer(request: Request, tokens: int) -> bool:
    if request.skip_layer == "never" and tokens != request.patches:
        raise UserError(
            f"model.skip_layer=never: the first skip is then an identity, which needs tokens={request.patches} "
            f"(the patches of the image), not {tokens}; use model.skip_layer=auto, or tokens={request.patches}"
        )
    return request.skip_layer == "always" or tokens != request.patches
