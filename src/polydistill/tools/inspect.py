"""Print stores and vocabularies, and unite vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.config.shared import Teacher
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import write_json
from polydistill.errors import StoreError
from polydistill.store.reader import Store
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer, load_vocabulary
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.student import language_tokenizer, union_tokenizer
from polydistill.tokenization.union import overlap, unite
from polydistill.tokenization.wordpiece import save_tokenizer, special_strings


def inspect_store(folder: Path, num_examples: int, tokenizer: str, console: Console) -> None:
    """Print a store's manifest and some examples with masks, gold tokens and the teacher's top k as words."""
    store = Store(folder)
    identity = store.identity
    table = Table(show_header=False, title=escape(str(folder)))
    input_bytes = sum(shard["tokens"] for shard in store.manifest["shards"]) * (
        2 if identity["vocabulary_size"] <= 65536 else 4
    )
    bytes_a_position = (store.num_bytes - input_bytes) / max(1, store.num_masked)
    facts = {
        **identity,
        "examples": f"{len(store):,}",
        "masked positions": f"{store.num_masked:,}",
        "bytes": f"{store.num_bytes:,}",
        "bytes a masked position, input ids apart": f"{bytes_a_position:.1f}",
    }
    for key, value in facts.items():
        table.add_row(key, escape(str(value)))
    console.print(table)
    if "crossed" in identity and not tokenizer:
        # Labels in a vocabulary of the student's own, which is the run's.
        tokenizer = str(folder.parent.parent.parent / "tokenizer")
        words = load_vocabulary(tokenizer, field="tokenizer").backend
    else:
        words = teacher_tokenizer(folder, identity["teacher"], tokenizer).backend
    for index in range(min(num_examples, len(store))):
        row = store.row(index)
        text = words.decode([int(token) for token in row.input_ids], skip_special_tokens=False)
        console.print(f"\n[bold]{row.example:016x}[/bold]  teacher loss {row.loss:.3f} nats")
        console.print(escape(text))
        for place, position in enumerate(row.positions):
            guesses = "  ".join(
                f"{words.id_to_token(int(token))} {np.exp(float(logprob)):.2f}"
                for token, logprob in zip(row.top_ids[place], row.top_logprobs[place], strict=True)
                if np.isfinite(logprob)
            )
            gold = str(words.id_to_token(int(row.gold[place])))
            seen = str(words.id_to_token(int(row.input_ids[position])))
            console.print(
                f"  {int(position):>4} {escape(gold)} (seen {escape(seen)}, "
                f"p {np.exp(float(row.gold_logprobs[place])):.3f}): {escape(guesses)}"
            )


def unite_models(models: Sequence[str], output: Path, console: Console) -> None:
    """Write the union tokenizer of models and each model's own with the union's ids; print the overlap."""
    loaded = [load_tokenizer(model, name=f"{index}-{Path(model).name}") for index, model in enumerate(models)]
    union = unite(loaded)
    length = min([512, *(tokenizer.max_length for tokenizer in loaded)])
    save_tokenizer(union_tokenizer(union, loaded), output, specials=STUDENT_SPECIALS, max_length=length)
    shared = overlap(loaded)
    for tokenizer, mapping in zip(loaded, union.maps, strict=True):
        own = language_tokenizer(tokenizer, mapping, union)
        save_tokenizer(
            own, output / "tokenizer" / tokenizer.name, specials=special_strings(tokenizer), max_length=length
        )
        write_json(output / "tokenizer" / tokenizer.name / "map.json", mapping.tolist())
    table = Table(title=f"union of {union.size:,} pieces")
    table.add_column("model")
    table.add_column("pieces", justify="right")
    for tokenizer in loaded:
        table.add_column(f"shared with {escape(tokenizer.name)}", justify="right")
    for row, tokenizer in enumerate(loaded):
        table.add_row(
            escape(tokenizer.name), f"{tokenizer.size:,}", *(f"{int(count):,}" for count in shared[row])
        )
    console.print(table)
    console.print(f"written to {output}", markup=False)


def inspect_vocabulary(model: str, console: Console) -> None:
    """Print what a model's vocabulary holds."""
    tokenizer = load_tokenizer(model)
    pieces = [piece for piece in tokenizer.pieces if piece is not None]
    table = Table(show_header=False, title=escape(model))
    facts = {
        "kind": tokenizer.kind,
        "size": f"{tokenizer.size:,}",
        "roles": ", ".join(f"{role} {index}" for role, index in tokenizer.special_ids.items()),
        "longest sequence": tokenizer.max_length if tokenizer.max_length < 10**9 else "no limit",
        "lower-cases": tokenizer.lowercases,
        "strips accents": tokenizer.strips_accents,
        "pieces that start a word": f"{sum(piece.starts_word for piece in pieces):,}",
        "unused, special or empty slots": f"{tokenizer.size - len(pieces):,}",
        "entries that mean the same piece": f"{len(pieces) - len(set(pieces)):,}",
        "examples": " ".join(
            piece.surface if piece.starts_word else f"##{piece.surface}"
            for piece in pieces[len(pieces) // 3 :][:12]
        ),
    }
    for key, value in facts.items():
        table.add_row(key, escape(str(value)))
    console.print(table)


def teacher_tokenizer(folder: Path, teacher: str, tokenizer: str) -> LoadedTokenizer:
    """The tokenizer of a store's teacher: `tokenizer` if given, else from the recipe of the store's run."""
    if tokenizer:
        return load_tokenizer(tokenizer, name=teacher)
    recipe = folder.parent.parent.parent / "recipe.yaml"
    if not recipe.is_file():
        raise StoreError(
            "store", str(folder), "is not in a run's folder, so its teacher is unknown", "pass --tokenizer"
        )
    try:
        settings = Teacher.model_validate(read_resolved(recipe)["teachers"][teacher])
    except (yaml.YAMLError, ValueError, LookupError, TypeError) as error:
        raise StoreError(
            "store",
            str(folder),
            f"is in the folder of a run whose recipe.yaml names no teacher {teacher}",
            "pass --tokenizer",
        ) from error
    return load_tokenizer(
        settings.model, name=teacher, tokenizer=settings.tokenizer, revision=settings.revision
    )
