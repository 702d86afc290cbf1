"""Generated bad input for every reader: a UserError with a message, or a result. Never another exception, and
no file outside the given folder. `make test-faults` tries more (POLYDISTILL_FUZZ examples of each).
"""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import bundled_lines
from tests.faults.fuzzing import folder, fuzzed, lines, mutated, outcome, pieces, raw, said, surely_bytes

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.config.load import load_recipe, parse_recipe
from polydistill.config.settings import Settings
from polydistill.config.shared import Corpora, Source
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.examples import Examples
from polydistill.errors import UserError
from polydistill.masking import Maskable, mask
from polydistill.models.load import load_masked_lm
from polydistill.pipelines.run import run_recipe
from polydistill.store.reader import Store
from polydistill.tasks.labelled import Choice, LabelledText, read_labelled
from polydistill.tasks.questions import answer_faults, locate
from polydistill.tasks.tagged import read_tagged
from polydistill.tokenization.encode import encode, word_starts
from polydistill.tokenization.load import load_tokenizer

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
            words = word_starts(text)
            masked = mask(
                [Maskable(encoded.ids, encoded.starts, words, words >= 0, example=1)],
                seed=0,
                mask_id=4,
                ordinary_ids=tokenizer.ordinary_ids,
                unit="words",
                probability=0.5,
                mask_share=0.8,
                random_share=0.1,
            )[0]
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
