"""Packing and unpacking a model changes nothing."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.scoring.ray_transfer import pack, unpack

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "pad_token_id": 0,
}
OTHER = {
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "vocab_size": 99,
        "pad_token_id": 0,
    },
    "electra": SMALL | {"embedding_size": 16},
}


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        "roberta",
        "xlm-roberta",
        "electra",
        "albert",
        "modernbert",
        "deberta-v2",
        "roformer",
        "distilbert",
        "mpnet",
    ],
)
def test_logits_and_ties_stay(kind) -> None:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **OTHER.get(kind, SMALL))).eval()
    parcel = pack(model)
    again = unpack(parcel)
    ids = torch.randint(5, 99, (2, 9))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert type(again) is type(model)
    assert not again.training
    # Each weight travels once, tied ones too, and none within the pickle.
    assert sum(tensor[0].nbytes for tensor in parcel.tensors) == sum(
        tensor.nbytes for tensor in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    )
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert len(parcel.frame) < 60_000
