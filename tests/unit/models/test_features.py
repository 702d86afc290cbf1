"""Features at masked positions."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.models.features import masked_features


def test_features_of_a_model_in_a_parallel_wrapper() -> None:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    inner = AutoModelForMaskedLM.from_config(config)
    inputs = {"input_ids": torch.full((1, 8), 7), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    assert masked_features(torch.nn.DataParallel(inner), inputs, torch.tensor([1])).shape == (1, 32)
