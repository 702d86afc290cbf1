"""The content of a teacher's predictions."""

from __future__ import annotations

import numpy as np
import torch


def test_rows_without_a_piece_are_never_predicted(teachers) -> None:
    """A model padded to more rows than its tokenizer has pieces: no stored id is beyond the tokenizer."""
    from polydistill.masking import Masked
    from polydistill.models.load import load_masked_lm
    from polydistill.scoring.predict import predict

    model = load_masked_lm(str(teachers["ru"]))
    size = model.config.vocab_size
    with torch.no_grad():
        model.cls.predictions.decoder.bias[size - 50 :] += 100
    example = Masked(np.array([2, 4, 9, 3]), np.array([1]), np.array([7]))
    for sampling in ("top_k", "random", "hybrid"):
        prediction = predict(
            model,
            [example],
            ids=[1],
            pad_id=0,
            vocabulary_size=size - 50,
            top_k=8,
            sampling=sampling,
            dtype=torch.float32,
            seed=0,
        )[0]
        assert prediction.top_ids.max() < size - 50
    assert np.exp(prediction.gold_logprobs[0]) < 1e-6
