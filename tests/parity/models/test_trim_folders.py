"""Trims of folders that other libraries read: sentence-transformers and GLiNER."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.parity.models.test_trim_kinds import TEXTS, check_bytes, model_folder, trim
from transformers import AutoModel, AutoTokenizer

from polydistill.errors import ModelError
from polydistill.models.gliner import PREFIX, load_gliner
from polydistill.models.sentence_files import write_modules
from polydistill.tools.folders import SentenceFolder
from polydistill.tools.trim import trim_vocabulary

NAMES = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
TABLE = "embeddings.word_embeddings.weight"


def sentence_folder(root: Path, teacher: Path, inside: str = "") -> Path:
    """As sentence-transformers writes it: an encoder, the mean, a linear layer to 8 numbers, length 1."""
    model_folder(root / inside, "encoder", teacher)
    types = [*NAMES, "sentence_transformers.models.Dense", "sentence_transformers.models.Normalize"]
    paths = [inside, "1_Pooling", "2_Dense", "3_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    (root / "modules.json").write_text(json.dumps(modules, indent=1), "utf-8")
    for path in paths[1:]:
        (root / path).mkdir()
    pooling = {
        "word_embedding_dimension": 32,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (root / "1_Pooling/config.json").write_text(json.dumps(pooling), "utf-8")
    dense = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (root / "2_Dense/config.json").write_text(json.dumps(dense), "utf-8")
    torch.manual_seed(5)
    weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    save_file(weights, root / "2_Dense/model.safetensors")
    (root / inside / "sentence_bert_config.json").write_text('{"max_seq_length": 48}', "utf-8")
    (root / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}', "utf-8")
    return root


def vectors(root: Path, inside: str) -> torch.Tensor:
    """What the four modules compute, by hand."""
    words = AutoTokenizer.from_pretrained(root / inside)
    batch = words(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=48)
    with torch.no_grad():
        hidden = (
            AutoModel.from_pretrained(root / inside, dtype=torch.float32).eval()(**batch).last_hidden_state
        )
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    dense = load_file(root / "2_Dense/model.safetensors")
    return torch.nn.functional.normalize(torch.tanh(mean @ dense["linear.weight"].T + dense["linear.bias"]))


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_a_sentence_encoder_keeps_its_modules(tmp_path, teachers, texts, inside) -> None:
    source, target = sentence_folder(tmp_path / "source", teachers["en"], inside), tmp_path / "out"
    (tmp_path / "secret").write_text("somebody else's", "utf-8")
    (source / "2_Dense/link.json").symlink_to(tmp_path / "secret")
    record = trim(source, texts, target)
    assert (record["layout"], record["task"]) == ("sentence-transformers", "encoder without a head")
    copied = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    copied += [str(Path(inside) / "sentence_bert_config.json"), "config_sentence_transformers.json"]
    assert sorted(record["elsewhere"]["names"]) == sorted(copied)
    for name in copied:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name
    assert not (target / "2_Dense/link.json").exists()
    shutil.copy(target / "kept.json", target / inside / "kept.json") if inside else None
    check_bytes(source / inside, target / inside, TABLE)
    torch.testing.assert_close(vectors(target, inside), vectors(source, inside), atol=1e-5, rtol=0)
    card = (target / "README.md").read_text("utf-8")
    assert "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("FOLDER")' in card


def test_sentence_transformers_agrees(tmp_path, teachers, texts) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    source, target = sentence_folder(tmp_path / "source", teachers["en"]), tmp_path / "out"
    trim(source, texts, target)
    old, new = (
        library.SentenceTransformer(str(place), device="cpu").encode(TEXTS) for place in (source, target)
    )
    assert old.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(new, old, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(new), vectors(target, ""), atol=1e-5, rtol=0)


def test_a_copied_file_that_changes_is_refused(tmp_path, teachers, texts, monkeypatch) -> None:
    source = sentence_folder(tmp_path / "source", teachers["en"])

    def damaging(old, new):
        Path(new).write_bytes(Path(old).read_bytes() + b" ")

    monkeypatch.setattr("polydistill.tools.folders.shutil.copyfile", damaging)
    with pytest.raises(
        ModelError, match=r"6 of its other parts are not what they were, .*nothing was written"
    ):
        trim(source, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        (
            [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}],
            "first module is StaticEmbedding",
        ),
        ([], "first module is missing"),
        ([{"path": "", "type": NAMES[0]}, {"path": "../x", "type": NAMES[1]}], "not a folder within"),
        ([{"path": "", "type": NAMES[0]}, {"path": "/etc", "type": NAMES[1]}], "not a folder within"),
    ],
)
def test_modules_that_cannot_be_trimmed(tmp_path, teachers, texts, modules, wanted) -> None:
    source = sentence_folder(tmp_path / "source", teachers["en"])
    (source / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(ModelError, match=wanted):
        trim(source, texts, tmp_path / "out")


def test_a_sparse_encoder_is_refused(tmp_path, teachers) -> None:
    """Its vectors have an entry a piece."""
    source = sentence_folder(tmp_path / "source", teachers["en"])
    (source / "sentence_bert_config.json").write_text('{"transformer_task": "fill-mask"}', "utf-8")
    with pytest.raises(ModelError, match="computes with its pieces as outputs"):
        SentenceFolder(str(source))


def test_a_repository_of_the_hub_is_trimmed_with_its_modules(tmp_path, teachers, texts) -> None:
    """From the hub's cache, as `snapshot_download` fills it: the files of a snapshot are links."""
    source = sentence_folder(tmp_path / "source", teachers["en"])
    place, commit = tmp_path / "hub/models--me--sentences", "0" * 40
    for path in [path for path in source.rglob("*") if path.is_file()]:
        blob, link = place / "blobs" / path.name, place / "snapshots" / commit / path.relative_to(source)
        blob = blob.with_name(f"{path.parent.name}-{path.name}")
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit, "utf-8")
    command = [sys.executable, "-m", "polydistill.cli", "vocab", "trim", "me/sentences"]
    command += ["--text", f"en={texts['en']}", "--output", str(tmp_path / "out"), "--verify-lines", "20"]
    done = subprocess.run(
        command,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sentence-transformers folder: 400 pieces" in done.stdout
    torch.testing.assert_close(vectors(tmp_path / "out", ""), vectors(source, ""), atol=1e-5, rtol=0)
    assert "base_model:\n- me/sentences" in (tmp_path / "out/README.md").read_text("utf-8")


def test_modules_of_ours_are_those_of_sentence_transformers(tmp_path) -> None:
    write_modules(tmp_path, width=32, max_length=64)
    modules = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    assert [(module["type"], module["path"]) for module in modules] == [
        (NAMES[0], ""),
        (NAMES[1], "1_Pooling"),
    ]
    pooling = json.loads((tmp_path / "1_Pooling/config.json").read_text("utf-8"))
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text("utf-8"))
    assert settings == {"max_seq_length": 64, "do_lower_case": False}


