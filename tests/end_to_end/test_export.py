"""`polydistill export` as a process: its output under plain onnxruntime, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.end_to_end.test_merge import polydistill

from polydistill.errors import ModelError, RunFolderError, UserError
from polydistill.tools.export import export_model

pytest.importorskip("onnxruntime")

# As on the model card.
USE = """
import json, sys, onnxruntime, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
model, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx")
texts = ["the house of [MASK] and of his brother", "she [MASK] that"]
batch = dict(tokenizer(texts, return_tensors="np", padding=True))
logits = session.run(["logits"], {i.name: batch[i.name] for i in session.get_inputs()})[0]
batch = AutoTokenizer.from_pretrained(model)(texts, return_tensors="pt", padding=True)
own = AutoModelForMaskedLM.from_pretrained(model).eval()(**batch).logits.detach()
attended = batch["attention_mask"].bool()
assert not attended.all()
print(float((own - torch.from_numpy(logits))[attended].abs().max() / own.abs().max()))
"""


@pytest.mark.slow
def test_export_as_a_command(tmp_path, texts, teachers) -> None:
    output, model = tmp_path / "exported", tmp_path / "teacher"
    shutil.copytree(teachers["en"], model)
    (model / "README.md").write_text(
        "---\nlanguage: en\nlicense: cc0-1.0\nother: x\n---\n# A model\n", "utf-8"
    )
    (tmp_path / "secret").write_text("somebody else's", "utf-8")
    (model / "tokenizer" / "xx").mkdir(parents=True)
    (model / "tokenizer" / "xx" / "tokenizer.json").symlink_to(tmp_path / "secret")
    (model / "tokenizer" / "xx" / "own.json").write_text("{}", "utf-8")
    done = polydistill(
        "export",
        str(model),
        "--int8",
        "--text",
        str(texts["en"]),
        "--lines",
        "60",
        "--output",
        str(output),
        "--no-latency",
    )
    assert done.returncode == 0, done.stderr
    for wanted in (
        "onnx/model_int8.onnx",
        "logits: texts x tokens",
        "3 x 17",
        "8 x 64",
        "MRR",
        "60 lines of text",
    ):
        assert wanted in done.stdout, wanted
    record = json.loads((output / "export.json").read_text("utf-8"))
    assert max(row["onnx"]["relative_difference"] for row in record["logits"]) < 1e-5
    assert {row["onnx"]["same_argmax"] for row in record["logits"]} == {1.0}
    mrr = record["mrr"]
    assert len({row["num_masked"] for row in mrr.values()}) == 1
    assert mrr["onnx"]["mrr"] == pytest.approx(mrr["pytorch"]["mrr"], abs=1e-6)
    assert mrr["int8"]["mrr"] == pytest.approx(mrr["pytorch"]["mrr"], abs=0.02)
    assert mrr["int8"]["loss"] != mrr["pytorch"]["loss"]
    assert record["files"]["int8"] < record["files"]["onnx"]
    assert record["int8"]["weight_bits"] == 7
    assert "weights of 7 bits" in done.stdout
    # The output must not hold the paths of the model and the text.
    for path in (path for path in output.rglob("*") if path.is_file()):
        assert str(model).encode() not in path.read_bytes(), path.name
        assert b"somebody else" not in path.read_bytes(), path.name
    assert (output / "tokenizer" / "xx" / "own.json").is_file()
    # The new card repeats what the model's own card states.
    card = (output / "README.md").read_text("utf-8")
    assert record["metadata"] == {"language": "en", "license": "cc0-1.0"}
    assert "as ONNX" in card
    assert "license: cc0-1.0" in card
    # The tokenizer is unchanged: it has no truncation, which comparing texts sets.
    assert json.loads((output / "tokenizer.json").read_text("utf-8"))["truncation"] is None
    used = subprocess.run(
        [sys.executable, "-c", USE, str(teachers["en"]), str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    assert float(used.stdout) < 1e-5


@pytest.mark.slow
def test_latency_as_a_command(tmp_path, teachers) -> None:
    done = polydistill(
        "export",
        str(teachers["en"]),
        "--output",
        str(tmp_path / "out"),
        "--rounds",
        "1",
        "--calls",
        "1",
        "--threads",
        "1",
    )
    assert done.returncode == 0, done.stderr
    assert "threads for all: 1" in done.stdout
    rows = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))["latency"]["rows"]
    shapes = [(1, 64), (1, 64), (32, 64), (32, 64)]
    assert [(row["batch"], row["length"]) for row in rows] == shapes
    assert [row["model"] for row in rows] == ["pytorch", "onnx"] * 2
    assert all(row["seconds"] > 0 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def export(model: Path | str, output: Path, **options) -> dict:
    return export_model(str(model), output, Console(quiet=True), **options)


def test_a_graph_that_differs_leaves_nothing(tmp_path, teachers, monkeypatch) -> None:
    """The export ignores the padding mask: the check must refuse it."""
    from polydistill.models import onnx_export

    def blind(self, input_ids, attention_mask, token_type_ids=None):
        return (self.model(input_ids=input_ids, attention_mask=(attention_mask * 0 + 1)).logits,)

    monkeypatch.setattr(onnx_export._Outputs, "forward", blind)
    with pytest.raises(ModelError, match="at 3 x 17 tokens"):
        export(teachers["en"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_refused_before_any_work(tmp_path, teachers, texts, monkeypatch) -> None:
    monkeypatch.setattr("polydistill.tools.export.export_onnx", lambda *_, **__: pytest.fail("exported"))
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine").write_text("x")
    with pytest.raises(RunFolderError, match="not empty"):
        export(teachers["en"], occupied)
    with pytest.raises(UserError, match=r"nowhere.*no such file"):
        export(teachers["en"], tmp_path / "out", texts=[str(tmp_path / "nowhere.txt")])
    with pytest.raises(UserError, match="lines 0"):
        export(teachers["en"], tmp_path / "out", texts=[str(texts["en"])], lines=0)
    with pytest.raises(ModelError, match="cannot be loaded"):
        export(occupied, tmp_path / "out")
    decoder = tmp_path / "decoder"
    shutil.copytree(teachers["en"], decoder)
    config = json.loads((decoder / "config.json").read_text("utf-8"))
    (decoder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}), "utf-8")
    with pytest.raises(ModelError, match="is a decoder"):
        export(decoder, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime cannot be imported; pip install 'polydistill\[onnx\]'"):
        export(teachers["en"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "occupied"]
