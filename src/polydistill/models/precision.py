"""The dtype and the device to compute with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


@cache
def computes_in_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware (AVX512-BF16, AMX, or a GPU)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        # An older CPU, or ATEN_CPU_CAPABILITY emulates one.
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_dtype(precision: Precision) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16()):
        return torch.bfloat16
    return torch.float32


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
