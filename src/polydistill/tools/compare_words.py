"""Students with different vocabularies side by side: nats per character of the same hidden words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.artefacts import ARTEFACTS, STAMP, artefact_places
from polydistill.config.shared import Evaluation, Masking
from polydistill.corpora.examples import Examples
from polydistill.disk import read_json
from polydistill.errors import RunFolderError
from polydistill.evaluation.mlm import measure
from polydistill.evaluation.readers import EVALUATION_SEED, covered, hidden, text_files
from polydistill.evaluation.uncertainty import Difference, paired_ratio
from polydistill.evaluation.verdicts import starred
from polydistill.masking import mask_texts
from polydistill.models.inputs import length_batches
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device, resolve_dtype
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer

MAX_LENGTH = 128


class Words(NamedTuple):
    """A student's likelihood of hidden words: [E] nats of each example, [E] characters of the words."""

    nats: npt.NDArray[np.float64]
    characters: npt.NDArray[np.int64]

    @property
    def per_character(self) -> float:
        """Nats per character."""
        return float(self.nats.sum() / self.characters.sum())


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


def difference(one: Words, other: Words) -> Difference:
    """One student's nats per character minus another's, on the same words."""
    return paired_ratio(one.nats - other.nats, one.characters)


def measure_words(
    folders: Sequence[Path], language: str, examples: Examples, settings: Evaluation
) -> list[Words]:
    """Each run's student on the same hidden words of a text."""
    chosen = examples.first(settings.max_examples)
    texts, ids = examples.texts(chosen), [int(examples.ids[row]) for row in chosen]
    tokenizers = [_tokenizer(folder, language) for folder in folders]
    masking = hidden(Masking(unit="words"), settings.mask_probability)
    measured = []
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        model = load_masked_lm(str(folder / "student" / "final"), name=folder.name).to(device())
        length = min(tokenizer.max_length, MAX_LENGTH)
        masked = mask_texts(
            texts,
            ids,
            tokenizer,
            max_length=length,
            masking=masking,
            seed=EVALUATION_SEED,
            beside=[other for other in tokenizers if other is not tokenizer],
        )
        result = measure(
            model,
            masked,
            pad_id=tokenizer.special_ids["pad"],
            batches=length_batches([len(each.input_ids) for each in masked], settings.batch_tokens),
            dtype=resolve_dtype(settings.precision),
        )
        ends = np.cumsum([len(each.positions) for each in masked])
        totals = np.concatenate([[0.0], np.cumsum(result.losses)])
        nats = totals[ends] - totals[np.concatenate([[0], ends[:-1]])]
        measured.append(Words(nats, covered(texts, tokenizer, masked, length)))
    # Where one student's sequence ends before another's, words are hidden from it alone.
    same = np.logical_and.reduce([each.characters == measured[0].characters for each in measured])
    return [Words(each.nats[same], each.characters[same]) for each in measured]


def _tokenizer(folder: Path, language: str) -> LoadedTokenizer:
    final = folder / "student" / "final"
    own = final / "tokenizer" / language
    return load_tokenizer(str(final), tokenizer=str(own) if own.is_dir() else None)


def _shared_corpora(folders: Sequence[Path]) -> Mapping[str, Path]:
    """Language → its corpus; RunFolderError for runs of other text, and for folders without a student."""
    known: dict[str, str] = {}
    first: dict[str, Path] = {}
    for folder in folders:
        if not (folder / ARTEFACTS).is_file() or not (folder / "student" / "final").is_dir():
            raise RunFolderError(
                "run", str(folder), "has no student", "name the folder of a run that has trained one"
            )
        places = artefact_places(folder)
        corpora = {
            name.removeprefix("corpora/"): place
            for name, place in places.items()
            if name.startswith("corpora/")
        }
        prints = {
            language: str(read_json(corpus / STAMP, dict)["fingerprint"])
            for language, corpus in corpora.items()
        }
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
