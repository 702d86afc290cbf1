"""Trims of encoders of every kind, read by plain transformers: outputs, and other weights to the byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.conftest import bundled_lines
from tests.parity.models.test_trim import ARCHITECTURES, SMALL
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from polydistill.errors import ModelError, NumericsError, RecipeError, TokenizerError
from polydistill.models.kinds import ENCODER, load_kind
from polydistill.tools import trim as tool
from polydistill.tools.folders import open_folder
from polydistill.tools.trim import trim_vocabulary

HEADS = {
    "encoder": (AutoModel, ["last_hidden_state", "pooler_output"]),
    "tokens": (AutoModelForTokenClassification, ["logits"]),
    "sequences": (AutoModelForSequenceClassification, ["logits"]),
    "questions": (AutoModelForQuestionAnswering, ["start_logits", "end_logits"]),
}
TASKS = {
    "encoder": "encoder without a head",
    "tokens": "token classifier",
    "sequences": "sequence classifier",
    "questions": "question answerer",
}
TEXTS = bundled_lines("en", 60)


def model_folder(folder: Path, head: str, teacher: Path, model_type: str = "bert") -> Path:
    """A small model with a head, every weight moved, and the tokenizer of a teacher."""
    words = AutoTokenizer.from_pretrained(teacher)
    torch.manual_seed(0)
    ids = {f"{role}_token_id": getattr(words, f"{role}_token_id") for role in ("pad", "cls", "sep")}
    fields = (
        SMALL
        | ARCHITECTURES[model_type]
        | ids
        | {"vocab_size": len(words), "num_labels": 2 if head == "questions" else 3}
    )
    config = AutoConfig.for_model(model_type, **(fields | {"max_position_embeddings": 64}))
    model = HEADS[head][0].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher / file, folder / file)
    return folder


def trim(source: Path, texts: dict[str, Path], target: Path, **options: object) -> dict:
    return trim_vocabulary(
        str(source), {"en": [str(texts["en"])]}, target, Console(quiet=True), verify_lines=40, **options
    )


def check_outputs(source: Path, target: Path, head: str) -> None:
    """Both folders compute the same on lines whose pieces are kept, alone and in a padded batch."""
    auto, names = HEADS[head]
    old, new = (auto.from_pretrained(place, dtype=torch.float32).eval() for place in (source, target))
    old_words, new_words = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    kept = json.loads((target / "kept.json").read_text("utf-8"))
    lines = [line for line in TEXTS if set(old_words(line, truncation=True)["input_ids"]) <= set(kept)]
    assert len(lines) > 20
    one, other = (
        words(lines, return_tensors="pt", padding=True, truncation=True) for words in (old_words, new_words)
    )
    # The pieces are the same, under other numbers.
    assert torch.equal(torch.tensor(kept)[other["input_ids"]], one["input_ids"])
    assert not torch.equal(other["input_ids"], one["input_ids"])
    with torch.no_grad():
        expected, made = old(**one), new(**other)
    attended = one["attention_mask"].bool()
    compared = 0
    for name in names:
        first, second = getattr(expected, name, None), getattr(made, name, None)
        if first is None:
            continue
        compared += 1
        if first.shape[:2] == attended.shape:
            first, second = first[attended], second[attended]
        torch.testing.assert_close(second, first, atol=1e-5 * max(1, float(first.abs().max())), rtol=0)
    assert compared


def check_bytes(source: Path, target: Path, table: str) -> None:
    """The files' tensors, read without our code: one table has the kept rows, all else its bytes."""
    old, new = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    kept = json.loads((target / "kept.json").read_text("utf-8"))
    assert old.keys() == new.keys()
    for name in old:
        wanted = old[name][kept] if name == table else old[name]
        assert wanted.dtype == new[name].dtype
        assert wanted.contiguous().numpy().tobytes() == new[name].numpy().tobytes(), name


