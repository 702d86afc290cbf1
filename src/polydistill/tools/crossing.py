"""Vocabularies of a student's own: learn one from text, and see how much of stored labels it can say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.artefacts import artefact_or_nothing
from polydistill.config.shared import Source
from polydistill.corpora.examples import Examples
from polydistill.corpora.sources import read_texts, source_identity
from polydistill.disk import free_folder
from polydistill.errors import CorpusError, StoreError
from polydistill.pipelines.stages.tokenizer import balanced
from polydistill.scoring.crossing import UNCUT, Coverage, Crossing, cross
from polydistill.store.reader import Store
from polydistill.store.schema import MANIFEST
from polydistill.tokenization.load import LoadedTokenizer, load_vocabulary
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.wordpiece import ACCENTED_SCRIPTS, check_filled, save_tokenizer, train_wordpiece
from polydistill.tools.inspect import teacher_tokenizer

# Of a store, evenly spaced: shares are known to within a percent.
MEASURED_EXAMPLES = 2000
# Of a learned vocabulary, where a model does not limit it.
MAX_LENGTH = 512


def learn_vocabulary(
    texts: Mapping[str, Sequence[str]],
    output: Path,
    console: Console,
    *,
    size: int,
    lowercase: bool = True,
    smoothing_alpha: float = 0.7,
) -> None:
    """Write the folder of a WordPiece that is learned from several languages' text.

    texts   language → files, folders or globs; a line of a text file is a document
    output  a new or empty folder
    size    number of pieces
    Raises TokenizerError if the text does not fill as many pieces.
    """
    output = free_folder(output)
    if not texts:
        raise CorpusError("text", None, "no text is given", "pass --text LANGUAGE=PATH")
    sources = {
        language: [Source(path=path, documents="lines") for path in paths]
        for language, paths in texts.items()
    }
    inputs = {
        "size": size,
        "lowercase": lowercase,
        "smoothing_alpha": smoothing_alpha,
        "text": {
            language: source_identity(files, field=f"text.{language}") for language, files in sources.items()
        },
    }
    readers: dict[str, Callable[[], Iterable[str]]] = {
        language: partial(read_texts, files, f"text.{language}") for language, files in sources.items()
    }
    learned = train_wordpiece(
        lambda: balanced(readers, smoothing_alpha),
        size=size,
        lowercase=lowercase,
        strip_accents=list(ACCENTED_SCRIPTS),
    )
    check_filled(learned, size, field="size")
    with artefact_or_nothing(output, inputs) as folder:
        save_tokenizer(learned, folder, specials=STUDENT_SPECIALS, max_length=MAX_LENGTH)
    console.print(f"WordPiece of {size:,} pieces, written to {output}", markup=False)


def inspect_crossing(
    folder: Path, vocabulary: str, num_examples: int, tokenizer: str, console: Console
) -> None:
    """Print how much of stored labels a vocabulary can say, for each store below a folder, and examples.

    folder     a store, or a folder with several, such as a run's
    tokenizer  the teacher's folder or hub name; empty: from the run's recipe
    """
    student = load_vocabulary(vocabulary, field="--vocabulary")
    stores = [Store(path.parent) for path in sorted(folder.rglob(MANIFEST))]
    # Labels that a merge has already brought into its student's vocabulary are not the teacher's.
    stores = [store for store in stores if "crossed" not in store.identity]
    if not stores:
        raise StoreError(
            "store", str(folder), "holds no store (no manifest.json)", "name a folder such as runs/NAME/store"
        )
    table = Table(title=escape(f"labels in {vocabulary} ({student.size:,} pieces)"))
    table.add_column("language")
    table.add_column("teacher")
    for title in (
        "tokens, of the teacher's",
        "masked pieces with candidates",
        "with the text alone",
        "gold",
        "stored probability expressible",
    ):
        table.add_column(title, justify="right")
    shown = []
    for store in stores:
        language, teacher = store.identity["language"], store.identity["teacher"]
        coverage, lines = _measure(
            store, teacher_tokenizer(store.folder, teacher, tokenizer), student, num_examples
        )
        shown += lines
        positions, stored = max(1, coverage.positions), max(1e-9, coverage.stored)
        table.add_row(
            escape(language),
            escape(teacher),
            f"{coverage.student_tokens / max(1, coverage.teacher_tokens):.2f}",
            f"{coverage.candidates / positions:.1%}",
            f"{coverage.likelihood / positions:.1%}",
            f"{coverage.gold / positions:.1%}",
            f"{coverage.expressible / stored:.1%}",
        )
    console.print(table)
    for line in shown:
        console.print(line, markup=False)


def _measure(
    store: Store, teacher: LoadedTokenizer, student: LoadedTokenizer, num_examples: int
) -> tuple[Coverage, list[str]]:
    """(what becomes of a store's labels, lines with its first examples)."""
    examples = corpus_of(store)
    chosen = np.unique(np.linspace(0, len(store) - 1, min(len(store), MEASURED_EXAMPLES)).astype(int))
    rows = [store.row(int(index)) for index in chosen]
    try:
        texts = examples.texts(examples.rows_of([row.example for row in rows]))
    except KeyError as error:
        raise StoreError(
            "store",
            str(store.folder),
            f"holds example {error.args[0]:016x}, which is not in the run's text",
            "the run's corpora are of other text: run its corpora stage again",
        ) from error
    crossing = Crossing.prepare(teacher, student, (int(store.identity["max_length"]), UNCUT))
    made, coverage = cross(rows, texts, crossing, seed=0)
    lines = []
    for example in made[:num_examples]:
        decoded = student.backend.decode(example.input_ids.tolist(), skip_special_tokens=False)
        lines.append(f"\n{example.example:016x}  {decoded}")
        for gold, ids, logprobs in zip(example.gold, example.top_ids, example.top_logprobs, strict=True):
            guesses = "  ".join(
                f"{student.backend.id_to_token(int(piece))} {np.exp(float(logprob)):.2f}"
                for piece, logprob in zip(ids, logprobs, strict=True)
                if np.isfinite(logprob)
            )
            lines.append(f"  {student.backend.id_to_token(int(gold))}: {guesses}")
    return coverage, lines


def corpus_of(store: Store) -> Examples:
    """The training text of a store in a run's folder; StoreError where there is none."""
    path = store.folder.parent.parent.parent / "corpora" / store.folder.parent.name / "train.arrow"
    if not path.is_file():
        raise StoreError(
            "store",
            str(store.folder),
            "has no text beside it: labels are matched by the characters of the text",
            "name a store in the folder of the run that made it, runs/NAME/store/LANGUAGE/TEACHER",
        )
    return Examples(path)
