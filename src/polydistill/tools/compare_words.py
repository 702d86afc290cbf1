"""Students with different vocabularies side by side: nats per character of the same hidden words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.config.shared import Evaluation
from polydistill.errors import RunFolderError
from polydistill.evaluation.readers import text_files
from polydistill.evaluation.verdicts import starred
from polydistill.evaluation.words import corpora_prints, difference, measure_words, student_corpora


def compare_words(
    folders: Sequence[Path], console: Console, *, settings: Evaluation | None = None
) -> list[str]:
    """Print the students' nats per character of hidden words, for each language and text, and differences
    from the first run's with 95 % intervals; returns the runs' names.

    folders   runs whose corpora are the same: no student was trained on the held-out text
    settings  how much text, and how many words are hidden
    All students hide the same words, which no tokenizer's pieces cut across. A student with tokenizers of its
    languages reads each with the language's own.
    """
    settings = settings or Evaluation()
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    corpora = _shared_corpora(folders)
    table = Table(box=box.SIMPLE)
    table.add_column("", overflow="fold")
    for heading in ("nats/char", "difference", "from", "to"):
        table.add_column(heading, no_wrap=True, justify="right")
    measured = [
        (language, text, measure_words(folders, language, examples, settings))
        for language, corpus in corpora.items()
        for text, examples in text_files(corpus).items()
    ]
    differences = [[difference(each, words[0]) for each in words[1:]] for _, _, words in measured]
    stars = iter(starred([value._asdict() for each in differences for value in each]))
    for (language, text, words), of_text in zip(measured, differences, strict=True):
        characters = int(words[0].characters.sum())
        table.add_row(f"[bold]{escape(f'{language}, {text}: {characters:,} characters')}[/bold]")
        table.add_row(f"  {escape(names[0])}", f"{words[0].per_character:.3f}")
        for name, each, value in zip(names[1:], words[1:], of_text, strict=True):
            table.add_row(
                f"  {escape(name)}",
                f"{each.per_character:.3f}",
                f"{value.value:+.3f}" + ("*" if next(stars) else " "),
                f"{value.low:+.3f}",
                f"{value.high:+.3f}",
            )
    console.print(table)
    console.print(
        f"Nats per character of hidden words (less is better), the difference from {names[0]}, and its 95 % "
        "interval by a paired bootstrap over examples, * where it differs from zero after Holm's correction "
        "for all that are shown. The interval reflects sampling of the text, not variation between seeds.",
        markup=False,
    )
    return names


def _shared_corpora(folders: Sequence[Path]) -> Mapping[str, Path]:
    """Language → its corpus; RunFolderError for runs of other text, and for folders without a student."""
    known: dict[str, str] = {}
    first: dict[str, Path] = {}
    for folder in folders:
        corpora = student_corpora(folder)
        if not corpora:
            raise RunFolderError(
                "run", str(folder), "has no student", "name the folder of a run that has trained one"
            )
        prints = corpora_prints(corpora)
        if not first:
            first, known = corpora, prints
        elif prints != known:
            raise RunFolderError(
                "run",
                str(folder),
                f"has other corpora than {folders[0]}: what one holds out, the other may have learned",
                "compare runs of the same text, teachers' tokenizers and seed",
            )
    return first