@pytest.mark.parametrize(
    ("head", "model_type", "table"),
    [
        ("encoder", "bert", "embeddings.word_embeddings.weight"),
        ("encoder", "modernbert", "embeddings.tok_embeddings.weight"),
        ("tokens", "distilbert", "distilbert.embeddings.word_embeddings.weight"),
        ("sequences", "bert", "bert.embeddings.word_embeddings.weight"),
        ("sequences", "electra", "electra.embeddings.word_embeddings.weight"),
        ("questions", "roberta", "roberta.embeddings.word_embeddings.weight"),
    ],
)
def test_a_model_with_any_head_is_trimmed(tmp_path, teachers, texts, head, model_type, table) -> None:
    source = model_folder(tmp_path / "source", head, teachers["en"], model_type)
    record = trim(source, texts, tmp_path / "out", size=300)
    assert record["task"] == TASKS[head]
    assert list(record["weights"]["cut"]) == [table]
    check_bytes(source, tmp_path / "out", table)
    check_outputs(source, tmp_path / "out", head)
    whole = load_file(source / "model.safetensors")
    rest = [tensor for name, tensor in whole.items() if name != table]
    assert record["weights"]["unchanged"] >= len(rest)
    assert record["weights"]["unchanged_bytes"] >= sum(t.numel() * t.element_size() for t in rest)
    assert all(0 <= field["max_difference"] <= 1e-5 for field in record["outputs"]["fields"].values())
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"{HEADS[head][0].__name__}.from_pretrained" in card
    assert "equal to the byte" in card


def test_weights_in_half_precision_stay_so(tmp_path, teachers, texts) -> None:
    source = model_folder(tmp_path / "source", "sequences", teachers["en"])
    model = AutoModelForSequenceClassification.from_pretrained(source).half()
    model.save_pretrained(source)
    trim(source, texts, tmp_path / "out", size=300)
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float16}
    check_bytes(source, tmp_path / "out", "bert.embeddings.word_embeddings.weight")


def test_a_file_of_two_precisions_loses_nothing(tmp_path, teachers, texts) -> None:
    """transformers would load all of it in one; float32 holds the numbers of both."""
    source = model_folder(tmp_path / "source", "sequences", teachers["en"])
    state = load_file(source / "model.safetensors")
    state = {name: t if "classifier" in name else t.half() for name, t in state.items()}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float16"}), "utf-8")
    trim(source, texts, tmp_path / "out", size=300)
    written = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(written["classifier.weight"], state["classifier.weight"])


def test_a_changed_head_is_refused(tmp_path, teachers, texts, monkeypatch) -> None:
    """One bit of one bias, which no output would show."""
    source = model_folder(tmp_path / "source", "sequences", teachers["en"])
    right = tool.trim_model

    def nudged(model, kept):
        made = right(model, kept)
        bias = made.classifier.bias.data
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
        return made

    monkeypatch.setattr(tool, "trim_model", nudged)
    with pytest.raises(
        ModelError, match=r"1 of its weights .* such as classifier.bias; .*nothing was written"
    ):
        trim(source, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("head", "name"), [("encoder", "last_hidden_state"), ("sequences", "logits")])
