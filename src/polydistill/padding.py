"""Row counts that recur from batch to batch.

On a CPU, oneDNN compiles a product of bfloat16 matrices for each new shape, half a megabyte each, and keeps
what it compiled. If every batch has another number of masked positions, memory grows for thousands of steps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

# Few padding rows (a fortieth of a batch of 300), and few shapes (eight for 255 to 365 rows).
ROWS_MULTIPLE = 16


def pad_rows(rows: Tensor) -> Tensor:
    """[n, ...] padded with zeros at the end to a multiple of ROWS_MULTIPLE rows."""
    return pad(rows, (0, 0) * (rows.ndim - 1) + (0, -len(rows) % ROWS_MULTIPLE))
