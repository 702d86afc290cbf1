"""Fetch the public data that the recipes read, and lay them out: see docs/recipes-data.md.

python scripts/fetch_data.py FOLDER [--for RECIPE]... [--only PATH]... [--no-restricted] [--list]

Files that are there stay. What is fetched is recorded in FOLDER/fetched.json, with its origin and licence;
run it again to go on after an interruption.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import lzma
import shutil
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from public_sources import Entry, Piece, Rows, entries

from polydistill.config.load import read_recipe
from polydistill.errors import UserError

RECORD = "fetched.json"
# As much as the largest corpus of ours; the most that a recipe reads is half of it.
CHARACTERS = 20_000_000
TIMEOUT_SECONDS = 60


class Reach(Protocol):
    """What is beyond this machine; tests have a small one of their own."""

    def file(self, url: str) -> bytes:
        """The bytes at an address."""

    def rows(self, dataset: str, config: str, split: str) -> Iterable[Mapping[str, Any]]:
        """The rows of a data set's split on the hub, in order."""

    def model(self, name: str, folder: Path) -> None:
        """Write a model of the hub with its tokenizer into a folder, weights as safetensors."""


class Network:
    """The public network. No line of this class has run where it was written: there was no network."""

    @lru_cache(maxsize=2)  # noqa: B019  a zip file holds several languages, and one object lives as long as the run
    def file(self, url: str) -> bytes:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())

    def rows(self, dataset: str, config: str, split: str) -> Iterable[Mapping[str, Any]]:
        from datasets import load_dataset

        return load_dataset(dataset, config, split=split, streaming=True)

    def model(self, name: str, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM, BertTokenizerFast

        # Both models are ALBERTs with a WordPiece, which `AutoTokenizer` would take for a SentencePiece.
        BertTokenizerFast.from_pretrained(name).save_pretrained(folder)
        AutoModelForMaskedLM.from_pretrained(name).save_pretrained(folder)


def encoded(path: str, items: Sequence[Any]) -> bytes:
    """The bytes of a file of the layout, by its name."""
    if ".json" in path:
        text = json.dumps({"data": list(items)}, ensure_ascii=False)
    else:
        # Sentences of tagged words are parted by blank lines.
        text = ("\n\n" if path.endswith((".conllu.xz", ".bio.xz")) else "\n").join(items) + "\n"
    return lzma.compress(text.encode("utf-8"))


def items_of(piece: Piece, reach: Reach) -> list[Any]:
    """The items of a piece; ValueError for what is not as it should be."""
    if isinstance(piece.place, Rows):
        rows = piece.place
        items = piece.read(reach.rows(rows.dataset, rows.config, rows.split))
    else:
        raw = reach.file(piece.place.url)
        if piece.place.member:
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                raw = archive.read(piece.place.member)
        items = piece.read(raw)
    end = None if piece.number is None else piece.first + piece.number
    taken = items[piece.first : end]
    if not taken or (piece.number is not None and len(taken) < piece.number):
        raise ValueError(f"{len(taken)} items from number {piece.first}; wanted {piece.number or 'some'}")
    return taken


def fetch(root: Path, chosen: Sequence[Entry], reach: Reach, say: Callable[[str], None] = print) -> int:
    """Lay out what is chosen; returns how many files failed. One that fails does not keep others back."""
    root.mkdir(parents=True, exist_ok=True)
    failed = 0
    for entry in chosen:
        say(describe(entry))
        for path, work in _work(entry, reach).items():
            if (root / path).exists() and _as_recorded(root, path):
                say(f"  {path}: is there")
                continue
            try:
                number = work(root / path)
            except Exception as error:  # whatever a library raises: the next file may be reached
                failed += 1
                say(f"  {path}: FAILED: {type(error).__name__}: {error}")
                continue
            _note(root, path, entry)
            say(f"  {path}: {number}")
    return failed


def _work(entry: Entry, reach: Reach) -> dict[str, Callable[[Path], str]]:
    """Path below the root → what writes it; returns what to say of it."""

    def model(target: Path) -> str:
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        reach.model(entry.model, partial)
        if not list(partial.glob("*.safetensors")):
            raise ValueError("no weights as safetensors")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return "a model"

    def piece(made: Piece) -> Callable[[Path], str]:
        def write(target: Path) -> str:
            items = items_of(made, reach)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            partial.write_bytes(encoded(target.name, items))
            partial.replace(target)
            return f"{len(items):,} items"

        return write

    if entry.model:
        return {entry.path: model}
    return {path: piece(made) for path, made in entry.files.items()}


def describe(entry: Entry) -> str:
    """An entry in a line: path, origin, licence, and what to know of it."""
    restricted = "; RESTRICTED: non-commercial, or no licence stated" if entry.restricted else ""
    note = f" ({entry.note})" if entry.note else ""
    return f"{entry.path}: {entry.origin}; licence: {entry.licence}{restricted}{note}"


def _as_recorded(root: Path, path: str) -> bool:
    """Whether a file is as it was fetched. One that is not from here is the user's own: it stays."""
    known = _record(root).get(path)
    return known is None or known["sha256"] == _digest(root / path)


def _note(root: Path, path: str, entry: Entry) -> None:
    record = _record(root)
    record[path] = {
        "origin": entry.origin,
        "licence": entry.licence,
        "restricted": entry.restricted,
        "note": entry.note,
        "sha256": _digest(root / path),
    }
    partial = root / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(root / RECORD)


def _record(root: Path) -> dict[str, dict[str, Any]]:
    path = root / RECORD
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def paths_of(recipe: str) -> set[str]:
    """The paths below the data root that a recipe reads."""
    found: set[str] = set()

    def visit(value: object) -> None:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                visit(inner)
        elif isinstance(value, str) and value.startswith("$data/"):
            found.add(value.removeprefix("$data/"))

    visit(read_recipe(recipe))
    return found


def choose(all_entries: Sequence[Entry], only: Sequence[str], recipes: Sequence[str]) -> list[Entry]:
    """The entries whose path begins with or matches one of `only`, or that a recipe reads; all without both.

    Raises ValueError for what no entry has.
    """
    read = sorted({path for recipe in recipes for path in paths_of(recipe)})
    chosen, unknown = set(), []
    for wanted in (*only, *read):
        matching = {entry.path for entry in all_entries if _matches(entry, wanted)}
        chosen |= matching
        if not matching:
            unknown.append(wanted)
    if unknown:
        raise ValueError(f"nothing here makes {', '.join(unknown)}; --list shows what is made")
    return [entry for entry in all_entries if entry.path in chosen or not (only or recipes)]


def _matches(entry: Entry, wanted: str) -> bool:
    wanted = wanted.strip("/")
    return (
        wanted in entry.files
        or entry.path == wanted
        or entry.path.startswith(f"{wanted}/")
        or fnmatch.fnmatchcase(entry.path, wanted)
    )


def main(arguments: Sequence[str] | None = None, reach: Reach | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Fetch the public data of the recipes, and lay them out.")
    parser.add_argument("folder", type=Path, help="the data root: POLYDISTILL_DATA of the recipes")
    parser.add_argument(
        "--for", dest="recipes", action="append", default=[], metavar="RECIPE", help="what a recipe reads"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATH",
        help="a path of the layout, or a pattern: data/ud, 'data/ner/*'",
    )
    parser.add_argument("--no-restricted", action="store_true", help="leave out what is for evaluation alone")
    parser.add_argument("--characters", type=int, default=CHARACTERS, help="of Wikipedia for each language")
    parser.add_argument("--list", action="store_true", help="say what would be fetched, and stop")
    given = parser.parse_args(arguments)
    try:
        wanted = choose(entries(given.characters), given.only, given.recipes)
    except (ValueError, UserError) as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [entry for entry in wanted if not (entry.restricted and given.no_restricted)]
    left = [entry.path for entry in wanted if entry not in chosen]
    if left:
        print(f"left out, restricted: {', '.join(left)}", file=sys.stderr)
    if given.list:
        for entry in chosen:
            print(describe(entry))
        return 0
    failed = fetch(given.folder, chosen, reach or Network())
    print(
        f"{failed} failed: run the same command again"
        if failed
        else f"done: export POLYDISTILL_DATA={given.folder}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
