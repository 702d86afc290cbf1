"""Exports of encoders and classifiers: what onnxruntime computes, and the files that other libraries want."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.parity.models.test_trim_folders import gliner_folder, sentence_folder
from tests.parity.models.test_trim_kinds import HEADS, TEXTS, model_folder
from transformers import AutoModel, AutoTokenizer

from polydistill.errors import ModelError
from polydistill.models.kinds import load_kind
from polydistill.models.onnx_export import Inputs, export_onnx
from polydistill.models.onnx_int8 import quantise_onnx
from polydistill.models.onnx_runtime import OnnxModel
from polydistill.tools.export import export_model
from polydistill.tools.export_checks import prove_int8, prove_logits
from polydistill.tools.export_layout import FILES, write_browser_settings

onnxruntime = pytest.importorskip("onnxruntime")


def batch_of(folder: Path) -> dict[str, torch.Tensor]:
    words = AutoTokenizer.from_pretrained(folder)
    batch = words(TEXTS[:4], return_tensors="pt", padding=True, truncation=True)
    assert not batch["attention_mask"].bool().all()
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(
    "head",
    [
        "sequences",
        *(pytest.param(head, marks=pytest.mark.slow) for head in ("encoder", "tokens", "questions")),
    ],
)
def test_a_graph_of_any_kind(tmp_path, teachers, head) -> None:
    """Against transformers' own output, by its names, under plain onnxruntime; and the int8 graph's."""
    folder = model_folder(tmp_path / "source", head, teachers["en"])
    model, kind, _ = load_kind(str(folder))
    wanted = [name for name in HEADS[head][1] if name != "pooler_output"]
    export_onnx(model, tmp_path / "model.onnx", token_types=False, outputs=kind.exported)
    quantise_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx", rows=model.config.vocab_size)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == wanted
    batch = batch_of(folder)
    attended = batch["attention_mask"].bool()
    with torch.no_grad():
        own = HEADS[head][0].from_pretrained(folder, dtype=torch.float32).eval()(**batch)
    for name, values in zip(wanted, session.run(None, {k: v.numpy() for k, v in batch.items()}), strict=True):
        expected, made = own[name], torch.from_numpy(values)
        if not kind.pooled:
            expected, made = expected[attended], made[attended]
        torch.testing.assert_close(made, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    graphs = {"onnx": OnnxModel(tmp_path / "model.onnx"), "int8": OnnxModel(tmp_path / "int8.onnx")}
    inputs = [Inputs(batch["input_ids"], batch["attention_mask"], None)]
    rows = prove_logits(model, "x", graphs, inputs, kind)
    assert rows[0]["onnx"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert 0.9 < prove_int8("x", rows, None, bits=7)["cosine"] < 1 - 1e-9
    # Another model's outputs are refused: a change of one bias of the last layer.
    with torch.no_grad():
        list(model.parameters())[-1].add_(3e-3 * float(own[wanted[0]].abs().max()))
    if head != "encoder":  # whose last parameter is the pooler's, which the graph lacks
        with pytest.raises(ModelError, match=rf"{' and '.join(wanted)} differ by"):
            prove_logits(model, "x", graphs, inputs, kind)


def test_outputs_that_int8_changed_are_refused() -> None:
    """Cosines weigh by texts: (1 x 0.9 + 3 x 0.84) / 4 is below 0.9, (3 x 0.95 + 0.8) / 4 above."""
    rows = [
        {"batch": 1, "attended": 5, "int8": {"cosine": 0.9}},
        {"batch": 3, "attended": 9, "int8": {"cosine": 0.84}},
    ]
    with pytest.raises(ModelError, match=r"mean cosine of 0\.855 .* on 4 texts \(at least: 0\.9\)"):
        prove_int8("x", rows, None, bits=7)
    rows = [
        {"batch": 3, "attended": 5, "int8": {"cosine": 0.95}},
        {"batch": 1, "attended": 9, "int8": {"cosine": 0.8}},
    ]
    assert prove_int8("x", rows, None, bits=7)["cosine"] == pytest.approx(0.9125)
    with pytest.raises(ModelError, match="mean cosine of nan"):
        prove_int8("x", [{"batch": 1, "attended": 1, "int8": {"cosine": float("nan")}}], None, bits=7)


def test_what_a_browser_is_told(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    (tmp_path / "onnx").mkdir()
    for int8, dtype in ((True, "int8"), (False, "fp32")):
        write_browser_settings(tmp_path, int8=int8)
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        assert config == {
            "model_type": "bert",
            "transformers.js_config": {"device_config": {"wasm": {"dtype": dtype}}},
        }
    # transformers.js's own rule: the name of the graph, and `_data`.
    (tmp_path / "onnx/model.onnx_data").touch()
    write_browser_settings(tmp_path, int8=True)
    settings = json.loads((tmp_path / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert settings["use_external_data_format"] == {"model.onnx": 1}
    assert FILES == {"onnx": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}


@pytest.mark.slow
def test_a_masked_lm_becomes_a_sentence_encoder(tmp_path, teachers) -> None:
    output = tmp_path / "out"
    record = export_model(
        str(teachers["en"]), output, Console(quiet=True), sentence_transformers=True, int8=True
    )
    assert (record["task"], record["outputs"]) == ("encoder without a head", ["last_hidden_state"])
    assert record["mrr"] is None
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert names == {
        *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "model.safetensors"),
        *("config_sentence_transformers.json", "config.json", "tokenizer.json", "tokenizer_config.json"),
        *("onnx/model.onnx", "onnx/model_int8.onnx", "README.md", "export.json", "stamp.json"),
    }
    card = (output / "README.md").read_text("utf-8")
    assert 'SentenceTransformer("FOLDER")' in card
    assert "library_name: sentence-transformers" in card
    batch = batch_of(output)
    session = onnxruntime.InferenceSession(str(output / "onnx/model.onnx"))
    (made,) = session.run(["last_hidden_state"], {k: v.numpy() for k, v in batch.items()})
    with torch.no_grad():
        own = AutoModel.from_pretrained(output).eval()(**batch).last_hidden_state
        teacher = AutoModel.from_pretrained(teachers["en"]).eval()(**batch).last_hidden_state
    attended = batch["attention_mask"].bool()
    np.testing.assert_allclose(made[attended], own[attended], atol=1e-5)
    assert torch.equal(own, teacher)
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    mask = batch["attention_mask"][..., None]
    mean = (own * mask).sum(1) / mask.sum(1)
    encoded = library.SentenceTransformer(str(output), device="cpu").encode(TEXTS[:4])
    np.testing.assert_allclose(encoded, mean.numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_sentence_folder_stays_one(tmp_path, teachers) -> None:
    source, output = sentence_folder(tmp_path / "source", teachers["en"]), tmp_path / "out"
    export_model(str(source), output, Console(quiet=True))
    for name in (
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "sentence_bert_config.json",
    ):
        assert (output / name).read_bytes() == (source / name).read_bytes(), name
    assert (output / "onnx/model.onnx").is_file()


def test_folders_that_are_not_exported(tmp_path, teachers) -> None:
    with pytest.raises(ModelError, match="is a GLiNER model"):
        export_model(
            str(gliner_folder(tmp_path / "g", teachers["en"])), tmp_path / "out", Console(quiet=True)
        )
    inside = sentence_folder(tmp_path / "s", teachers["en"], "0_Transformer")
    with pytest.raises(ModelError, match="keeps its encoder in 0_Transformer"):
        export_model(str(inside), tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()
