"""The number formats of a run: ``precision=fp32|tf32|bf16|fp16``.

Weights, optimiser state and sums are fp32 in all of them. ``tf32`` rounds the factors of matrix products on a GPU to
10 bits; ``bf16`` and ``fp16`` are torch's automatic mixed precision, fp16 with a scaled loss (Micikevicius et al.
2018, 1710.03740).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from mixersweep.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Set up this process for a precision and return the loss scaler, which is enabled only for fp16.

    Raises ``UserError`` for tf32 on a CPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("precision=tf32: is a GPU's; on a CPU use fp32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context for forward passes and losses: autocast for bf16 and fp16, else a null context."""
    if precision not in DTYPES:
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])
