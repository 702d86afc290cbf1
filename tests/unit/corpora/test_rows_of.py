"""Examples by their ids."""

import numpy as np
import pytest
from tests.conftest import write_examples

from polydistill.corpora.examples import Examples


def test_rows_of_ids_in_any_order(tmp_path) -> None:
    write_examples(tmp_path / "a.arrow", [(f"text {index}", 2) for index in range(50)])
    examples = Examples(tmp_path / "a.arrow")
    rows = np.random.default_rng(0).permutation(50)[:20]
    assert examples.rows_of([int(examples.ids[row]) for row in rows]).tolist() == rows.tolist()
    for missing in (0, int(examples.ids.max()) + 1):
        with pytest.raises(KeyError, match=str(missing)):
            examples.rows_of([int(examples.ids[3]), missing])
