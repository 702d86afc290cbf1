"""Generated bad input for every reader: a UserError with a message, or a result. Never another exception, and
no file outside the given folder. `make test-faults` tries more (POLYDISTILL_FUZZ examples of each).
"""

import json
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import bundled_lines

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.config.load import load_recipe, parse_recipe
from polydistill.config.settings import Settings
from polydistill.config.shared import Corpora, Source
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.examples import Examples
from polydistill.errors import UserError
from polydistill.masking import mask
from polydistill.models.load import load_masked_lm
from polydistill.pipelines.run import run_recipe
from polydistill.store.reader import Store
from polydistill.tasks.labelled import Choice, LabelledText, read_labelled
from polydistill.tasks.questions import answer_faults, locate
from polydistill.tasks.tagged import read_tagged
from polydistill.tokenization.encode import encode, word_starts
from polydistill.tokenization.load import load_tokenizer

FUZZ = int(os.environ.get("POLYDISTILL_FUZZ", "8"))
fuzzed = settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))

# Text that breaks readers: mixed scripts, bidi and zero-width marks, NUL, other line ends, emoji of several
# code points, combining marks without a base, characters outside the first plane, non-characters, and
# separators.
NASTY = [
    "",
    " ",
    "\t",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u2028",
    "\x00",
    "\x1b[31m",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u202e",
    "\u2066",
    "\u0301",
    "a\u0301\u0316",
    "👩‍👩‍👧‍👦",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "한국어",
    "中文",
    "ไทย",
    "العربية",
    "עברית",
    "हिन्दी",
    "ẞß",
    "ﬁ",
    "İı",
    "𝔘𝔫𝔦",
    "\U0010ffff",
    "\ufffe",
    "!!!???",
    "...",
    "ab" * 700,
    "字" * 900,
    "-DOCSTART-",
    "# text",
    '"',
    "'",
    "\\",
    "{",
    "[",
    ":",
    "&a",
    "*a",
    "!!python/object:os.system",
    "../../x",
    "/etc/passwd",
    "<script>",
    "[MASK]",
    "[CLS]",
    "1e999",
    "NaN",
    "-0",
    "B-",
    "I-PER",
    "O",
    "_",
    "1-2",
    "1.1",
    "NOUN",
]
pieces = st.one_of(st.sampled_from(NASTY), st.text(max_size=12))
lines = st.lists(pieces, max_size=8).map("".join)
texts = st.lists(lines, max_size=30).map("\n".join)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    lines,
    st.sampled_from([10**30, -1, 0, float("inf")]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(pieces, inner, max_size=3),
    max_leaves=6,
)


def surely_bytes(text: str) -> bytes:
    """UTF-8 where possible, and half surrogates as broken UTF-8."""
    return text.encode("utf-8", "surrogatepass")


raw = st.one_of(texts.map(surely_bytes), st.binary(max_size=400), texts.map(lambda t: t.encode("utf-16")))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def said() -> Iterator[None]:
    """One readable message says what the user can fix; everything else is a bug of ours."""
    refused = []
    try:
        yield
    except UserError as error:
        refused.append(error)
    assert all(error.remedy and "Traceback" not in str(error) for error in refused), refused


def outcome(read: Callable[[], object]) -> object:
    """A reader's result, or the UserError that it raises, with a remedy."""
    try:
        return read()
    except UserError as error:
        refused = error
    assert refused.remedy
    assert "Traceback" not in str(refused)
    return refused


def mutated(draw: st.DrawFn, value: object, depth: int = 0) -> object:
    """A JSON-able value with one place replaced, removed or repeated."""
    if not isinstance(value, dict | list) or not value or (depth and draw(st.integers(0, 3)) == 0):
        return draw(values)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        changed = list(value)
        changed[place] = mutated(draw, value[place], depth + 1)
        return changed if draw(st.booleans()) else changed + changed[place : place + 1]
    key = draw(st.sampled_from(sorted(value, key=str)))
    if draw(st.integers(0, 5)) == 0:
        return {name: entry for name, entry in value.items() if name != key}
    if draw(st.integers(0, 5)) == 0:
        return value | {draw(pieces): value[key]}
    return value | {key: mutated(draw, value[key], depth + 1)}


