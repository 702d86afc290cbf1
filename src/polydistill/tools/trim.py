"""Trim a model's vocabulary to the text of some languages: select, cut, prove, write."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from polydistill.artefacts import artefact_or_nothing
from polydistill.config.shared import Source
from polydistill.corpora.sources import read_texts, source_identity
from polydistill.disk import Json, free_folder, hash_text, write_json, write_text
from polydistill.errors import CorpusError, RecipeError, TokenizerError
from polydistill.models.kinds import MASKED_LM
from polydistill.models.trim import prove_logits, trim_model
from polydistill.models.trim_proof import prove_outputs, prove_weights
from polydistill.reports.trim_card import trim_card, trim_lines
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.scripts import check_scripts, count_characters, script_shares, written_scripts
from polydistill.tokenization.selection import Frequency, Selection, document_frequency, select
from polydistill.tokenization.trim import Agreement, compare_trimmed, trim_tokenizer
from polydistill.tools.folders import ModelFolder, open_folder
from polydistill.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# One line in this many, by its hash, takes no part in the selection; the proof uses some of these.
HELD_APART_ONE_IN = 20


def trim_vocabulary(
    model: str,
    texts: Mapping[str, Sequence[str]],
    output: Path,
    console: Console,
    *,
    min_document_share: float | None = None,
    size: int | None = None,
    verify_lines: int = 500,
    drop_scripts: bool = False,
    keep_scripts: Sequence[str] = (),
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Json:
    """Write a model with only the pieces that texts use, prove that it computes what the original does, and
    print the proof.

    model         a folder or a hub name: a masked language model, an encoder without a head, a token or
                  sequence classifier, a question answerer, a sentence-transformers folder, or GLiNER's
    texts         language → files, folders or globs; a line of a text file is a document
    output        a new or empty folder; it loads as the original does
    min_document_share, size  see `polydistill.tokenization.select`
    drop_scripts  give up single characters of scripts that the text does not write (see
                  `polydistill.tokenization.scripts`); text in them becomes unknown
    keep_scripts  with drop_scripts: names of scripts that stay all the same
    verify_lines  how many lines per language to prove it on; they are held apart from the selection
    Returns the record that trim.json holds. Raises UserError for what cannot be read or trimmed; then, and
    if the proof fails, nothing is written.
    """
    output = free_folder(output)
    _check(verify_lines, drop_scripts, keep_scripts)
    sources, identity = _sources(texts)
    source = open_folder(model, revision=revision, allow_pickle=allow_pickle)
    tokenizer = source.tokenizer
    choice: Json = {"min_document_share": min_document_share, "size": size}
    # How many characters stay is known only after the text is read, if scripts may go.
    select(tokenizer, {}, **(choice | {"size": None} if drop_scripts else choice))
    original = source.load()
    read = _read(sources, tokenizer, verify_lines, drop_scripts)
    scripts = written_scripts(read.scripts.values(), keep_scripts) if drop_scripts else None
    selection = select(
        tokenizer, read.frequencies, **choice, fixed_id=original.config.pad_token_id, scripts=scripts
    )
    facts = {
        "model": Path(model).name if Path(model).exists() else model,
        "revision": revision,
        "layout": source.layout,
        "task": source.kind.name,
        **choice,
        "documents": {language: each.num_documents for language, each in read.frequencies.items()},
        "original_weight_bytes": source.size(),
        "polydistill": __version__,
    }
    inputs = {
        **facts,
        "weights": source.identity(),
        "tokenizer": tokenizer.fingerprint,
        "text": identity,
        "verify_lines": verify_lines,
        "scripts": sorted(scripts) if scripts is not None else None,
    }
    with artefact_or_nothing(output, inputs) as folder:
        record = facts | _write(folder, source, original, selection, read)
        write_json(folder / "trim.json", record)
        write_text(folder / "README.md", trim_card(record))
    for line in trim_lines(record):
        console.print(line, markup=False)
    console.print(f"written to {output}", markup=False)
    return record


def _check(verify_lines: int, drop_scripts: bool, keep_scripts: Sequence[str]) -> None:
    if verify_lines < 1:
        raise RecipeError(
            "verify_lines", verify_lines, "leaves nothing to prove the trim on", "give 1 or more"
        )
    check_scripts(keep_scripts, "keep_scripts")
    if keep_scripts and not drop_scripts:
        raise RecipeError(
            "keep_scripts", list(keep_scripts), "all scripts are kept", "set drop_scripts, or leave it out"
        )


def _sources(texts: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[Source]], Json]:
    """(language → its files, what identifies them). Missing files are refused before any text is read."""
    sources = {
        language: [Source(path=path, documents="lines") for path in paths]
        for language, paths in texts.items()
    }
    if not sources:
        raise CorpusError("text", None, "no text is given", "pass --text LANGUAGE=PATH")
    return sources, {
        language: source_identity(files, field=f"text.{language}") for language, files in sources.items()
    }


def _write(
    folder: Path, source: ModelFolder, original: PreTrainedModel, selection: Selection, read: Read
) -> Json:
    """Write the trimmed tokenizer and model, read them again and prove them; returns the results."""
    tokenizer = source.tokenizer
    smaller = trim_model(original, selection.kept)
    sizes = {"parameters": smaller.num_parameters(), "original_parameters": original.num_parameters()}
    source.write(folder, trim_tokenizer(tokenizer, selection), smaller, selection)
    del smaller
    write_json(folder / "kept.json", selection.kept.tolist())
    trimmed, written = source.read(folder)
    agreements, held = _prove_pieces(tokenizer, trimmed, selection, read.apart)
    record = {
        "kind": tokenizer.kind,
        "pieces": len(selection.kept),
        "reasons": selection.reasons,
        "original_pieces": tokenizer.size,
        "original_rows": original.config.vocab_size,
        **sizes,
        "weight_bytes": source.written_size(folder),
        "languages": {language: agreement.as_dict() for language, agreement in agreements.items()},
        "weights": prove_weights(original, written, selection.kept, tokenizer.name),
        "elsewhere": source.elsewhere(folder),
        "left_out": source.unused,
    }
    if read.scripts:
        record["scripts"] = _scripts(tokenizer, trimmed, selection, read.scripts)
    written = written.float()
    if source.kind == MASKED_LM:
        return record | {"logits": prove_logits(original, written, tokenizer, selection, held)}
    return record | {"outputs": prove_outputs(original, written, source.kind, tokenizer, selection, held)}


def _scripts(
    original: LoadedTokenizer,
    trimmed: LoadedTokenizer,
    selection: Selection,
    shares: Mapping[str, Mapping[str, float]],
) -> Json:
    """Script that was given up → its share of the text's letters (the largest of a language), the number of
    its pieces, and how many of their strings are unknown now.
    """
    unknown, backend = trimmed.special_ids["unk"], trimmed.backend
    found: Json = {}
    for script, ids in sorted(selection.dropped.items(), key=lambda item: -len(item[1])):
        strings = [surface.surface for surface in (original.pieces[index] for index in ids) if surface]
        encodings = backend.encode_batch(strings, add_special_tokens=False)
        found[script] = {
            "share": max(share.get(script, 0.0) for share in shares.values()),
            "pieces": len(ids),
            "unknown": sum(unknown in encoding.ids for encoding in encodings),
        }
    return found


class Read(NamedTuple):
    """What the texts say, by language.

    frequencies  of pieces; apart  lines that are held apart from them
    scripts      shares of scripts, if they are asked for
    """

    frequencies: dict[str, Frequency]
    apart: dict[str, list[str]]
    scripts: dict[str, dict[str, float]]


def _read(
    sources: Mapping[str, Sequence[Source]], tokenizer: LoadedTokenizer, verify_lines: int, scripts: bool
) -> Read:
    frequencies, apart, shares = {}, {}, {}
    for language, files in sources.items():
        held: list[tuple[int, str]] = []
        characters: Counter[str] = Counter()
        documents = hold_apart(read_texts(files, f"text.{language}"), held, verify_lines)
        if scripts:
            documents = count_characters(documents, characters)
        frequencies[language] = document_frequency(tokenizer.backend, documents, tokenizer.size)
        apart[language] = sorted({text for _, text in held})
        if scripts:
            shares[language] = script_shares(characters)
        if not frequencies[language].num_documents or not apart[language]:
            raise CorpusError(
                f"text.{language}",
                str(files[0].path),
                f"{frequencies[language].num_documents} lines to select on and {len(apart[language])} to "
                "prove it on are too few",
                f"give some hundred lines: about one in {HELD_APART_ONE_IN} is held apart",
            )
    return Read(frequencies, apart, shares)


def hold_apart(texts: Iterable[str], held: list[tuple[int, str]], limit: int) -> Iterator[str]:
    """Yield the texts to select on; of the others, those with the highest hashes go to `held`.

    Only a text's content decides, not its position: no text is on both sides.
    """
    for text in texts:
        key = hash_text(text)
        if key % HELD_APART_ONE_IN:
            yield text
        elif (key, text) not in held:
            heapq.heappush(held, (key, text))
            if len(held) > limit:
                heapq.heappop(held)


def _prove_pieces(
    original: LoadedTokenizer,
    trimmed: LoadedTokenizer,
    selection: Selection,
    apart: Mapping[str, Sequence[str]],
) -> tuple[dict[str, Agreement], dict[str, list[str]]]:
    """Per language, how the tokenizers agree, and texts whose pieces are all kept."""
    agreements, held = {}, {}
    for language, texts in apart.items():
        agreements[language], held[language], differing = compare_trimmed(
            original, trimmed.backend, selection, texts
        )
        if differing:
            raise TokenizerError(
                "model",
                original.name,
                f"{len(differing)} of {len(held[language])} texts of {language} whose pieces are all kept "
                f"get other pieces from the trimmed tokenizer, such as {differing[0][:60]!r}",
                "please report this with its tokenizer.json; nothing was written",
            )
        if not held[language]:
            raise RecipeError(
                f"text.{language}",
                None,
                f"none of {len(texts)} lines that were held apart has a word whose pieces are all kept: "
                "nothing can be proven",
                "keep more pieces (a larger size, a lower min_document_share) or give more text",
            )
    return agreements, held
