"""Which of torch's attention kernels to train with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Measured on two cores, forward and backward: at 64 tokens and heads of 26 plain products take 0.4 of the
# flash kernel's time, at 128 tokens 0.7, at 512 tokens 1.3 to 2.1 (LOG, 2026-11-21).
PLAIN_UP_TO_TOKENS = 128


def attention_for(device: torch.device, sequence_tokens: int) -> AbstractContextManager[None]:
    """A context in which scaled dot-product attention uses the faster kernel for sequences of this length.

    On a CPU torch's flash kernel is slow on short sequences, above all its backward pass. Elsewhere, and for
    long sequences, torch chooses. Architectures with their own attention are unaffected.
    """
    if device.type == "cpu" and sequence_tokens <= PLAIN_UP_TO_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
