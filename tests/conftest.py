"""Shared fixtures: small teachers on disk, text, and the place of the larger data."""

from __future__ import annotations

import lzma
import os
import shutil
from importlib import resources
from pathlib import Path

import hypothesis
import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from polydistill.disk import hash_text
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.wordpiece import save_tokenizer, train_wordpiece

# The same examples every time: unchanged code does not fail. POLYDISTILL_EXPLORE=1 draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
if not os.environ.get("POLYDISTILL_EXPLORE"):
    hypothesis.settings.load_profile("repeatable")

DATA = Path(str(resources.files("polydistill") / "demo_data"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The larger data: POLYDISTILL_SHARED, by default ../shared. Tests that need it skip without it."""
    path = Path(os.environ.get("POLYDISTILL_SHARED", "../shared"))
    if not (path / "vocabularies").is_dir():
        pytest.skip(
            f"{path} holds no vocabularies: set POLYDISTILL_SHARED to the folder with the larger data"
        )
    return path


def bundled_lines(language: str, number: int) -> list[str]:
    """The first lines of a language's bundled text."""
    with lzma.open(DATA / f"{language}.txt.xz", "rt", encoding="utf-8") as handle:
        return [next(handle).strip() for _ in range(number)]


def write_examples(path: Path, examples: list[tuple[str, int]]) -> None:
    """Write (text, number of tokens) examples as a corpus has them."""
    from polydistill.corpora.examples import SCHEMA

    texts, tokens = zip(*examples, strict=True)
    columns = [list(map(hash_text, texts)), list(texts), list(tokens)]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), max_chunksize=1024)


def make_teacher(
    folder: Path, lines: list[str], *, seed: int, lowercase: bool = True, size: int = 400, num_layers: int = 2
) -> Path:
    """A small BERT with random weights and a WordPiece of these lines."""
    tokenizer = train_wordpiece(lambda: lines, size=size, lowercase=lowercase, strip_accents=False)
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )
    # Fresh layers predict all pieces alike: spread them, so that ranks mean something.
    with torch.no_grad():
        model.cls.predictions.decoder.weight.mul_(20)
        model.cls.predictions.decoder.bias.normal_()
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, specials=STUDENT_SPECIALS, max_length=64)
    return folder


def half_scored(store: Path) -> Path:
    """Turn a finished store into what a killed run leaves; return that folder."""
    from polydistill.disk import hash_file, read_json, write_json

    (store / "manifest.json").unlink()
    for shard in store.glob("shard-*.arrow"):
        shard.with_suffix(".xxh3").write_text(hash_file(shard), "utf-8")
    stamp = read_json(store / "stamp.json")
    write_json(store / "stamp.json", {key: stamp[key] for key in ("fingerprint", "inputs")})
    return store.rename(store.with_name(f"{store.name}.partial"))


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three small teachers: two of English, one of Russian."""
    root = tmp_path_factory.mktemp("teachers")
    english, russian = bundled_lines("en", 1500), bundled_lines("ru", 1500)
    return {
        "en": make_teacher(root / "en", english, seed=1),
        "en2": make_teacher(root / "en2", english[:700], seed=2, size=300),
        "ru": make_teacher(root / "ru", russian, seed=3),
    }


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text files of the bundled languages."""
    root = tmp_path_factory.mktemp("texts")
    made = {}
    for language in ("en", "ru"):
        made[language] = root / f"{language}.txt"
        made[language].write_text("\n".join(bundled_lines(language, 1500)) + "\n", "utf-8")
    return made


@pytest.fixture
def recipe_values(teachers: dict[str, Path], texts: dict[str, Path], tmp_path: Path) -> dict:
    """A merge recipe that runs in seconds."""
    return {
        "name": "small",
        "output": str(tmp_path / "run"),
        "teachers": {name: str(path) for name, path in teachers.items()},
        "languages": {
            "en": {"text": str(texts["en"]), "teachers": ["en", "en2"]},
            "ru": {"text": str(texts["ru"]), "teachers": ["ru"]},
        },
        "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.1},
        "scoring": {"shard_examples": 256, "precision": "float32"},
        "student": {
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 64,
            }
        },
        "training": {
            "max_steps": 8,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "save_steps": 4,
            "bf16": False,
        },
        "evaluation": {"max_examples": 20, "precision": "float32", "num_samples": 2},
    }


@pytest.fixture(scope="session")
def multilingual_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of four layers with pieces of English and Russian."""
    lines = bundled_lines("en", 800) + bundled_lines("ru", 800)
    folder = tmp_path_factory.mktemp("multilingual") / "both"
    return make_teacher(folder, lines, seed=4, size=700, num_layers=4)


@pytest.fixture
def extract_values(multilingual_teacher: Path, texts: dict[str, Path], tmp_path: Path) -> dict:
    """An extraction that runs in seconds."""
    return {
        "recipe": "extract",
        "name": "russian",
        "output": str(tmp_path / "run"),
        "teacher": str(multilingual_teacher),
        "language": "ru",
        "text": str(texts["ru"]),
        "cost": {"rounds": 0},
        "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.1},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "save_steps": 3,
            "bf16": False,
        },
        "evaluation": {"max_examples": 20, "precision": "float32", "num_samples": 2},
    }


def merge_of_one(root: Path, teacher: Path, *, lines: int, steps: int, shard_examples: int) -> dict:
    """A merge of one Russian teacher that runs in seconds, its text and its run in `root`."""
    (root / "ru.txt").write_text("\n".join(bundled_lines("ru", lines)) + "\n", "utf-8")
    return {
        "name": root.name,
        "output": str(root / "run"),
        "teachers": {"ru": str(teacher)},
        "languages": {"ru": {"text": str(root / "ru.txt"), "teachers": ["ru"]}},
        "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.1},
        "scoring": {"shard_examples": shard_examples, "precision": "float32"},
        "student": {
            "config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 16,
                "max_position_embeddings": 64,
            }
        },
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "save_steps": 2,
            "bf16": False,
            "report_to": [],
        },
        "evaluation": {"max_examples": 20, "precision": "float32", "num_samples": 2},
    }


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory, teachers: dict[str, Path]) -> tuple[dict, Path]:
    """(recipe, a finished merge of one teacher, kept as it is). Tests damage copies of it."""
    from polydistill.config.load import parse_recipe
    from polydistill.pipelines.run import run_recipe

    root = tmp_path_factory.mktemp("merged")
    values = merge_of_one(root, teachers["ru"], lines=200, steps=4, shard_examples=32)
    run_recipe(parse_recipe(values), show=lambda line: None)
    return values, root / "run"


@pytest.fixture
def damaged(merged, tmp_path) -> tuple[dict, Path]:
    """(recipe, a copy of its finished run to damage)."""
    values, kept = merged
    shutil.copytree(kept, tmp_path / "run")
    return values | {"output": str(tmp_path / "run")}, tmp_path / "run"
