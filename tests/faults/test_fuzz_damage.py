"""Generated damage to a run's records, tasks' data and models' folders. Each time the work ends with the same
bytes, or a UserError names the place; never another exception. `make test-faults` tries more:
POLYDISTILL_FUZZ cases over the three kinds.
"""

import gzip
import json
import lzma
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults.fuzzing import lines as odd_lines
from tests.faults.fuzzing import mutated, surely_bytes

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.models.load import load_masked_lm, weights_fingerprint
from polydistill.pipelines.run import run_recipe
from polydistill.reports.page import report_run
from polydistill.tasks.labelled import read_labelled
from polydistill.tokenization.encode import encode
from polydistill.tokenization.load import load_tokenizer
from polydistill.tools.verify import verify_run

CASES = max(4, int(os.environ.get("POLYDISTILL_FUZZ", "12")) // 3)
fuzzed = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
OUTCOMES: Counter[str] = Counter()
SLOWEST = [0.0]
DEEP = {
    "list": "[" * 60_000 + "]" * 60_000,
    "object": '{"a":' * 60_000 + "1" + "}" * 60_000,
    "some": "[" * 300 + "]" * 300,
}


@pytest.fixture(scope="module", autouse=True)
def summary():
    yield
    if CASES > 4:  # shown with -s
        print(f"\n{sum(OUTCOMES.values())} cases, the slowest of {SLOWEST[0]:.1f} s: {dict(OUTCOMES)}")


def outcome(kind: str, work) -> UserError | None:
    """The message of the work's refusal; None if it succeeds."""
    started, refused = time.perf_counter(), None
    try:
        work()
    except UserError as error:
        refused = error
    SLOWEST[0] = max(SLOWEST[0], time.perf_counter() - started)
    OUTCOMES[f"{kind} {'named' if refused else 'harmless'}"] += 1
    assert refused is None or (refused.remedy and "Traceback" not in str(refused))
    return refused


@st.composite
def other_json(draw: st.DrawFn, path: Path) -> bytes:
    """A JSON file of another type, emptied, nested deeply, cut off, or changed in a place, with its checksum
    or not.
    """
    how = draw(st.sampled_from(["deep", "type", "cut", "emptied", "changed", "unsealed", "bytes"]))
    whole = path.read_bytes()
    try:
        value = json.loads(whole)
    except (ValueError, RecursionError):
        value = {}
    if how == "deep":
        return draw(st.sampled_from(sorted(DEEP.values()))).encode()
    if how == "type":
        return draw(
            st.sampled_from(
                [b"[]", b"{}", b"null", b"1", b'"a"', b"true", b"NaN", b"1e999", b"9" * 5000, b"[[1]]"]
            )
        )
    if how == "cut":
        return whole[: draw(st.integers(0, max(0, len(whole) - 1)))]
    if how == "bytes":
        return draw(st.binary(max_size=60))
    if how == "emptied" and isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        value = value | {key: type(value[key])() if value[key] is not None else {}}
    elif how == "unsealed" and isinstance(value, dict):
        value = {key: entry for key, entry in value.items() if key != "checksum_of_the_rest"}
    else:
        value = mutated(draw, value)
    return surely_bytes(json.dumps(value, ensure_ascii=draw(st.booleans())))


def place_of(folder: Path, draw: st.DrawFn) -> Path:
    """A record or an artefact's file of a run, JSON more often than others."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in (".lock", "run.log")
    )
    records = [path for path in files if path.suffix == ".json" and not path.name.startswith("tokenizer")]
    return draw(st.sampled_from(records if draw(st.integers(0, 3)) else files))


@fuzzed
@given(st.data())
def test_a_run_whose_files_are_damaged_replaced_or_links(merged, data) -> None:
    values, kept = merged
    weights = Path("student", "final", "model.safetensors")
    with tempfile.TemporaryDirectory() as root:
        folder, precious = Path(root, "run"), Path(root, "precious")
        shutil.copytree(kept, folder)
        precious.write_text("kept", "utf-8")
        for _ in range(data.draw(st.integers(1, 2))):
            place = place_of(folder, data.draw)
            how = data.draw(st.sampled_from(["json", "json", "json", "gone", "link", "folder", "swapped"]))
            new = data.draw(other_json(place)) if how == "json" else b""
            place.unlink()
            if how == "json":
                place.write_bytes(new)
            elif how == "link":
                place.symlink_to(precious)
            elif how == "folder":
                place.mkdir()
            elif how == "swapped":
                shutil.copy(
                    data.draw(
                        st.sampled_from(
                            sorted(path for path in place.parent.iterdir() if path.is_file()) or [precious]
                        )
                    ),
                    place,
                )
        values = values | {"output": str(folder)}
        for kind, work in (("verify", lambda: verify_run(folder)), ("report", lambda: report_run(folder))):
            refused = outcome(kind, work)
            assert refused is None or str(folder) in str(refused), refused
        refused = outcome("run", lambda: run_recipe(parse_recipe(values), show=lambda line: None))
        if refused is None:
            assert (folder / weights).read_bytes() == (kept / weights).read_bytes()
        else:
            assert str(folder) in str(refused), refused
        assert precious.read_text("utf-8") == "kept"


ROWS = {
    "classification": {"text": "a", "label": "b"},
    "pairs": {"text": "a", "pair": "b", "label": 1},
    "choice": {"premise": "p", "choice1": "a", "choice2": "b", "label": 0},
}
QUESTIONS = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "a house",
                    "qas": [
                        {"id": "1", "question": "what?", "answers": [{"text": "house", "answer_start": 2}]}
                    ],
                }
            ]
        }
    ]
}
HALF = ["\ud800", "a\udfffb", "\ud83d\ude00", "9" * 5000, "-" + "9" * 400, "\x00", ""]
IDS = [
    "1",
    "2",
    "3",
    "4",
    "5",
    "2-3",
    "2.1",
    "9" * 5000,
    "9" * 5000 + "-1",
    "1-" + "9" * 5000,
    "-1",
    "x",
    "",
    "1.1.1",
    "٣",
]


def odd_data(draw: st.DrawFn, kind: str) -> tuple[str, str]:
    """(content, file name) of a task's data with a value, a line or an end that nobody would write."""
    if kind == "qa":
        value = QUESTIONS
        for _ in range(draw(st.integers(0, 2))):
            value = mutated(draw, value)
        text = json.dumps(value).replace(
            "house", json.dumps(draw(st.sampled_from(["house", *HALF])))[1:-1], 1
        )
        whole = [text, text.replace("2}", "9" * 5000 + "}"), *sorted(DEEP.values())]
        return draw(st.sampled_from(whole)), "a.json"
    if kind in ROWS:
        rows = [
            ROWS[kind]
            | {
                draw(st.sampled_from(sorted(ROWS[kind]))): draw(
                    st.sampled_from(["a", "b", "c", 0, 1, *HALF, None, [], 1e308])
                )
            }
            for _ in range(3)
        ]
        end = draw(st.sampled_from(["", DEEP["some"], DEEP["list"], "{"]))
        return "\n".join([*map(json.dumps, rows), end]), "a.jsonl"
    if kind == "pos":
        ids = st.sampled_from(IDS)
        words = [f"{draw(ids)}\tw\tw\tNOUN\t_\t_\t{draw(ids)}\tx\t_\t_" for _ in range(3)]
        return "\n".join([*words, draw(odd_lines), ""]), "a.conllu"
    words = [f"{draw(st.sampled_from(['a', 'b', 'c', 'd', *HALF]))}\tB-X" for _ in range(3)]
    return "\n".join([*words, draw(odd_lines)]), "a.bio"


@fuzzed
@given(
    st.data(),
    st.sampled_from(["classification", "pairs", "choice", "qa", "ner", "pos"]),
    st.sampled_from(["", ".gz", ".xz"]),
)
def test_what_tasks_read(data, kind, packed) -> None:
    draw = data.draw
    content, name = odd_data(draw, kind)
    raw = surely_bytes(content)
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packed]
    packed_bytes = pack(raw)
    if draw(st.integers(0, 4)) == 0:
        packed_bytes = packed_bytes[: draw(st.integers(0, len(packed_bytes)))]
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, name + packed)
        path.write_bytes(packed_bytes)
        examples: list = []
        source = LabelledSource(path=str(path))
        refused = outcome(
            f"data of {kind}",
            lambda: examples.extend(read_labelled(source, kind, Columns(), field="tasks.t")),
        )
        assert bool(examples) == (refused is None)
        # Accepted data can be written and tokenised.
        assert json.dumps([repr(example) for example in examples], ensure_ascii=False).encode("utf-8")
        assert [str(example).encode("utf-8") for example in examples] or refused


