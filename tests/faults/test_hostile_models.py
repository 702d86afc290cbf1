"""Damaged or malicious models and tokenizers: refused with a message before anything large is built, and none
of their code runs. And limits of a process, which are no bugs of ours.
"""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from polydistill import cli
from polydistill.config.load import parse_recipe
from polydistill.errors import DiskError, MemoryLimitError, ModelError, TokenizerError, UserError
from polydistill.limits import explained, is_out_of_memory, is_panic
from polydistill.models.load import load_masked_lm, model_config, weights_fingerprint
from polydistill.models.student import build_student, student_config
from polydistill.pipelines.merge import pipeline as merge
from polydistill.pipelines.run import run_recipe
from polydistill.tasks.heads import load_with_head
from polydistill.tokenization.load import load_tokenizer

DEEP = "[" * 100_000


@pytest.fixture
def model(teachers, tmp_path) -> Path:
    """A model's folder to damage: two layers, 400 pieces."""
    shutil.copytree(teachers["ru"], tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def with_head(model: Path) -> None:
    load_with_head(str(model), "ner", num_labels=3, seed=0)


def as_teacher(model: Path) -> None:
    load_masked_lm(str(model), name="ko")


@pytest.mark.parametrize("load", [with_head, as_teacher])
def test_a_configuration_of_fewer_layers_than_the_file_is_refused(model, load) -> None:
    """transformers loads such a truncated model with no more than a warning."""
    change(model / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"holds layers that its configuration lacks \(bert.encoder.layer.1"):
        load(model)


@pytest.mark.parametrize("load", [with_head, as_teacher])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", -1),
        ("max_position_embeddings", 10**12),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 0),
        ("num_attention_heads", -2),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_it_is_built(
    model, load, name, number, monkeypatch
) -> None:
    change(model / "config.json", **{name: number})
    layers: list[int] = []
    original = torch.nn.Linear.__init__

    def counted(self, *args, **kwargs) -> None:
        layers.append(1)
        original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Linear, "__init__", counted)
    with pytest.raises(ModelError, match=name if number != 3 else "lacks weights"):
        load(model)
    assert len(layers) < 100


@pytest.mark.parametrize("model_type", ["bert", "albert", "distilbert", "modernbert"])
def test_a_student_of_a_million_layers_is_refused(model_type) -> None:
    name = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
    ids = {role: index for index, role in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    config = student_config(model_type, {name: 10**6}, vocabulary_size=50, special_ids=ids, max_length=16)
    with pytest.raises(ModelError, match=f"student.config: its configuration has {name} 1000000"):
        build_student(config, seed=0, device="meta")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        DEEP,
        "{",
        '{"weight_map": {"a": "../../x"}}',
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_of_another_shape_is_named(model, text, name) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_text(text, "utf-8")
    for look in (
        lambda: weights_fingerprint(str(model)),
        lambda: load_masked_lm(str(model), allow_pickle=True),
    ):
        with pytest.raises(ModelError, match=rf"{name}.*is not an index of weights"):
            look()


@pytest.mark.parametrize("load", [with_head, as_teacher])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_of_whole_numbers_are_refused(model, load, dtype) -> None:
    weights = load_file(model / "model.safetensors")
    key = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(
        weights | {key: (weights[key] * 100).to(dtype)},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=rf"its weight {key} has an integer type"):
        load(model)
    # Files of earlier transformers versions count positions.
    positions = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    save_file(weights | positions, model / "model.safetensors", metadata={"format": "pt"})
    load(model)


def test_a_pickle_of_whole_numbers_is_refused(model) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weights["bert.embeddings.word_embeddings.weight"] = weights["bert.embeddings.word_embeddings.weight"].to(
        torch.int32
    )
    torch.save(weights, model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has an integer type"):
        load_masked_lm(str(model), allow_pickle=True)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def main(monkeypatch, *arguments: str) -> int:
    """A command's exit code."""
    monkeypatch.setattr("sys.argv", ["polydistill", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_a_pickle_that_would_run_code_is_refused_and_the_exit_code_says_so(
    model, monkeypatch, capsys, tmp_path
) -> None:
    (model / "model.safetensors").unlink()
    torch.save(Evil(), model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its pickle is refused: it holds more than weights"):
        load_masked_lm(str(model), allow_pickle=True)
    (model / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ModelError, match="its pickle is refused"):
        load_masked_lm(str(model), allow_pickle=True)
    torch.save(Evil(), model / "pytorch_model.bin")
    text = tmp_path / "a.txt"
    text.write_text("слово " * 20 + "\n", "utf-8")
    trim = (
        "vocab",
        "trim",
        str(model),
        "--text",
        f"ru={text}",
        "--output",
        str(tmp_path / "out"),
        "--allow-pickle",
    )
    assert main(monkeypatch, *trim) == 2
    said = capsys.readouterr()
    assert "its pickle is refused" in said.err
    assert "Traceback" not in said.err + said.out
    assert "\x1b" not in said.err


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
BROKEN: dict[str, dict] = {
    "expression": {"pre_tokenizer": SPLIT},
    "expression that is none": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "("}}},
    "map that is empty": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "map that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/" * 40}},
    "map without an end": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}},
    "map of nothing": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_tokenizer_that_its_library_gives_up_on_is_refused_when_it_is_loaded(
    model, broken, monkeypatch, capsys
) -> None:
    change(model / "tokenizer.json", **BROKEN[broken])
    with pytest.raises(UserError, match=r"ko.*(fails on it|cannot be loaded)") as caught:
        load_tokenizer(str(model), name="ko")
    assert isinstance(caught.value, TokenizerError if "none" not in broken or "map" in broken else ModelError)
    assert main(monkeypatch, "vocab", "inspect", str(model)) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name", "number"),
    [("config.json", "max_position_embeddings", 0), ("tokenizer_config.json", "model_max_length", -1)],
)
def test_a_model_that_takes_no_text_is_refused(model, file, name, number) -> None:
    change(model / file, **{name: number})
    with pytest.raises(ModelError, match=rf"takes sequences of at most {number} tokens"):
        load_tokenizer(str(model))


