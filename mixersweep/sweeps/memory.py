"""Estimate the memory that training takes: the bytes of all tensors at their peak, by a formula.

    4·parameters·(2 + s + e)      weights, gradients, s numbers of optimiser state, e = 1 with an average of the weights
    + beside weights              indices of sparse weights: 20 a nonzero; or the dense matrices that replace them
    + 4·batch·(activations kept)  for each image, what the backward pass needs of each layer: its input, plain and
                                  normalised, and the values before and after each activation function
    + 4·batch·3·(largest layer)   temporary tensors

Each model family computes the last three (``families.base``). The batch is that of one part (``accumulation``), and
kept activations take 2 bytes in bf16 and fp16. The estimate leaves out the images (a small data set is on the device
as bytes), torch itself (0.2 to 0.5 GB in the memory of a process) and a kernel's work space. The activations kept are
within a fifth of what torch keeps; the measured peak of a whole step on a CPU was within a factor of 1.5 of the
estimate, and some 40 MB above it.
"""

from __future__ import annotations

from mixersweep.budget import Architecture
from mixersweep.config import Config, image_facts

FLOAT_BYTES = 4
"""Bytes of a number in float32."""


def memory_bytes(config: Config, architecture: Architecture) -> int:
    """Estimate the peak bytes that the tensors of a training step take, by the formula above."""
    copies = 2 + config.optim.state_numbers + (config.ema is not None)
    parameters = FLOAT_BYTES * copies * architecture.parameters
    kind = "cuda" if config.device.startswith("cuda") else "cpu"
    extra = config.model.beside_weights(architecture, config.batch_size, kind)
    largest = config.model.largest_layer(architecture, image_facts(config))
    temporary = FLOAT_BYTES * config.batch_size / config.accumulation * 3 * largest
    return round(parameters + extra + activation_bytes(config, architecture) + temporary)


def activation_bytes(config: Config, architecture: Architecture) -> int:
    """Estimate the bytes that the forward pass of a batch keeps for the backward pass."""
    number_bytes = FLOAT_BYTES / 2 if config.precision in ("bf16", "fp16") else FLOAT_BYTES
    kept = config.model.activations(architecture, image_facts(config), recomputed=config.gradient_checkpointing)
    return round(number_bytes * config.batch_size / config.accumulation * kept)