SIZES = [10**6, 10**9, -1, 0, 2**63, 1e300, "x", None, [], True, 3, 1]


def damage_model(draw: st.DrawFn, model: Path, name: str) -> None:
    """Change one file of a model's folder: a value, an index of weights, a part of the tokenizer, bytes."""
    if name == "config.json":
        config = json.loads((model / name).read_text("utf-8"))
        key = draw(
            st.sampled_from(
                [
                    "num_hidden_layers",
                    "max_position_embeddings",
                    "vocab_size",
                    "hidden_size",
                    "num_attention_heads",
                    "type_vocab_size",
                    "intermediate_size",
                    "model_type",
                    "hidden_act",
                ]
            )
        )
        (model / name).write_text(json.dumps(config | {key: draw(st.sampled_from(SIZES))}), "utf-8")
    elif name == "index":
        (model / "model.safetensors").rename(model / "part.safetensors")
        index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "part.safetensors"}}
        path = model / "model.safetensors.index.json"
        path.write_text(json.dumps(index), "utf-8")
        path.write_bytes(draw(other_json(path)))
    elif name == "tokenizer.json":
        tokenizer = json.loads((model / name).read_text("utf-8"))
        part = draw(
            st.sampled_from(
                [
                    {
                        "normalizer": {
                            "type": "Precompiled",
                            "precompiled_charsmap": draw(st.text("A/+Bz", max_size=24)),
                        }
                    },
                    {
                        "pre_tokenizer": {
                            "type": "Split",
                            "pattern": {"Regex": draw(st.text("(a+)*$|b[]?^", max_size=9))},
                            "behavior": "Isolated",
                            "invert": False,
                        }
                    },
                    {
                        "normalizer": {
                            "type": "Replace",
                            "pattern": {"Regex": draw(st.text("(a+)*$|b.", max_size=9))},
                            "content": "x",
                        }
                    },
                    {"decoder": None, "post_processor": None},
                    {"model": tokenizer["model"] | {"unk_token": draw(st.sampled_from(["x", "", None]))}},
                ]
            )
        )
        (model / name).write_text(json.dumps(tokenizer | part), "utf-8")
    else:
        path = model / name.split()[0]
        path.write_bytes(draw(other_json(path)))


@fuzzed
@given(
    st.data(),
    st.sampled_from(
        ["config.json", "index", "tokenizer.json", "tokenizer_config.json", "config.json of another type"]
    ),
)
def test_models_folders(teachers, data, name) -> None:
    with tempfile.TemporaryDirectory() as root:
        model = Path(root, "model")
        shutil.copytree(teachers["ru"], model)
        damage_model(data.draw, model, name)

        def work() -> None:
            loaded = load_tokenizer(str(model))
            encoded = encode(loaded, ["a text, aaaa bbbb 한국어", ""])
            weights_fingerprint(str(model))
            taken = load_masked_lm(str(model))
            # An accepted model works: every token has a row, and every prediction is a number.
            for text in encoded:
                if not text.ids.size:  # a tokenizer without special tokens gives an empty line none
                    continue
                assert text.ids.max(initial=0) < loaded.size
                logits = taken(input_ids=torch.from_numpy(text.ids)[None, : loaded.max_length]).logits
                assert logits.isfinite().all()

        refused = outcome(f"model's {name}", work)
        assert refused is None or refused.field in ("model", "tokenizer"), refused
