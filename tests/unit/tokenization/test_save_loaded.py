"""A loaded tokenizer is written as it was."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from polydistill.tokenization.load import load_tokenizer
from polydistill.tokenization.wordpiece import save_loaded


@pytest.mark.parametrize("given", [None, {"model_input_names": ["input_ids"]}])
def test_a_loaded_tokenizer_keeps_its_settings(tmp_path, teachers, given) -> None:
    """Or gets others: a student of one token type takes no segments."""
    names = ["input_ids", "token_type_ids"]
    loaded = replace(load_tokenizer(str(teachers["en"])), settings={"model_input_names": names})
    save_loaded(loaded, tmp_path / "out", settings=given)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.model_input_names == (given or {"model_input_names": names})["model_input_names"]
    assert again.model_max_length == loaded.max_length
    original = AutoTokenizer.from_pretrained(teachers["en"])
    assert again.special_tokens_map == original.special_tokens_map
    assert again("of the and")["input_ids"] == original("of the and")["input_ids"]
