"""Sentence encoders beside a plain computation of each module, and sentence-transformers itself."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.models.test_trim_folders import sentence_folder, vectors
from tests.parity.models.test_trim_kinds import TEXTS, model_folder
from transformers import AutoModel, AutoTokenizer

from polydistill.errors import ModelError
from polydistill.models.sentence_files import read_sentence_files
from polydistill.models.sentences import (
    Dense,
    Normalise,
    SentenceEncoder,
    encode_ids,
    load_sentence_encoder,
    pool,
    sentence_ids,
)
from polydistill.tokenization.load import load_tokenizer


def ours(folder, *, max_length=48, texts=TEXTS, pooling=None):
    files = read_sentence_files(str(folder), pooling=pooling)
    tokenizer = load_tokenizer(files.encoder, roles=("pad",))
    ids = sentence_ids(
        tokenizer, texts, max_length=max_length, prompt=files.prompt, lowercase=files.lowercase
    )
    model = load_sentence_encoder(files, max_length=max_length)
    pad = tokenizer.special_ids["pad"]
    return torch.from_numpy(encode_ids(model, ids, pad, batch_tokens=64, dtype=torch.float32))


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_the_modules_of_a_folder_compute_what_a_plain_program_does(tmp_path, teachers, inside) -> None:
    folder = sentence_folder(tmp_path / "source", teachers["en"], inside)
    made = ours(folder)
    torch.testing.assert_close(made, vectors(folder, inside), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(len(TEXTS)))


def test_sentence_transformers_agrees(tmp_path, teachers) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = sentence_folder(tmp_path / "source", teachers["en"])
    theirs = torch.from_numpy(library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS))
    torch.testing.assert_close(ours(folder), theirs, atol=1e-5, rtol=0)


def test_poolings_leave_padding_out() -> None:
    hidden = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, -3.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, -4.0]]
    assert pool(hidden, mask, "max").tolist() == [[3.0, -2.0]]


def test_a_written_folder_is_read_by_a_plain_program(tmp_path, teachers) -> None:
    model_folder(tmp_path / "encoder", "encoder", teachers["en"])
    encoder = AutoModel.from_pretrained(tmp_path / "encoder", dtype=torch.float32)
    torch.manual_seed(3)
    student = SentenceEncoder(encoder.eval(), "cls", [Dense(32, 5), Normalise()], max_length=24)
    folder = tmp_path / "out"
    folder.mkdir()
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teachers["en"]).save_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    assert [(each["path"], each["type"].rpartition(".")[2]) for each in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    ]
    pooling = json.loads((folder / "1_Pooling/config.json").read_text("utf-8"))
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_cls_token"]
    assert json.loads((folder / "2_Dense/config.json").read_text("utf-8")) == {
        "in_features": 32,
        "out_features": 5,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    length = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"]
    batch = AutoTokenizer.from_pretrained(folder)(
        TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=length
    )
    with torch.no_grad():
        first = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state[:, 0]
    dense = load_file(folder / "2_Dense/model.safetensors")
    plain = torch.nn.functional.normalize(first @ dense["linear.weight"].T + dense["linear.bias"])
    torch.testing.assert_close(ours(folder, max_length=length), plain, atol=1e-5, rtol=0)
    assert read_sentence_files(str(folder)).max_length == 24


def test_a_prompt_and_lower_case_are_read_from_the_folder(tmp_path, teachers) -> None:
    folder = sentence_folder(tmp_path / "source", teachers["en"])
    settings = {"prompts": {"query": "the house "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings), "utf-8")
    plain = sentence_folder(tmp_path / "plain", teachers["en"])
    torch.testing.assert_close(
        ours(folder), ours(plain, texts=[f"the house {text}" for text in TEXTS]), atol=1e-5, rtol=0
    )
    files = read_sentence_files(str(folder))
    assert (files.prompt, files.lowercase) == ("the house ", False)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}', "utf-8")
    lowering = read_sentence_files(str(folder))
    assert lowering.lowercase
    assert lowering.max_length is None
    assert len({files.identity(), lowering.identity(), read_sentence_files(str(plain)).identity()}) == 3
    tokenizer = load_tokenizer(str(folder), roles=("pad",))
    lowered = sentence_ids(tokenizer, ["The HOUSE"], max_length=9, lowercase=True)[0]
    assert lowered.tolist() == sentence_ids(tokenizer, ["the house"], max_length=9)[0].tolist()


def change(folder, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def test_what_is_not_known_is_refused(tmp_path, teachers) -> None:
    folder = sentence_folder(tmp_path / "source", teachers["en"])
    with pytest.raises(ModelError, match=r"teacher\.pooling.*pools by mean"):
        read_sentence_files(str(folder), pooling="cls", field="teacher")
    change(folder, "2_Dense/config.json", activation_function="torch.nn.modules.activation.Softplus")
    with pytest.raises(ModelError, match="activation"):
        read_sentence_files(str(folder))
    change(folder, "1_Pooling/config.json", pooling_mode_cls_token=True)
    with pytest.raises(ModelError, match="pools by mean, cls"):
        read_sentence_files(str(folder))
    change(folder, "1_Pooling/config.json", pooling_mode_cls_token=False, include_prompt=False)
    with pytest.raises(ModelError, match="its prompt"):
        read_sentence_files(str(folder))
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules[2]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(ModelError, match="not within its folder"):
        read_sentence_files(str(folder))
    (folder / "modules.json").write_text(json.dumps(modules[:1]), "utf-8")
    with pytest.raises(ModelError, match="not Transformer and Pooling"):
        read_sentence_files(str(folder))


def test_a_plain_encoder_pools_as_it_is_told(tmp_path, teachers) -> None:
    mean, first = (ours(teachers["en"], pooling=pooling) for pooling in (None, "cls"))
    batch = AutoTokenizer.from_pretrained(teachers["en"])(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(teachers["en"]).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    torch.testing.assert_close(mean, (hidden * mask).sum(1) / mask.sum(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(first, hidden[:, 0], atol=1e-5, rtol=0)
