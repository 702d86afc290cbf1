"""The tokenizer stage of an extraction: the pieces that the language's text uses, and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from polydistill.corpora.examples import Examples
from polydistill.disk import write_json
from polydistill.errors import TokenizerError
from polydistill.pipelines.extract.state import KEPT, TRIM_FIELDS, Extract, teacher_config, trim_choice
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.selection import Selection, document_frequency, select
from polydistill.tokenization.trim import compare_trimmed, trim_tokenizer
from polydistill.tokenization.wordpiece import save_loaded

# Held-out examples that the trimmed tokenizer is compared on.
COMPARED_TEXTS = 500
# Training examples per read.
BATCH = 1000


def build_tokenizer(state: Extract) -> None:
    """Write the student's tokenizer, with kept.json (its ids → the teacher's) if pieces are dropped."""
    recipe, run = state.recipe, state.run
    inputs = {
        "stage": "tokenizer",
        "teacher": state.original.fingerprint,
        "trim": trim_choice(recipe) if state.trims else None,
        # The text decides which pieces stay; this stage uses it for nothing else.
        "corpus": state.corpus.fingerprint if state.trims else None,
    }
    run.make("tokenizer", inputs, partial(_write_trimmed if state.trims else _write_whole, state))


def _write_whole(state: Extract, folder: Path) -> None:
    save_teachers(state.original, folder)
    write_json(folder / "vocabulary.json", {"teacher": state.original.size, "size": state.original.size})


def _write_trimmed(state: Extract, folder: Path) -> None:
    recipe, run, corpus = state.recipe, state.run, state.corpus.path
    frequency = document_frequency(
        state.original.backend, _lines(Examples(corpus / "train.arrow")), state.original.size
    )
    teacher = teacher_config(recipe)
    selection = select(
        state.original,
        {recipe.language: frequency},
        **trim_choice(recipe),
        fixed_id=teacher.pad_token_id,
        fields=TRIM_FIELDS,
    )
    trimmed = trim_tokenizer(state.original, selection)
    save_teachers(trimmed, folder)
    write_json(folder / KEPT, selection.kept.tolist())
    agreement = _compare(state, trimmed, selection, held_out_texts(corpus))
    vocabulary = {
        "teacher": state.original.size,
        "size": len(selection.kept),
        "reasons": selection.reasons,
        "lines": frequency.num_documents,
        "held_out": agreement,
    }
    write_json(folder / "vocabulary.json", vocabulary)
    run.say(
        f"tokenizer: {len(selection.kept):,} of {state.original.size:,} pieces stay ("
        + ", ".join(f"{count:,} {reason}" for reason, count in selection.reasons.items())
        + ")"
    )
    run.say(
        f"  held-out text: {agreement['kept_tokens']:.2%} of tokens kept, {agreement['fertility']:.3f} → "
        f"{agreement['trimmed_fertility']:.3f} tokens a word, unknown {agreement['unknown_share']:.4%} → "
        f"{agreement['trimmed_unknown_share']:.4%}"
    )


def held_out_texts(corpus: Path) -> list[str]:
    """Texts that the selection did not see."""
    examples = Examples(corpus / "held_out.arrow")
    return examples.texts(examples.first(COMPARED_TEXTS))


def _compare(
    state: Extract, trimmed: LoadedTokenizer, selection: Selection, texts: list[str]
) -> dict[str, float]:
    agreement, held, differing = compare_trimmed(state.original, trimmed.backend, selection, texts)
    if differing:
        raise TokenizerError(
            "teacher",
            state.original.name,
            f"{len(differing)} of {len(held)} texts whose pieces are all kept get other pieces from the "
            f"trimmed tokenizer, such as {differing[0][:60]!r}",
            "set trim.when: none, and please report this with its tokenizer.json",
        )
    return agreement.as_dict()


def save_teachers(tokenizer: LoadedTokenizer, folder: Path) -> None:
    """Write the teacher's tokenizer, whole or trimmed, for a student."""
    # A student has one token type: the ids of others would have no embedding row.
    names = tokenizer.settings.get("model_input_names", ["input_ids", "attention_mask"])
    settings = {
        **tokenizer.settings,
        "model_input_names": [name for name in names if name != "token_type_ids"],
    }
    save_loaded(tokenizer, folder, settings=settings)


def _lines(examples: Examples) -> Iterator[str]:
    """The lines of all examples: a document is a line here, as for `vocab trim`."""
    for start in range(0, len(examples), BATCH):
        for text in examples.texts(slice(start, min(start + BATCH, len(examples)))):
            yield from text.split("\n")
