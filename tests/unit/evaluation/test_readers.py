"""How evaluation masks."""

from __future__ import annotations

import numpy as np

from polydistill.tokenization.load import load_tokenizer


def test_evaluation_hides_every_token_that_it_asks_for(teachers) -> None:
    """Training leaves a tenth of masked tokens visible; in evaluation a model that copies its input must not
    gain.
    """
    from tests.conftest import bundled_lines

    from polydistill.config.shared import Masking
    from polydistill.evaluation.readers import Reader, hidden

    tokenizer = load_tokenizer(str(teachers["en"]))
    texts = bundled_lines("en", 200)
    reader = Reader("x", None, tokenizer, "own", "x")
    made = reader.masked(texts, list(range(200)), 64, hidden(Masking(probability=0.4), 0.15), 5)
    seen = np.concatenate([m.input_ids[m.positions] for m in made])
    assert set(seen.tolist()) == {tokenizer.special_ids["mask"]}
    # The share is evaluation's own, whatever training masks.
    tokens = sum(len(m.input_ids) - 2 for m in made)
    assert abs(len(seen) / tokens - 0.15) < 0.02