def test_an_unknown_token_that_no_vocabulary_has_is_named(model) -> None:
    """transformers looks it up in an endless loop."""
    change(model / "tokenizer_config.json", unk_token="")
    with pytest.raises(TokenizerError, match=r"teachers.ru.*unknown token '' is not in its vocabulary"):
        load_tokenizer(str(model), name="ru")


def test_a_tokenizer_that_gives_up_on_a_text_later_ends_a_run_with_a_message(merged, model, tmp_path) -> None:
    values, _ = merged
    # This letter is not in the text that tokenizers are tested on.
    change(model / "tokenizer.json", pre_tokenizer=SPLIT | {"pattern": {"Regex": "(я+)+$"}})
    text = tmp_path / "a.txt"
    lines = [f"слово {index}" for index in range(200)]
    text.write_text("\n".join([*lines, "я" * 60 + "!"]) + "\n", "utf-8")
    values = values | {
        "output": str(tmp_path / "run"),
        "teachers": {"ru": str(model)},
        "languages": {"ru": {"text": str(text), "teachers": ["ru"]}},
    }
    with pytest.raises(TokenizerError, match="failed on a text") as caught:
        run_recipe(parse_recipe(values), show=lambda line: None)
    assert is_panic(caught.value.__cause__)


LIMITS: dict[str, Callable[[], object]] = {
    "python": lambda: bytearray(1 << 62),
    "torch": lambda: torch.empty(1 << 60),
    "arrow": lambda: pa.allocate_buffer(1 << 60),
    "thread": lambda: (_ for _ in ()).throw(RuntimeError("can't start new thread")),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_no_memory_is_said_with_what_to_lower(merged, tmp_path, monkeypatch, kind) -> None:
    values, _ = merged
    # In the middle of a run, after the corpora.
    monkeypatch.setattr(merge, "weights_fingerprint", lambda *_, **__: LIMITS[kind]())
    with pytest.raises(MemoryLimitError, match="there is no more for this process") as caught:
        run_recipe(parse_recipe(values | {"output": str(tmp_path / "run")}), show=lambda line: None)
    assert "batch_tokens" in caught.value.remedy
    assert is_out_of_memory(caught.value.__cause__)
    assert explained(KeyboardInterrupt()) is explained(ValueError("out of memory")) is None


@pytest.mark.parametrize("limit", [500, 4_000, 30_000, 60_000])
def test_a_limit_of_a_files_size_is_said_and_the_run_goes_on_without_it(merged, tmp_path, limit) -> None:
    values, kept = merged
    values = values | {"output": str(tmp_path / "run")}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    assert largest > 60_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DiskError, match=r"exceed the size limit \(.* MiB, set by ulimit -f\)"):
            run_recipe(parse_recipe(values), show=lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run_recipe(parse_recipe(values), show=lambda line: None)
    weights = "student/final/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (kept / weights).read_bytes()


def test_a_configuration_that_is_deep_or_of_another_type_is_refused(model) -> None:
    for text in (
        DEEP,
        "[]",
        "3",
        '{"model_type": 3}',
        '{"model_type": "bert", "num_hidden_layers": "x"}',
        "1" * 5000,
    ):
        (model / "config.json").write_text(text, "utf-8")
        for look in (
            lambda: model_config(str(model)),
            lambda: load_tokenizer(str(model)),
            lambda: load_masked_lm(str(model)),
        ):
            with pytest.raises(ModelError, match="cannot be loaded"):
                look()
