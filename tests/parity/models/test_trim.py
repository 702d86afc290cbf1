"""Trimmed models against the originals: logits of kept pieces, on every architecture, from the written
folder.
"""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.conftest import bundled_lines
from tests.parity.tokenization.test_tokenizers import bert, published, real_lines, sentencepiece_like
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from polydistill.errors import ModelError, TokenizerError, UserError
from polydistill.models.load import load_masked_lm
from polydistill.models.trim import logits_difference, trim_model
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.selection import document_frequency, select
from polydistill.tokenization.trim import compare_trimmed, trim_tokenizer
from polydistill.tokenization.wordpiece import save_tokenizer, special_strings
from polydistill.tools.trim import trim_vocabulary

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
ARCHITECTURES = {
    "bert": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "deberta-v2": {},
    "mpnet": {},
}
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}


def random_model(model_type: str, **fields: object):
    """Small, with every weight moved from its initial value: fresh biases are zero, fresh norms one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SMALL | ARCHITECTURES[model_type] | IDS | fields))
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def logits(model, rows: list[list[int]]) -> torch.Tensor:
    """[B, L, V], rows padded to the longest with the model's own padding id."""
    longest = max(map(len, rows))
    pad = model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_logits_of_kept_pieces_stay(tmp_path, model_type, tied) -> None:
    model = random_model(model_type, vocab_size=90, tie_word_embeddings=tied)
    kept = np.array([0, 1, 2, 3, 4, 7, 11, 12, 40, 63, 88])
    rows = [[0, 7, 63, 4, 88, 2], [0, 11, 2], [0, 40, 12, 88, 7, 7, 4, 2]]
    trim_model(model, kept).save_pretrained(tmp_path)
    trimmed = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    mapped = [[kept.tolist().index(index) for index in row] for row in rows]
    old, new = logits(model, rows)[..., kept], logits(trimmed, mapped)
    for row, ids in enumerate(rows):
        torch.testing.assert_close(new[row, : len(ids)], old[row, : len(ids)], atol=1e-5, rtol=0)
    assert trimmed.config.vocab_size == len(kept)
    assert trimmed.config.pad_token_id == 1
    shared = trimmed.get_output_embeddings().weight is trimmed.get_input_embeddings().weight
    assert shared == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    for name, tensor in trimmed.state_dict().items():
        assert 90 not in tensor.shape, name
    assert logits_difference(model, trimmed, kept, [np.array(row) for row in rows])[0] <= 1e-5
    wrong = trim_model(
        model,
        kept[::-1].copy()
        if model_type not in ("roberta", "xlm-roberta", "mpnet")
        else np.array([0, 1, 2, 4, 3, *kept[5:]]),
    )
    assert logits_difference(model, wrong, kept, [np.array(row) for row in rows])[0] > 0.1


def test_dtype_special_ids_and_spare_rows() -> None:
    model = random_model("bert", vocab_size=96).half()
    model.config.eos_token_id, model.config.bos_token_id = [2, 50, 3], 50
    trimmed = trim_model(model, np.array([1, 3, 7]))
    assert trimmed.dtype == torch.float16
    assert (trimmed.config.pad_token_id, trimmed.config.eos_token_id, trimmed.config.bos_token_id) == (
        0,
        [1],
        None,
    )
    assert (model.config.pad_token_id, model.config.vocab_size) == (1, 96)
    old = model.get_input_embeddings().weight
    assert torch.equal(trimmed.get_input_embeddings().weight, old[[1, 3, 7]])


def test_what_cannot_be_trimmed() -> None:
    with pytest.raises(ModelError, match="it has 90 rows, too few"):
        trim_model(random_model("bert", vocab_size=90), np.array([1, 90]))
    with pytest.raises(
        ModelError, match="counts positions from its padding id, which would move from 1 to 0"
    ):
        trim_model(random_model("roberta", vocab_size=90), np.array([1, 2, 3]))


