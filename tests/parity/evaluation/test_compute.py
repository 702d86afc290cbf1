"""Operations of a forward pass, against PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.evaluation.compute import Sizes, forward_operations, sizes_of, training_operations

COMMON = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS = {
    "bert": COMMON | {"intermediate_size": 40, "max_position_embeddings": 64},
    "electra": COMMON | {"intermediate_size": 40, "embedding_size": 8, "max_position_embeddings": 64},
    "modernbert": COMMON
    | {
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "distilbert": {"vocab_size": 90, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 40},
    "albert": COMMON | {"intermediate_size": 40, "embedding_size": 8, "max_position_embeddings": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_has_the_operations_that_pytorch_counts(tmp_path, kind) -> None:
    """With every position predicted, which is what a whole model computes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **KINDS[kind])
    config._attn_implementation = "eager"
    model = AutoModelForMaskedLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    sizes = sizes_of(tmp_path)
    assert sizes is not None
    ids = torch.randint(5, 90, (4, 24))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert forward_operations(sizes, 96, 24, 96) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_parts_by_hand() -> None:
    sizes = Sizes(matrices=100, attention=6, output=50)
    # 2 x 100 x 10, 4 x 6 x 5 x 10, 2 x 50 x 3.
    assert forward_operations(sizes, 10, 5, 3) == 2000 + 1200 + 300
    assert training_operations(sizes, 10, 5, 3) == 3 * 3500


def test_a_folder_without_weights_has_no_sizes(tmp_path) -> None:
    assert sizes_of(tmp_path) is None
