"""What probes would read and cost, and what does not fit together, before anything is computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from polydistill.config import ProbeRecipe
from polydistill.config.probe import ProbedModel, TaggedData
from polydistill.corpora.tagged import TaggedSentence, read_tagged
from polydistill.errors import UserError
from polydistill.evaluation import split_into_windows
from polydistill.models import model_config
from polydistill.recipes.probe import probed_tokenizer

# Words whose first token is unknown have features that say nothing of them.
LARGE_UNKNOWN = 0.05
SAMPLE_SENTENCES = 300


def plan_probe(recipe: ProbeRecipe, console: Console) -> list[tuple[str, str]]:
    """Print sentences, words and tags of every file and what the features take on disk; returns (conflict, remedy)s."""
    found: list[tuple[str, str]] = []
    table = Table(box=box.SIMPLE)
    for heading in ("task", "language", "sentences", "words", "tags", "words to test"):
        table.add_column(heading, justify="left" if heading in ("task", "language") else "right")
    samples: dict[str, list[TaggedSentence]] = {}
    words = 0
    for task, languages in recipe.tasks.items():
        for language, data in languages.items():
            try:
                read = {split: _read(task, language, data, split) for split in ("train", "test")}
            except UserError as error:
                found.append(mended(error))
                continue
            tags = {
                split: Counter(tag for sentence in sentences for tag in sentence.tags)
                for split, sentences in read.items()
            }
            totals = {split: counts.total() for split, counts in tags.items()}
            words += sum(totals.values())
            table.add_row(
                task, language, f"{len(read['train']):,}", f"{totals['train']:,}", str(len(tags["train"])), f"{totals['test']:,}"
            )  # fmt: skip
            new = sorted(set(tags["test"]) - set(tags["train"]))
            if new:
                found.append((
                    f"tasks.{task}.{language}: {', '.join(new[:5])} stand in the test file alone, and no probe can guess them "
                    f"({sum(tags['test'][tag] for tag in new)} words)", "use files of one tag set"
                ))  # fmt: skip
            samples.setdefault(language, read["test"][:SAMPLE_SENTENCES])
    console.print(table)
    for name, settings in recipe.models.items():
        try:
            width = model_config(settings.model, revision=settings.revision).hidden_size
            console.print(
                f"{name}: {words:,} words × {width}: {words * width * 2 / 2**20:,.0f} MiB of features",
                markup=False,
            )
            found += [
                conflict
                for language in samples
                for conflict in _unknown(name, settings, language, samples[language])
            ]
        except UserError as error:
            found.append(mended(error))
    return found


def _read(task: str, language: str, data: TaggedData, split: str) -> list[TaggedSentence]:
    path = Path(data.train if split == "train" else data.test)
    return read_tagged(path, field=f"tasks.{task}.{language}.{split}", max_sentences=data.max_sentences)


def _unknown(
    name: str, settings: ProbedModel, language: str, sentences: list[TaggedSentence]
) -> list[tuple[str, str]]:
    tokenizer = probed_tokenizer(settings, language)
    unk = tokenizer.special_ids["unk"]
    windows = split_into_windows([sentence.words for sentence in sentences], tokenizer, tokenizer.max_length)
    firsts = [window.ids[place] == unk for window in windows for place in window.firsts]
    share = sum(firsts) / max(1, len(firsts))
    if share <= LARGE_UNKNOWN:
        return []
    return [(
        f"{name} reads {100 * share:.0f} % of the words of {language} as unknown",
        "compare it on languages that its vocabulary knows, or leave it out",
    )]  # fmt: skip


def mended(error: UserError) -> tuple[str, str]:
    """An error as a (conflict, remedy)."""
    value = "" if error.value is None else f" {error.value!r}"
    return f"{error.field}{value}: {error.reason}", error.remedy
