"""How much memory training takes, by arithmetic: an estimate of what tensors take at their peak, in bytes.

    4·parameters·(2 + s + e)      weights, gradients, s numbers of optimiser state, e = 1 with an average of the weights
    + beside weights              indices of sparse weights: 20 a nonzero; or the dense matrices that stand for them
    + 4·batch·(activations kept)  of each image, what the backward pass needs of each layer: its input, plain and
                                  normalised, and what is before and behind each activation
    + 4·batch·3·(largest layer)   what comes and goes beside it

The last three a family says of itself (``families.base``). The batch is that of one part (``accumulation``), and kept
activations take 2 bytes in bf16 and fp16. It leaves out the images (a small data set lies on the device as bytes),
torch itself (0.2 to 0.5 GB in the memory of a process) and a kernel's work space. The activations kept are within a
fifth of what torch keeps; the peak of a whole step on a CPU was within a factor of 1.5 of the estimate, and some 40 MB
above it.
"""

from __future__ import annotations

from mixersweep.budget import Architecture
from mixersweep.config import Config, image_facts

FLOAT = 4
"""Bytes of a number in float32."""


def memory_bytes(config: Config, architecture: Architecture) -> int:
    """The most bytes that the tensors of a training step take at once, by the formula above."""
    copies = 2 + config.optim.state_numbers + (config.ema is not None)
    parameters = FLOAT * copies * architecture.parameters
    kind = "cuda" if config.device.startswith("cuda") else "cpu"
    beside = config.model.beside_weights(architecture, config.batch_size, kind)
    largest = config.model.largest_layer(architecture, image_facts(config))
    passing = FLOAT * config.batch_size / config.accumulation * 3 * largest
    return round(parameters + beside + activation_bytes(config, architecture) + passing)


def activation_bytes(config: Config, architecture: Architecture) -> int:
    """Bytes that the forward pass of a batch keeps for the backward pass."""
    number = FLOAT / 2 if config.precision in ("bf16", "fp16") else FLOAT
    kept = config.model.activations(architecture, image_facts(config), recomputed=config.gradient_checkpointing)
    return round(number * config.batch_size / config.accumulation * kept)
