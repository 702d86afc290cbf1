"""Preflight of probes: their data, the size of features, and conflicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from polydistill.config.probe import ProbedModel, ProbeRecipe, TaggedData
from polydistill.errors import UserError
from polydistill.models.load import model_config
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.stages.conflicts import Conflict, refusal, report_conflicts
from polydistill.pipelines.stages.planning import print_settings
from polydistill.tasks.tagged import TaggedSentence, TaggedText
from polydistill.tasks.words import LARGE_UNKNOWN, split_into_windows
from polydistill.tokenization.load import probed_tokenizer

SAMPLE_SENTENCES = 300
Task = TypeVar("Task", bound=str)


def plan_probe(recipe: ProbeRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, every file's sentences, words and tags, and the size of features; returns conflicts."""
    print_settings(recipe, console)
    samples, words, conflicts = plan_tasks(recipe.tasks, console)
    for name, settings in recipe.models.items():
        try:
            width = model_config(settings.model, revision=settings.revision).hidden_size
            console.print(
                f"{name}: {words:,} words × {width}: {words * width * 2 / 2**20:,.0f} MiB of features",
                markup=False,
            )
            conflicts += [
                conflict
                for language in samples
                for conflict in _unknown(name, settings, language, samples[language])
            ]
        except UserError as error:
            conflicts.append(refusal(error))
    return report_conflicts(conflicts, console)


def plan_tasks(
    tasks: Mapping[Task, Mapping[str, TaggedData]], console: Console, *, field: str = "tasks"
) -> tuple[dict[str, list[TaggedSentence]], int, list[Conflict]]:
    """Print sentences, words and tags of every file; returns (some sentences of each language, words,
    conflicts).

    field  of the tasks in the recipe
    """
    conflicts: list[Conflict] = []
    table = Table(box=box.SIMPLE)
    for heading in ("task", "language", "sentences", "words", "tags", "words to test"):
        table.add_column(heading, justify="left" if heading in ("task", "language") else "right")
    samples: dict[str, list[TaggedSentence]] = {}
    words = 0
    for task, languages in tasks.items():
        known: dict[str, set[str]] = {}
        for language, data in languages.items():
            text = TaggedText(f"{field}.{task}.{language}", task, language, data)
            try:
                text.read()
            except UserError as error:
                conflicts.append(refusal(error))
                continue
            tags = {
                split: Counter(tag for sentence in sentences for tag in sentence.tags)
                for split, sentences in text.sentences.items()
            }
            known[language] = set(tags["train"])
            totals = {split: counts.total() for split, counts in tags.items()}
            words += sum(totals.values())
            table.add_row(
                task,
                language,
                f"{len(text.sentences['train']):,}",
                f"{totals['train']:,}",
                str(len(tags["train"])),
                f"{totals['test']:,}",
            )
            new = sorted(set(tags["test"]) - set(tags["train"]))
            if new:
                conflicts.append(
                    Conflict(
                        f"{text.field}: {', '.join(new[:5])} are in the test file only, so no probe can "
                        f"predict them ({sum(tags['test'][tag] for tag in new)} words)",
                        "use files of one tag set",
                    )
                )
            samples.setdefault(language, text.sentences["test"][:SAMPLE_SENTENCES])
        conflicts += _other_tags(f"{field}.{task}", known)
    console.print(table)
    return samples, words, conflicts


def _other_tags(field: str, known: Mapping[str, set[str]]) -> list[Conflict]:
    """Languages whose training file lacks tags of others: a probe trained on it can never predict those."""
    every = set().union(*known.values())
    return [
        Conflict(
            f"{field}.{language}: its training file has no {', '.join(sorted(every - tags)[:5])}, which "
            "others have: a probe from this language can never predict them",
            "use files of one tag set, or read its zero-shot scores with that in mind",
        )
        for language, tags in known.items()
        if every - tags
    ]


def _unknown(
    name: str, settings: ProbedModel, language: str, sentences: list[TaggedSentence]
) -> list[Conflict]:
    tokenizer = probed_tokenizer(settings, language)
    unk = tokenizer.special_ids["unk"]
    windows = split_into_windows([sentence.words for sentence in sentences], tokenizer, tokenizer.max_length)
    firsts = [window.ids[place] == unk for window in windows for place in window.firsts]
    share = sum(firsts) / max(1, len(firsts))
    if share <= LARGE_UNKNOWN:
        return []
    return [
        Conflict(
            f"{name} reads {100 * share:.0f} % of the words of {language} as unknown",
            "compare it on languages that its vocabulary knows, or leave it out",
        )
    ]