def folder_of(
    kind: str, model_type: str, folder: Path, *, spare: int = 0, **fields: object
) -> LoadedTokenizer:
    """A model on disk with a tokenizer of a kind, trained on bundled text."""
    lines = bundled_lines("en", 500) + bundled_lines("ru", 500)
    tokenizer = sentencepiece_like(lines, kind)
    ids = {f"{role}_token_id": tokenizer.special_ids[role] for role in ("pad", "cls", "sep")}
    random_model(model_type, vocab_size=tokenizer.size + spare, **(ids | fields)).save_pretrained(folder)
    names = {"model_input_names": ["input_ids", "attention_mask"], "bos_token": "<s>", "padding_side": "left"}
    save_tokenizer(
        tokenizer.backend, folder, specials=special_strings(tokenizer), max_length=38, settings=names
    )
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "model_type", "spare"),
    [("unigram", "xlm-roberta", 0), ("byte_level", "roberta", 7), ("byte_level", "modernbert", 0)],
)
def test_a_folder_is_trimmed_whole(tmp_path, texts, kind, model_type, spare) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    tokenizer = folder_of(kind, model_type, source, spare=spare)
    record = trim_vocabulary(
        str(source), {"en": [str(texts["en"])]}, target, Console(quiet=True), verify_lines=40
    )
    assert record["pieces"] < tokenizer.size <= record["original_rows"] == tokenizer.size + spare
    kept = json.loads((target / "kept.json").read_text())
    assert len(kept) == record["pieces"] == sum(record["reasons"].values())
    counts = record["languages"]["en"]
    assert counts["identical_texts"] == counts["kept_texts"] + counts["shortened_texts"] > 0
    assert counts["num_texts"] == 40
    assert record["logits"]["max_difference"] <= 1e-5 * max(1, record["logits"]["max_logit"])
    assert (
        record["weight_bytes"]
        == (target / "model.safetensors").stat().st_size
        < record["original_weight_bytes"]
    )
    old_words, new_words = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    old, new = (
        load_masked_lm(str(source)),
        AutoModelForMaskedLM.from_pretrained(target, dtype=torch.float32).eval(),
    )
    assert len(new_words) == new.config.vocab_size == len(kept)
    assert (new_words.padding_side, new_words.model_max_length, new_words.bos_token) == ("left", 38, "<s>")
    assert new_words.model_input_names == old_words.model_input_names
    compared = 0
    for line in bundled_lines("en", 60):
        ids = old_words(line, truncation=True)["input_ids"]
        if set(ids) <= set(kept):
            compared += 1
            assert [kept[index] for index in new_words(line, truncation=True)["input_ids"]] == ids
            ours = logits(new, [[kept.index(index) for index in ids]])
            torch.testing.assert_close(ours, logits(old, [ids])[..., kept], atol=1e-5, rtol=0)
    assert compared > 30


def test_a_trim_that_fails_its_proof_leaves_nothing(tmp_path, texts, teachers, monkeypatch) -> None:
    import polydistill.tools.trim as recipe

    def trim() -> None:
        trim_vocabulary(
            str(teachers["en"]),
            {"en": [str(texts["en"])]},
            tmp_path / "out",
            Console(quiet=True),
            verify_lines=20,
        )

    right = recipe.trim_model
    monkeypatch.setattr(recipe, "trim_model", lambda model, kept: right(model, np.roll(kept, 1)))
    with pytest.raises(ModelError, match=r"4 of its weights are not what they were.* nothing was written"):
        trim()
    monkeypatch.setattr(recipe, "prove_weights", lambda *_: {})
    with pytest.raises(ModelError, match=r"logits differ by .* nothing was written"):
        trim()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(recipe, "trim_model", right)

    def other(tokenizer, selection):
        made = trim_tokenizer(tokenizer, selection)
        spec = json.loads(made.backend.to_str())
        spec["normalizer"] = (
            {"type": "Lowercase"} if not tokenizer.lowercases else {"type": "Prepend", "prepend": "x"}
        )
        return LoadedTokenizer(
            made.name, Tokenizer.from_str(json.dumps(spec)), made.special_ids, made.max_length
        )

    monkeypatch.setattr(recipe, "trim_tokenizer", other)
    with pytest.raises(
        TokenizerError, match=r"get other pieces from the trimmed tokenizer.*nothing was written"
    ):
        trim()
    assert list(tmp_path.iterdir()) == []