RECIPES = {
    "merge": {
        "name": "a",
        "teachers": {"x": "bert"},
        "languages": {"en": {"text": ["a.txt"], "teachers": ["x"]}},
        "training": {"max_steps": 5},
        "scoring": {"top_k": 8},
        "corpora": {"max_length": 32},
    },
    "extract": {
        "recipe": "extract",
        "name": "a",
        "teacher": "m",
        "language": "fr",
        "text": "a.txt",
        "losses": {"kd": 5},
    },
    "balance": {
        "recipe": "balance",
        "name": "a",
        "languages": {"en": {"text": "a.txt", "max_characters": 5}},
        "students": {"ours": {"truncate": "smallest"}},
        "groups": {"low": ["en"]},
    },
    "pretrain": {
        "recipe": "pretrain",
        "name": "a",
        "languages": {"en": {"text": "a.txt"}},
        "model": {"config": {}},
    },
    "grid": {
        "recipe": "grid",
        "name": "a",
        "base": {"seed": 1},
        "runs": {"one": {"extends": "balanced-shared"}},
    },
    "probe": {
        "recipe": "probe",
        "name": "a",
        "models": {"m": "x"},
        "tasks": {"pos": {"en": {"train": "a", "test": "b"}}},
    },
    "finetune": {
        "recipe": "finetune",
        "name": "a",
        "models": {"m": "x"},
        "seeds": [0],
        "tasks": {"ner": {"kind": "ner", "data": {"en": {"train": "a", "test": "b"}}}},
    },
}


@st.composite
def recipes(draw: st.DrawFn) -> dict:
    recipe = RECIPES[draw(st.sampled_from(sorted(RECIPES)))]
    for _ in range(draw(st.integers(1, 3))):
        changed = mutated(draw, recipe)
        recipe = changed if isinstance(changed, dict) else recipe
    return recipe


@fuzzed
@given(recipes(), st.lists(lines, max_size=2))
def test_recipes(recipe, overrides) -> None:
    assert isinstance(outcome(lambda: parse_recipe(dict(recipe), overrides)), UserError | Settings)
    with folder() as root:
        path = root / "recipe.yaml"
        path.write_bytes(surely_bytes(yaml.safe_dump(recipe, allow_unicode=True)))
        assert isinstance(outcome(lambda: load_recipe(path, overrides)), UserError | Settings)


@fuzzed
@given(raw)
def test_recipe_files(data) -> None:
    with folder() as root:
        (root / "recipe.yaml").write_bytes(data)
        assert isinstance(outcome(lambda: load_recipe(root / "recipe.yaml")), UserError | Settings)
        assert [path.name for path in root.iterdir()] == ["recipe.yaml"]


@pytest.fixture(scope="module")
def tokenizer(teachers):
    return load_tokenizer(str(teachers["ru"]))


@fuzzed
@given(
    data=st.lists(raw, min_size=1, max_size=3),
    name=st.sampled_from(["a.txt", "a.jsonl", "a.txt.gz", "a.parquet"]),
)
def test_text(tokenizer, data, name) -> None:
    """Every kept text can be encoded and masked, and has at most the requested number of tokens."""

    def count(batch: list[str]) -> list[int]:
        return [len(encoded.ids) - 2 for encoded in encode(tokenizer, batch)]

    with folder() as root, said():
        (root / "text").mkdir()
        (root / "corpus").mkdir()
        for index, content in enumerate(data):
            (root / "text" / f"{index}{name}").write_bytes(content)
        build_corpus(
            root / "corpus",
            sources=[Source(path=str(root / "text"))],
            evaluation={},
            fields=CorpusFields("languages.x.text", "languages.x.evaluation"),
            settings=Corpora(block_lines=2, held_out_share=0.4),
            count_tokens=count,
            max_tokens=20,
        )
        assert {path.name for path in root.iterdir()} == {"text", "corpus"}
        examples = Examples(root / "corpus" / "train.arrow")
        stored = examples.texts(slice(0, len(examples)))
        for text, encoded in zip(stored, [whole.cut(22) for whole in encode(tokenizer, stored)], strict=True):
            masked = mask(
                encoded.ids,
                encoded.starts,
                word_starts(text),
                example=1,
                seed=0,
                mask_id=4,
                ordinary_ids=tokenizer.ordinary_ids,
                unit="words",
                probability=0.5,
                mask_share=0.8,
                random_share=0.1,
            )
            assert len(encoded.ids) <= 22
            assert np.all(masked.positions < len(masked.input_ids))
            assert not any(unicodedata.category(character) == "Cs" for character in text)


columns = st.lists(st.one_of(pieces, st.just("\t")), min_size=1, max_size=12).map("".join)


@fuzzed
@given(st.lists(st.one_of(columns, st.just("")), max_size=12), st.sampled_from(["a.conllu", "a.bio"]), raw)
def test_tagged_sentences(rows, name, other) -> None:
    word = "1\tthe\tthe\tDET\tDT\t_\t2\tdet\t_\t_"
    contents = [
        "\n".join(rows).encode("utf-8", "surrogatepass"),
        other,
        "\n".join([word, *rows, ""]).encode("utf-8", "surrogatepass"),
    ]
    for content in contents:
        with folder() as root, said():
            (root / name).write_bytes(content)
            for sentence in read_tagged(root / name, field="tasks.pos.en.train"):
                assert len(sentence.words) == len(sentence.tags) > 0
                assert all(isinstance(part, str) for part in (*sentence.words, *sentence.tags))


SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "a house stands there",
                    "qas": [
                        {"id": "1", "question": "what?", "answers": [{"text": "house", "answer_start": 2}]}
                    ],
                }
            ],
        }
    ]
}


