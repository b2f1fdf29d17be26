"""How much memory training takes, by arithmetic: an estimate of what tensors take at their peak, in bytes.

    4·parameters·(2 + s + e)      weights, gradients, s numbers of optimiser state, e = 1 with an average of the weights
    + structure                   indices of sparse weights: 20 a nonzero; or the dense matrices that stand for them
    + 4·batch·(activations kept)  of each image, what the backward pass needs of each layer: its input, plain and
                                  normalised, and what is before and behind each activation
    + 4·batch·3·(largest layer)   what comes and goes beside it

The batch is that of one part (``accumulation``), and kept activations take 2 bytes in bf16 and fp16. It leaves out the
images (a small data set lies on the device as bytes), torch itself (0.2 to 0.5 GB in the memory of a process) and a
kernel's work space. The activations kept are within a fifth of what torch keeps; the peak of a whole step on a CPU was
within a factor of 1.5 of the estimate, and some 40 MB above it.
"""

from __future__ import annotations

from typing import Any

from mixersweep.budget import Architecture
from mixersweep.budget.storage import sparse_is_faster
from mixersweep.config import Config, LayeredFamily
from mixersweep.config.families import SWMLP, Monarch, Shallow
from mixersweep.config.schema import SGD, AdamW, BetaLasso

FLOAT, INDICES = 4, 20
"""Bytes of a number in float32, and of the indices of a sparse weight (``layers.sparse``: three int32, one int64)."""


def memory_bytes(config: Config, architecture: Architecture) -> int:
    """The most bytes that the tensors of a training step take at once, by the formula above."""
    copies = 2 + _optimizer_state(config) + (config.ema is not None)
    parameters = FLOAT * copies * architecture.parameters
    passing = FLOAT * config.batch_size / config.accumulation * 3 * _largest(config, architecture)
    return round(parameters + _structure(config, architecture) + activation_bytes(config, architecture) + passing)


def activation_bytes(config: Config, architecture: Architecture) -> int:
    """Bytes that the forward pass of a batch keeps for the backward pass."""
    number = FLOAT / 2 if config.precision in ("bf16", "fp16") else FLOAT
    return round(number * config.batch_size / config.accumulation * _kept(config, architecture))


def _optimizer_state(config: Config) -> int:
    """Numbers that the optimiser keeps of each parameter; of timm's many, what most of them keep."""
    optim = config.optim
    if isinstance(optim, SGD):
        return int(optim.momentum > 0)
    return {BetaLasso: 0, AdamW: 2}.get(type(optim), 2)


def _structure(config: Config, a: Architecture) -> float:
    """Bytes of what is neither parameter nor activation: where sparse weights are, or what stands for them."""
    model = config.model
    if not isinstance(model, SWMLP):
        return 0.0
    matrices = a.mixing_layers * (2 if model.hidden else 1)
    indices = INDICES * a.connections * matrices
    kind = "cuda" if config.device.startswith("cuda") else "cpu"
    fits = sparse_is_faster(a.width, a.hidden_width, int(a.connections), config.batch_size, kind)
    sparse = model.storage == "sparse" or (model.storage == "auto" and fits)
    return indices if sparse else indices + FLOAT * a.width * a.hidden_width * (matrices + 1)


def _kept(config: Config, a: Architecture) -> float:
    """Numbers of an image that the backward pass needs."""
    model: Any = config.model
    pixels = config.data.image_channels * config.image_size**2
    if isinstance(model, LayeredFamily):
        return pixels + 2.0 * sum(_layers(config, a))
    if isinstance(model, Shallow):
        return pixels + a.width * (a.mixing_layers + 0.5)
    hidden = a.hidden_width if model.hidden else a.width
    layer = 2.0 * a.width + (2 * hidden if model.hidden else a.width)
    if isinstance(model, Monarch):  # its two layers have one norm, and perhaps nothing between them
        layer -= a.width / 2 if model.inner_activation else a.width
    layers: float = a.mixing_layers
    if config.gradient_checkpointing:  # the inputs of all layers, and one block in full
        layers = 2 + a.mixing_layers * a.width / layer
    return pixels + a.patches * a.embedding_channels + layers * layer


def _largest(config: Config, a: Architecture) -> int:
    """Numbers of an image in its largest layer."""
    if isinstance(config.model, LayeredFamily):
        return max(_layers(config, a))
    return max(a.width, a.hidden_width)


def _layers(config: Config, a: Architecture) -> list[int]:
    """The outputs of each layer of a network that is a list of layers."""
    model = config.model
    assert isinstance(model, LayeredFamily)
    network = model.layered(config.data.image_channels, config.image_size, config.data.classes)
    return [layer.outputs * layer.places for layer in network.layers(a.width)]