def check_published(tokenizer: LoadedTokenizer, lines: list[str]) -> None:
    known, apart = lines[::2], [line for line in lines[1::2] if line not in set(lines[::2])]
    selection = select(tokenizer, {"x": document_frequency(tokenizer.backend, known, tokenizer.size)})
    trimmed = trim_tokenizer(tokenizer, selection).backend
    mapping = selection.mapping(tokenizer.size)
    for line in known:
        assert trimmed.encode(line).ids == mapping[tokenizer.backend.encode(line).ids].tolist()
    measured, _, differing = compare_trimmed(tokenizer, trimmed, selection, apart)
    assert differing == []
    assert measured.holds
    assert measured.trimmed_unknown_characters <= measured.unknown_characters
    assert len(selection.kept) < tokenizer.size


@pytest.mark.parametrize(
    ("name", "lowercase", "language"),
    [
        ("mbert-cased", False, "tr"),
        ("labse-cased-501k", False, "sw"),
        ("koelectra-ko", False, "ko"),
        ("distilbert-jp", False, "zh"),
    ],
)
def test_published_wordpieces(shared, name, lowercase, language) -> None:
    check_published(bert(published(shared, name), lowercase=lowercase), real_lines(shared, language, 400))


def test_a_published_unigram(shared) -> None:
    packed = shared / "vocabularies" / "multilingual-e5-small.tokenizer.json.xz"
    with lzma.open(packed, "rt", encoding="utf-8") as handle:
        backend = Tokenizer.from_str(handle.read())
    roles = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    e5 = LoadedTokenizer("e5", backend, {r: backend.token_to_id(s) for r, s in roles.items()}, 512)
    check_published(e5, real_lines(shared, "tr", 400))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"texts": {}}, "text: no text is given"),
        ({"texts": {"en": ["nowhere.txt"]}}, r"text\.en\[0\] 'nowhere.txt': no such file"),
        ({"size": 9}, r"size 9: .*at least"),
        ({"min_document_share": 1.5}, r"min_document_share 1\.5"),
        ({"verify_lines": 0}, "verify_lines 0"),
        ({"model": "nowhere/nothing"}, "model 'nowhere/nothing'"),
        ({"output": "full"}, "output .*exists and is not empty"),
        ({"output": "full/file"}, "output .*exists and is not empty"),
        ({"texts": {"en": ["full/file"]}}, r"text\.en .*: 0 lines to select on and 0 to prove it on"),
        ({"texts": {"en": ["full/short"]}}, r"text\.en .*too few"),
    ],
)
def test_bad_input(tmp_path, texts, teachers, monkeypatch, change, wanted) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").touch()
    Path("full/short").write_text("one line\n")
    values = {"model": str(teachers["en"]), "texts": {"en": [str(texts["en"])]}, "output": "out"} | change
    with pytest.raises(UserError, match=wanted) as caught:
        trim_vocabulary(
            values.pop("model"),
            values.pop("texts"),
            Path(values.pop("output")),
            Console(quiet=True),
            **values,
        )
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_model_that_is_not_what_it_says(tmp_path, texts, teachers) -> None:
    """Without `architectures` it is taken for a masked language model, as it always was."""
    from transformers import AutoModel

    AutoModel.from_pretrained(teachers["en"]).save_pretrained(tmp_path / "body")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "body" / file).write_bytes((teachers["en"] / file).read_bytes())
    config = json.loads((tmp_path / "body/config.json").read_text("utf-8"))
    del config["architectures"]
    (tmp_path / "body/config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="lacks weights that a masked language model needs"):
        trim_vocabulary(
            str(tmp_path / "body"), {"en": [str(texts["en"])]}, tmp_path / "out", Console(quiet=True)
        )
    assert not (tmp_path / "out").exists()