def test_outputs_that_differ_are_refused(tmp_path, teachers, texts, monkeypatch, head, name) -> None:
    source = model_folder(tmp_path / "source", head, teachers["en"])
    right = tool.trim_model
    monkeypatch.setattr(tool, "prove_weights", lambda *_: {"cut": {}, "unchanged": 0, "unchanged_bytes": 0})
    monkeypatch.setattr(tool, "trim_model", lambda model, kept: right(model, kept[::-1].copy()))
    with pytest.raises(ModelError, match=rf"{name} differ by .*nothing was written"):
        trim(source, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_kind_does_not_use_is_left_out_and_said(tmp_path, teachers, texts) -> None:
    """An encoder's configuration over a masked language model's file, without a pooler."""
    shutil.copytree(teachers["en"], tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text("utf-8"))
    config["architectures"] = ["BertModel"]
    (tmp_path / "source/config.json").write_text(json.dumps(config), "utf-8")
    record = trim(tmp_path / "source", texts, tmp_path / "out")
    assert "cls.predictions.transform.dense.weight" in record["left_out"]
    # No random pooler takes its place.
    assert list(record["outputs"]["fields"]) == ["last_hidden_state"]
    written = load_file(tmp_path / "out/model.safetensors")
    assert not [name for name in written if "pooler" in name or name.startswith("cls.")]
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "left out, because its class does not use them: " in card


def test_a_tokenizer_without_a_mask_is_enough_without_an_mlm_head(tmp_path, teachers, texts) -> None:
    source = model_folder(tmp_path / "source", "tokens", teachers["en"])
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    del settings["mask_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    trim(source, texts, tmp_path / "out", size=300)
    check_outputs(source, tmp_path / "out", "tokens")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token is None
    # A masked language model needs one.
    shutil.copytree(teachers["en"], tmp_path / "mlm")
    shutil.copy(source / "tokenizer_config.json", tmp_path / "mlm/tokenizer_config.json")
    with pytest.raises(TokenizerError, match="has no mask token"):
        trim(tmp_path / "mlm", texts, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice': is none of the kinds"),
        ({"architectures": ["BertForNextSentencePrediction"]}, "AutoModel.from_pretrained"),
        ({"model_type": "gpt2"}, "is a decoder"),
        ({"architectures": ["BertForQuestionAnswering"]}, r"lacks weights .*qa_outputs"),
    ],
)
def test_a_kind_that_cannot_be_trimmed(tmp_path, teachers, texts, change, wanted) -> None:
    source = model_folder(tmp_path / "source", "sequences", teachers["en"])
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | change), "utf-8")
    with pytest.raises(ModelError, match=wanted) as caught:
        trim(source, texts, tmp_path / "out")
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path, teachers) -> None:
    source = model_folder(tmp_path / "source", "sequences", teachers["en"])
    state = load_file(source / "model.safetensors")
    state["classifier.bias"][1] = torch.nan
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match=r"classifier\.bias"):
        load_kind(str(source))


def test_kinds_are_told_by_their_class(teachers, tmp_path) -> None:
    assert open_folder(str(teachers["en"])).kind.auto is AutoModelForMaskedLM
    for head, (auto, _) in HEADS.items():
        assert open_folder(str(model_folder(tmp_path / head, head, teachers["en"]))).kind.auto is auto
    # A masked language model's encoder alone, if that is asked for.
    assert open_folder(str(teachers["en"]), kind=ENCODER).load().config.architectures is not None


def test_scripts_that_the_text_does_not_write(tmp_path, multilingual_teacher, texts) -> None:
    """English text: the Cyrillic letters of a model of both go, and Russian becomes unknown."""
    kept = trim(multilingual_teacher, texts, tmp_path / "all")
    assert "scripts" not in kept
    record = trim(multilingual_teacher, texts, tmp_path / "out", drop_scripts=True)
    assert list(record["scripts"]) == ["Cyrillic"]
    gone = record["scripts"]["Cyrillic"]
    assert gone["pieces"] == gone["unknown"] == kept["pieces"] - record["pieces"] > 40
    assert gone["share"] == 0
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.tokenize("слово house !")[0] == "[UNK]"
    assert "[UNK]" not in words.tokenize("house !")
    assert "Cyrillic" in (tmp_path / "out/README.md").read_text("utf-8")
    # The obligatory pieces are fewer, so a smaller size is possible.
    smallest = sum(record["reasons"][name] for name in ("special", "characters"))
    assert (
        trim(multilingual_teacher, texts, tmp_path / "s", drop_scripts=True, size=smallest)["pieces"]
        == smallest
    )
    with pytest.raises(RecipeError, match="keeps at least"):
        trim(multilingual_teacher, texts, tmp_path / "no", size=smallest)
    same = trim(multilingual_teacher, texts, tmp_path / "k", drop_scripts=True, keep_scripts=["Cyrillic"])
    assert same["pieces"] == kept["pieces"]
    assert same["scripts"] == {}
    with pytest.raises(RecipeError, match="keep_scripts 'Klingon'"):
        trim(multilingual_teacher, texts, tmp_path / "no", drop_scripts=True, keep_scripts=["Klingon"])
    with pytest.raises(RecipeError, match=r"keep_scripts .*all scripts are kept"):
        trim(multilingual_teacher, texts, tmp_path / "no", keep_scripts=["Greek"])
