"""Trim a model's vocabulary to the text of some languages: select, cut, prove, write."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from polydistill.artefacts import artefact_or_nothing
from polydistill.config.shared import Source
from polydistill.corpora.sources import read_texts, source_identity
from polydistill.disk import Json, free_folder, hash_text, write_json, write_text
from polydistill.errors import CorpusError, RecipeError, TokenizerError
from polydistill.models.load import load_masked_lm, weights_fingerprint, weights_size
from polydistill.models.trim import prove_logits, trim_model
from polydistill.reports.card import trim_card
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.selection import Frequency, Selection, document_frequency, select
from polydistill.tokenization.trim import Agreement, compare_trimmed, trim_tokenizer
from polydistill.tokenization.wordpiece import save_loaded
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
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Json:
    """Write a model with only the pieces that texts use, prove that it computes what the original does, and
    print the proof.

    model         a folder or a hub name of a masked language model
    texts         language → files, folders or globs; a line of a text file is a document
    output        a new or empty folder; it loads with AutoModelForMaskedLM and AutoTokenizer
    min_document_share, size  see `polydistill.tokenization.select`
    verify_lines  how many lines per language to prove it on; they are held apart from the selection
    Returns the record that trim.json holds. Raises UserError for what cannot be read or trimmed; then, and
    if the proof fails, nothing is written.
    """
    output = free_folder(output)
    if verify_lines < 1:
        raise RecipeError(
            "verify_lines", verify_lines, "leaves nothing to prove the trim on", "give 1 or more"
        )
    sources = {
        language: [Source(path=path, documents="lines") for path in paths]
        for language, paths in texts.items()
    }
    if not sources:
        raise CorpusError("text", None, "no text is given", "pass --text LANGUAGE=PATH")
    # Missing files and too small a size are refused before the text is read.
    identity = {
        language: source_identity(files, field=f"text.{language}") for language, files in sources.items()
    }
    tokenizer = load_tokenizer(model, revision=revision)
    choice: Json = {"min_document_share": min_document_share, "size": size}
    select(tokenizer, {}, **choice)
    original = load_masked_lm(model, revision=revision, allow_pickle=allow_pickle, dtype="auto")
    frequencies, apart = _read(sources, tokenizer, verify_lines)
    selection = select(tokenizer, frequencies, **choice, fixed_id=original.config.pad_token_id)
    facts = {
        "model": Path(model).name if Path(model).exists() else model,
        "revision": revision,
        **choice,
        "documents": {language: frequency.num_documents for language, frequency in frequencies.items()},
        "original_weight_bytes": weights_size(model, revision=revision),
        "polydistill": __version__,
    }
    inputs = {
        **facts,
        "weights": weights_fingerprint(model, revision=revision),
        "tokenizer": tokenizer.fingerprint,
        "text": identity,
        "verify_lines": verify_lines,
    }
    with artefact_or_nothing(output, inputs) as folder:
        record = facts | _write(folder, tokenizer, original, selection, apart)
        write_json(folder / "trim.json", record)
        write_text(folder / "README.md", trim_card(record))
    _print(record, console)
    console.print(f"written to {output}", markup=False)
    return record


def _write(
    folder: Path,
    tokenizer: LoadedTokenizer,
    original: PreTrainedModel,
    selection: Selection,
    apart: Mapping[str, Sequence[str]],
) -> Json:
    """Write the trimmed tokenizer and model, read them again and prove them; returns the results."""
    trimmed = trim_tokenizer(tokenizer, selection)
    save_loaded(trimmed, folder, settings=tokenizer.settings)
    smaller = trim_model(original, selection.kept)
    smaller.save_pretrained(folder)
    write_json(folder / "kept.json", selection.kept.tolist())
    agreements, held = _prove_pieces(tokenizer, load_tokenizer(str(folder)), selection, apart)
    return {
        "kind": tokenizer.kind,
        "pieces": len(selection.kept),
        "reasons": selection.reasons,
        "original_pieces": tokenizer.size,
        "original_rows": original.config.vocab_size,
        "parameters": smaller.num_parameters(),
        "original_parameters": original.num_parameters(),
        "weight_bytes": weights_size(str(folder)),
        "languages": {language: agreement.as_dict() for language, agreement in agreements.items()},
        "logits": prove_logits(original, load_masked_lm(str(folder)), tokenizer, selection, held),
    }


def _read(
    sources: Mapping[str, Sequence[Source]], tokenizer: LoadedTokenizer, verify_lines: int
) -> tuple[dict[str, Frequency], dict[str, list[str]]]:
    """Per language, document frequencies and the lines that are held apart from them."""
    frequencies, apart = {}, {}
    for language, files in sources.items():
        held: list[tuple[int, str]] = []
        documents = hold_apart(read_texts(files, f"text.{language}"), held, verify_lines)
        frequencies[language] = document_frequency(tokenizer.backend, documents, tokenizer.size)
        apart[language] = sorted({text for _, text in held})
        if not frequencies[language].num_documents or not apart[language]:
            raise CorpusError(
                f"text.{language}",
                str(files[0].path),
                f"{frequencies[language].num_documents} lines to select on and {len(apart[language])} to "
                "prove it on are too few",
                f"give some hundred lines: about one in {HELD_APART_ONE_IN} is held apart",
            )
    return frequencies, apart


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


def _print(record: Json, console: Console) -> None:
    reasons, logits = record["reasons"], record["logits"]
    lines = [
        f"{record['original_pieces']:,} pieces → {record['pieces']:,}: "
        + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()),
        f"parameters {record['original_parameters']:,} → {record['parameters']:,}; weights "
        f"{record['original_weight_bytes']:,} → {record['weight_bytes']:,} bytes",
    ]
    for language, counts in record["languages"].items():
        proven = counts["kept_texts"] + counts["shortened_texts"]
        lines += [
            f"{language}: chosen on {record['documents'][language]:,} lines; of {counts['num_texts']:,} "
            f"others {counts['kept_texts']:,} have kept pieces alone, {counts['shortened_texts']:,} more "
            f"with some words left out: {counts['identical_texts']:,} of these {proven:,} get the same "
            "pieces",
            f"    tokens kept {counts['kept_tokens']:.2%}; tokens a word {counts['fertility']:.3f} → "
            f"{counts['trimmed_fertility']:.3f}; unknown tokens {counts['unknown_share']:.4%} → "
            f"{counts['trimmed_unknown_share']:.4%}; characters under them "
            f"{counts['unknown_characters']:.4%} → {counts['trimmed_unknown_characters']:.4%}",
        ]
    lines.append(
        f"logits of kept pieces: {logits['texts']} texts, {logits['tokens']:,} tokens, largest difference "
        f"{logits['max_difference']:.2g} (largest logit {logits['max_logit']:.1f}, float32)"
    )
    for line in lines:
        console.print(line, markup=False)
