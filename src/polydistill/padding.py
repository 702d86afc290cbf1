"""Numbers of rows that come again, batch after batch.

On a processor oneDNN compiles a product of bfloat16 matrices for each shape that it meets, half a megabyte each, and keeps
what it compiled: a training whose batches have ever other numbers of masked positions grows for thousands of steps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

# Few enough rows that mean nothing (a fortieth of a batch of 300), and few shapes (eight for 255 to 365 rows).
ROWS_MULTIPLE = 16


def filled(rows: Tensor) -> Tensor:
    """[n, ...] with zeros behind, up to a multiple of ROWS_MULTIPLE rows."""
    return pad(rows, (0, 0) * (rows.ndim - 1) + (0, -len(rows) % ROWS_MULTIPLE))