def gliner_folder(root: Path, teacher: Path, **changes: object) -> Path:
    """As GLiNER 0.2 writes it: its own tokens at the vocabulary's end, an encoder inside, other layers."""
    words = AutoTokenizer.from_pretrained(teacher)
    words.add_tokens(["<<ENT>>", "<<SEP>>"], special_tokens=True)
    model_folder(root / "encoder", "encoder", teacher)
    encoder = AutoModel.from_pretrained(root / "encoder")
    encoder.resize_token_embeddings(len(words))
    shutil.rmtree(root / "encoder")
    torch.manual_seed(1)
    state = {PREFIX + name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    state |= {"rnn.lstm.weight_ih_l0": torch.randn(64, 32), "prompt_rep_layer.0.bias": torch.randn(32)}
    save_file(state, root / "model.safetensors")
    config = {
        "model_name": "somewhere/else",
        "class_token_index": len(words) - 2,
        "rel_token_index": -1,
        "vocab_size": len(words),
        "ent_token": "<<ENT>>",
        "labels_encoder": None,
        "encoder_config": encoder.config.to_dict(),
    }
    (root / "gliner_config.json").write_text(json.dumps(config | changes), "utf-8")
    words.save_pretrained(root)
    return root


def test_gliner_keeps_all_but_the_embedding(tmp_path, teachers, texts) -> None:
    source, target = gliner_folder(tmp_path / "source", teachers["en"]), tmp_path / "out"
    record = trim(source, texts, target, size=300)
    assert (record["layout"], record["pieces"], record["elsewhere"]) == ("GLiNER", 300, {"weights": 2})
    check_bytes(source, target, PREFIX + TABLE)
    old, new = (json.loads((place / "gliner_config.json").read_text("utf-8")) for place in (source, target))
    kept = json.loads((target / "kept.json").read_text("utf-8"))
    assert kept[new["class_token_index"]] == old["class_token_index"]
    words = AutoTokenizer.from_pretrained(target)
    assert words.convert_ids_to_tokens(new["class_token_index"]) == "<<ENT>>"
    assert new["vocab_size"] == new["encoder_config"]["vocab_size"] == len(words) == 300
    assert new["encoder_config"]["pad_token_id"] == words.pad_token_id
    changed = {"class_token_index", "vocab_size", "encoder_config"}
    assert {name for name in old if old[name] != new[name]} == changed
    assert new["rel_token_index"] == -1
    # The encoder computes the same from the file that was written.
    one, other = (load_gliner(place).encoder for place in (source, target))
    lines = [
        line for line in TEXTS if set(AutoTokenizer.from_pretrained(source)(line)["input_ids"]) <= set(kept)
    ]
    for line in lines[:5]:
        with torch.no_grad():
            expected = one(**AutoTokenizer.from_pretrained(source)(line, return_tensors="pt"))
            made = other(**words(line, return_tensors="pt"))
        torch.testing.assert_close(made.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    assert 'GLiNER.from_pretrained("FOLDER")' in (target / "README.md").read_text("utf-8")


def test_a_pickle_of_gliner_needs_consent_and_comes_out_as_safetensors(tmp_path, teachers, texts) -> None:
    source = gliner_folder(tmp_path / "source", teachers["en"])
    state = load_file(source / "model.safetensors")
    torch.save(state, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"exist only as a pickle .*--allow-pickle"):
        trim(source, texts, tmp_path / "out")
    trim(source, texts, tmp_path / "out", allow_pickle=True)
    written = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(written["rnn.lstm.weight_ih_l0"], state["rnn.lstm.weight_ih_l0"])
    assert not (tmp_path / "out/pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"labels_encoder": "other/model"}, "labels_encoder 'other/model': is a second encoder"),
        ({"encoder_config": None}, "encoder_config: gliner_config.json does not describe the encoder"),
        ({"class_token_index": 10_000}, "class_token_index 10000: is the id of a piece that is not kept"),
    ],
)
def test_a_gliner_that_cannot_be_trimmed(tmp_path, teachers, texts, change, wanted) -> None:
    source = gliner_folder(tmp_path / "source", teachers["en"], **change)
    with pytest.raises(ModelError, match=wanted):
        trim(source, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_weight_of_gliner_that_changes_is_refused(tmp_path, teachers, texts, monkeypatch) -> None:
    source = gliner_folder(tmp_path / "source", teachers["en"])

    def damaging(state, path, **options):
        save_file(
            state | {"prompt_rep_layer.0.bias": state["prompt_rep_layer.0.bias"] + 1e-6}, path, **options
        )

    monkeypatch.setattr("polydistill.models.gliner.save_file", damaging)
    with pytest.raises(ModelError, match=r"such as prompt_rep_layer.0.bias; .*nothing was written"):
        trim(source, texts, tmp_path / "out")


def test_gliner_agrees(tmp_path, teachers, texts) -> None:
    """A model that GLiNER itself makes and reads: the same entities with the same scores."""
    gliner = pytest.importorskip("gliner", reason="gliner is not installed")
    words = AutoTokenizer.from_pretrained(teachers["en"])
    encoder = AutoModel.from_pretrained(model_folder(tmp_path / "encoder", "encoder", teachers["en"])).config
    config = gliner.GLiNERConfig(
        model_name=str(tmp_path / "encoder"),
        encoder_config=encoder.to_dict() | {"vocab_size": len(words)},
        hidden_size=32,
        max_len=48,
        max_width=4,
        span_mode="markerV0",
    )
    gliner.GLiNER.from_config(config).save_pretrained(tmp_path / "source", safe_serialization=True)
    trim_vocabulary(
        str(tmp_path / "source"),
        {"en": [str(texts["en"])]},
        tmp_path / "out",
        Console(quiet=True),
        verify_lines=20,
        size=300,
    )
    kept = set(json.loads((tmp_path / "out/kept.json").read_text("utf-8")))
    lines = [line for line in TEXTS if set(words(line)["input_ids"]) <= kept][:5]
    found = [
        gliner.GLiNER.from_pretrained(str(place)).batch_predict_entities(lines, ["he", "it"], threshold=0.0)
        for place in (tmp_path / "source", tmp_path / "out")
    ]
    assert any(found[0])
    for one, other in zip(*found, strict=True):
        assert [(e["text"], e["label"]) for e in one] == [(e["text"], e["label"]) for e in other]
        assert [e["score"] for e in one] == pytest.approx([e["score"] for e in other], abs=1e-5)
