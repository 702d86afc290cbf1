"""Models with a task's head: the folder's weights, and those that the seed draws."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.finetuning import recipe_values, task
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from polydistill.config.load import parse_recipe
from polydistill.errors import ModelError
from polydistill.pipelines.finetune.jobs import all_jobs
from polydistill.tasks.heads import load_with_head, predict
from polydistill.tasks.splits import read_tasks
from polydistill.tokenization.load import load_tokenizer

ARCHITECTURES = {
    "bert": {"intermediate_size": 32},
    "roberta": {
        "intermediate_size": 32,
        "type_vocab_size": 1,
        "pad_token_id": 0,
        "max_position_embeddings": 66,
    },
    "electra": {"intermediate_size": 32, "embedding_size": 16},
    "albert": {"intermediate_size": 32, "embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    "modernbert": {"intermediate_size": 32},
}


def small_config(architecture: str, vocab_size: int) -> PreTrainedConfig:
    """One layer of width 32, whose special tokens are those of the fixtures' tokenizers."""
    return AutoConfig.for_model(
        architecture,
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        **{
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        | ARCHITECTURES[architecture],
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_any_architecture_gets_each_head_from_the_seed(tmp_path, teachers, architecture) -> None:
    """An MLM's folder has neither pooler nor head: the encoder's weights are the folder's, the others the
    seed's.
    """
    config = small_config(architecture, load_tokenizer(str(teachers["en"])).size)
    torch.manual_seed(0)
    base = AutoModelForMaskedLM.from_config(config)
    base.save_pretrained(tmp_path)
    features = [{"input_ids": [2, 9, 8, 3]}, {"input_ids": [2, 9, 8, 7, 6, 3]}]
    for kind in ("ner", "classification", "choice", "qa"):
        models = [load_with_head(str(tmp_path), kind, num_labels=3, seed=seed) for seed in (1, 1, 2)]
        states = [model.state_dict() for model in models]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
        encoder = base.base_model.state_dict()
        for key, value in models[0].base_model.state_dict().items():
            if "pooler" not in key:
                assert torch.equal(value, encoder[key]), key
        given = [{"input_ids": [row["input_ids"]] * 2} for row in features] if kind == "choice" else features
        outputs = dict(predict(models[0], given, pad_id=0, batch_tokens=64, dtype=torch.float32))
        # A row's logits do not depend on its batch: the padding is masked.
        alone = dict(predict(models[0], given[:1], pad_id=0, batch_tokens=64, dtype=torch.float32))
        for batched, single in zip(outputs[0], alone[0], strict=True):
            np.testing.assert_allclose(batched, single, atol=1e-5)
            assert batched.shape[0] == {"ner": 4, "classification": 3, "choice": 2, "qa": 4}[kind]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_head_that_comes_with_the_folder_is_drawn_anew(tmp_path, teachers, architecture) -> None:
    """An earlier training's head may have other labels or another order: each seed draws its own head."""
    config = small_config(architecture, load_tokenizer(str(teachers["en"])).size)
    config.num_labels = 3
    torch.manual_seed(0)
    tuned = AutoModelForSequenceClassification.from_config(config)
    tuned.save_pretrained(tmp_path)
    seeds = [load_with_head(str(tmp_path), "classification", num_labels=3, seed=seed) for seed in (1, 1, 2)]
    own = [key for key in tuned.state_dict() if key.startswith("classifier") and key.endswith("weight")]
    assert own
    for key in own:
        heads = [model.state_dict()[key] for model in seeds]
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert not torch.equal(heads[0], tuned.state_dict()[key])
    encoder = tuned.base_model.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in seeds[0].base_model.state_dict().items())
    other = load_with_head(str(tmp_path), "classification", num_labels=5, seed=1)
    assert other.state_dict()[own[-1]].shape[0] == 5
    # An answer has a start and an end, whatever the folder was made for.
    given = {"input_ids": torch.tensor([[2, 9, 8, 3]])}
    assert load_with_head(str(tmp_path), "qa", num_labels=0, seed=1)(**given).start_logits.shape == (1, 4)
    # A checkpoint of the training itself keeps its head.
    kept = load_with_head(str(tmp_path), "classification", num_labels=3, seed=1, fresh=False)
    assert all(torch.equal(kept.state_dict()[key], tuned.state_dict()[key]) for key in tuned.state_dict())


def test_random_weights_are_the_architecture_s_own_and_drawn_by_the_seed(tmp_path, teachers) -> None:
    model, same, other = (
        load_with_head(str(teachers["en"]), "ner", num_labels=5, seed=seed, random=True) for seed in (1, 1, 2)
    )
    trained = load_with_head(str(teachers["en"]), "ner", num_labels=5, seed=1)
    assert model.config.num_labels == 5
    for key, value in model.state_dict().items():
        assert value.shape == trained.state_dict()[key].shape
        assert torch.equal(value, same.state_dict()[key])
    for differs in (other, trained):
        key = "bert.embeddings.word_embeddings.weight"
        assert not torch.equal(model.state_dict()[key], differs.state_dict()[key])
    values = recipe_values(tmp_path, {"a": teachers["en"]}, {"ner": task(tmp_path, "ner")})
    names = {}
    for weights in ("trained", "random"):
        values["models"] = {"a": {"model": str(teachers["en"]), "weights": weights}}
        recipe = parse_recipe(values)
        (job,) = all_jobs(recipe, read_tasks(recipe))
        assert torch.equal(
            job.load().state_dict()[key],
            load_with_head(
                str(teachers["en"]), "ner", num_labels=7, seed=0, random=weights == "random"
            ).state_dict()[key],
        )
        names[weights] = job.inputs["weights"]
    assert names["random"].startswith("random ")
    assert names["trained"] != names["random"]


def test_an_encoder_that_lacks_weights_is_refused(tmp_path, teachers) -> None:

    from safetensors.torch import save_file

    shutil.copytree(teachers["en"], tmp_path / "part")
    path = tmp_path / "part" / "model.safetensors"
    weights = load_file(path)
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks weights of the encoder \(bert.encoder.layer.1.attention.self.query"
    ):
        load_with_head(str(tmp_path / "part"), "ner", num_labels=3, seed=0)
    torch.save(weights, tmp_path / "part" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(ModelError, match="exist only as a pickle"):
        load_with_head(str(tmp_path / "part"), "ner", num_labels=3, seed=0, field="models.x")