@fuzzed
@given(st.data(), raw)
def test_questions(data, other) -> None:
    whole = SQUAD
    for _ in range(data.draw(st.integers(1, 3))):
        whole = mutated(data.draw, whole)
    for content in (json.dumps(whole).encode(), other):
        with folder() as root, said():
            (root / "a.json").write_bytes(content)
            questions = read_labelled(
                LabelledSource(path=str(root / "a.json")), "qa", Columns(), field="tasks.qa"
            )
            answer_faults(questions)
            for question in questions:
                place = locate(question)
                assert place is None or question.context[slice(*place)] in {
                    text for _, text in question.answers
                }


@fuzzed
@given(
    st.lists(columns, max_size=8),
    st.sampled_from(["classification", "pairs", "choice"]),
    st.sampled_from(["tsv", "csv", "jsonl"]),
    raw,
)
def test_tables(rows, kind, suffix, other) -> None:
    header = "text\tpair\tlabel\tpremise\tchoice1\tchoice2".replace("\t", "\t" if suffix == "tsv" else ",")
    objects = "\n".join(json.dumps({"text": row, "label": row, "pair": row}) for row in rows)
    first = objects if suffix == "jsonl" else "\n".join([header, *rows])
    for content in (first.encode("utf-8", "surrogatepass"), other):
        with folder() as root:
            path = root / f"a.{suffix}"
            path.write_bytes(content)
            source = LabelledSource(path=str(path))
            result = outcome(lambda source=source: read_labelled(source, kind, Columns(), field="tasks.x"))
            examples = [] if isinstance(result, UserError) else result
            assert all(
                isinstance(example, Choice if kind == "choice" else LabelledText) for example in examples
            )
            assert isinstance(result, UserError) or examples


@fuzzed
@given(st.data(), st.sampled_from(["tokenizer.json", "tokenizer_config.json", "config.json"]))
def test_models(teachers, data, name) -> None:
    """A folder with one JSON file damaged in one place: its weights load correctly, or are refused."""
    content = json.loads((teachers["ru"] / name).read_text("utf-8"))
    if name == "tokenizer.json":
        # Otherwise four hundred entries of the vocabulary would take all the changes.
        whole = content["model"].pop("vocab")
        content = mutated(data.draw, content)
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content["model"]["vocab"] = whole
    else:
        content = mutated(data.draw, content)
    with folder() as root:
        shutil.copytree(teachers["ru"], root / "model")
        (root / "model" / name).write_text(json.dumps(content), "utf-8")
        with said():
            loaded = load_tokenizer(str(root / "model"))
            assert loaded.size > 0
        if name == "config.json" and small(content):
            with said():
                load_masked_lm(str(root / "model"))


def small(config: object) -> bool:
    """Whether a model of this configuration fits the machine: a billion layers are a valid request."""
    if not isinstance(config, dict):
        return True
    return all(not isinstance(value, int | float) or abs(value) < 10**4 for value in config.values())


@pytest.fixture(scope="module")
def store(tmp_path_factory, teachers) -> Path:
    root = tmp_path_factory.mktemp("stores")
    (root / "ru.txt").write_text("\n".join(bundled_lines("ru", 200)) + "\n", "utf-8")
    run = run_recipe(
        parse_recipe(
            {
                "name": "s",
                "output": str(root / "run"),
                "teachers": {"ru": str(teachers["ru"])},
                "languages": {"ru": {"text": str(root / "ru.txt"), "teachers": ["ru"]}},
                "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.1},
                "scoring": {"shard_examples": 32, "precision": "float32"},
                "student": {
                    "config": {
                        "hidden_size": 16,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 1,
                        "intermediate_size": 16,
                    }
                },
            }
        ),
        until="score",
        show=lambda line: None,
    )
    return run / "store" / "ru" / "ru"


@fuzzed
@given(st.data(), st.integers(0, 10**6), st.booleans())
def test_stores(store, data, place, whole) -> None:
    """A manifest with another value in one place, or a shard with other bytes: `verify` refuses it, or it is
    read.
    """
    with folder() as root:
        shutil.copytree(store, root / "store")
        if whole:
            manifest = mutated(data.draw, json.loads((store / "manifest.json").read_text("utf-8")))
            (root / "store" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        else:
            shard = sorted((root / "store").glob("shard-*"))[0]
            content = bytearray(shard.read_bytes())
            start = place % len(content)
            content[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
            shard.write_bytes(content)
        rows = outcome(lambda: rows_of(root / "store"))
        changed = not whole and bytes(content) != (store / shard.name).read_bytes()
        # Other bytes are never read as a shard. A manifest may differ where that has no effect.
        assert isinstance(rows, UserError) or (not changed and len(rows) == 3)


def rows_of(store: Path) -> list[object]:
    """The first three rows of a store whose checksums are right."""
    opened = Store(store)
    opened.verify()
    return [opened.row(row) for row in range(min(3, len(opened)))]
