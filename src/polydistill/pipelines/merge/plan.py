"""Preflight of a merge: sizes, times and conflicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from polydistill.config.merge import LEARNED, MergeRecipe
from polydistill.config.shared import Arguments
from polydistill.models.precision import device, resolve_dtype
from polydistill.models.student import build_student
from polydistill.pipelines.merge.state import check_teacher, load_teacher, scored_shares
from polydistill.pipelines.merge.student import Vocabulary, resolve_student
from polydistill.pipelines.merge.vocabulary import check_spelling, describe, sampled_vocabulary
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.stages.conflicts import Conflict, collect, report_conflicts
from polydistill.pipelines.stages.engine import plan_engine
from polydistill.pipelines.stages.languages import wrong_languages
from polydistill.pipelines.stages.planning import (
    LanguageSize,
    further_texts,
    label_coverage,
    mask_conflicts,
    measure_text,
    print_settings,
    scoring_speed,
    step_seconds,
)
from polydistill.pipelines.stages.scoring import estimated_store
from polydistill.reports.progress import clock
from polydistill.tokenization.drift import compare_segmentation, segmentation
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.student import language_tokenizer, union_tokenizer
from polydistill.tokenization.union import Planned, Union, unite
from polydistill.training.arguments import check_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGE_VOCABULARY = 300_000
LARGE_DRIFT = 0.10
LARGE_UNKNOWN = 0.02


def plan_merge(recipe: MergeRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, sizes and times of a merge; returns its conflicts.

    Leaves out what depends on missing files.
    """
    arguments = check_arguments(recipe.training)
    print_settings(recipe, console, training=arguments)
    problems = [*plan_engine(recipe, console), *further_texts(recipe), *wrong_languages(recipe)]
    tokenizers = collect(
        recipe.teachers,
        lambda name, t: load_tokenizer(t.model, name=name, tokenizer=t.tokenizer, revision=t.revision),
        problems,
    )
    sizes = collect(
        recipe.languages,
        lambda language, s: measure_text(
            s.text,
            f"languages.{language}.text",
            [tokenizers[t] for t in s.teachers if t in tokenizers],
            recipe.corpora.block_lines,
        ),
        problems,
    )
    if len(tokenizers) == len(recipe.teachers) and len(sizes) == len(recipe.languages):
        union = unite(list(tokenizers.values()))
        examples = {
            language: max(1, size.tokens // recipe.corpora.max_length) for language, size in sizes.items()
        }
        # Above 1 with several draws of masks.
        shares = {
            language: sum(parts) for language, parts in scored_shares(recipe, arguments, examples).items()
        }
        _print_languages(recipe, sizes, shares, tokenizers, console)
        texts = {language: size.texts for language, size in sizes.items()}
        made = collect(
            {"vocabulary": recipe.student},
            lambda _, s: sampled_vocabulary(recipe, tokenizers, texts) if s.has_own_vocabulary else None,
            problems,
        )
        if "vocabulary" not in made:
            return report_conflicts(problems, console)
        own = made["vocabulary"]
        vocabulary = union if own is None else _planned(recipe, own)
        students = collect({"student": recipe}, lambda _, r: _print_student(r, vocabulary, console), problems)
        refused: list[Conflict] = []
        collect(tokenizers, lambda _, tokenizer: check_teacher(recipe, tokenizer), refused)
        # A refused run ends before it scores: nothing to time.
        if students and not refused:
            timed = {"times": students["student"]}
            found = collect(
                timed,
                lambda _, s: _print_times(recipe, tokenizers, own, sizes, shares, s, arguments, console),
                problems,
            )
            problems += found.get("times", [])
        problems += conflicts(recipe, tokenizers, union, texts, own)
    return report_conflicts(problems, console)


def _planned(recipe: MergeRecipe, own: LoadedTokenizer) -> Planned:
    """The student's vocabulary, of the size that the recipe asks for where a sample fills fewer pieces."""
    learned = recipe.student.vocabulary == LEARNED
    return Planned(recipe.student.tokenizer.size if learned else own.size, own.special_ids)


def conflicts(
    recipe: MergeRecipe,
    tokenizers: dict[str, LoadedTokenizer],
    union: Union,
    texts: dict[str, list[str]],
    own: LoadedTokenizer | None = None,
) -> list[Conflict]:
    """Settings that do not fit together, each with its remedy.

    own  the student's vocabulary, if it is not the union
    """
    used = {teacher for settings in recipe.languages.values() for teacher in settings.teachers}
    problems = [
        Conflict(
            f"teacher {name} has no language: its pieces enlarge the vocabulary and it teaches nothing",
            f"name it under a language's `teachers`, or remove teachers.{name}",
        )
        for name in sorted(set(recipe.teachers) - used)
    ]
    problems += _casing(recipe, tokenizers)
    collect(tokenizers, lambda _, tokenizer: check_teacher(recipe, tokenizer), problems)
    if own is not None:
        return problems + _own_conflicts(recipe, tokenizers, own, texts)
    if union.size > LARGE_VOCABULARY:
        problems.append(
            Conflict(
                f"the union has {union.size:,} pieces: the embeddings would outweigh the encoder",
                "use a factorised embedding (student.model_type: electra, student.config.embedding_size: "
                "256)",
            )
        )
    return problems + _drift(recipe, tokenizers, union, texts)


def _casing(recipe: MergeRecipe, tokenizers: dict[str, LoadedTokenizer]) -> list[Conflict]:
    """Teachers that change text in different ways: those of a language, and all of them."""
    problems: list[Conflict] = []
    for language, settings in recipe.languages.items():
        own = [tokenizers[name] for name in settings.teachers]
        for what, values in (
            ("lower-case", [tokenizer.lowercases for tokenizer in own]),
            ("strip accents from", [tokenizer.strips_accents for tokenizer in own]),
        ):
            if len(set(values)) > 1:
                yes = [t.name for t, value in zip(own, values, strict=True) if value]
                no = [t.name for t, value in zip(own, values, strict=True) if not value]
                problems.append(
                    Conflict(
                        f"languages.{language}: {', '.join(yes)} {what} text and {', '.join(no)} do not",
                        f"use teachers that agree, or set languages.{language}.use to one of them",
                    )
                )
    cased = [name for name, tokenizer in tokenizers.items() if not tokenizer.lowercases]
    whole = not recipe.student.has_own_vocabulary
    if whole and 0 < len(cased) < len(tokenizers) and recipe.student.tokenizer.lowercase is None:
        problems.append(
            Conflict(
                f"{', '.join(cased)} keep case and the other teachers do not: the union tokenizer keeps it, "
                "so the others' languages lose pieces to capitals",
                "set student.tokenizer.lowercase, or read each language by tokenizer/<language>",
            )
        )
    return problems


def _own_conflicts(
    recipe: MergeRecipe,
    tokenizers: dict[str, LoadedTokenizer],
    own: LoadedTokenizer,
    texts: dict[str, list[str]],
) -> list[Conflict]:
    """A student's own vocabulary that cannot spell a language, or keeps case where no teacher does."""
    problems: list[Conflict] = []
    measured = {
        f"{language}/{name}": compare_segmentation(own, tokenizers[name], texts[language])
        for language, settings in recipe.languages.items()
        for name in settings.teachers
    }
    collect({"student": measured}, lambda _, each: check_spelling(recipe, each), problems)
    for what, ours, theirs in (
        ("lower-cases", own.lowercases, {t.lowercases for t in tokenizers.values()}),
        ("keeps the case of", not own.lowercases, {not t.lowercases for t in tokenizers.values()}),
    ):
        if ours and theirs == {False}:
            problems.append(
                Conflict(
                    f"the student's vocabulary {what} text and no teacher does: candidates of the other case "
                    "are lost",
                    "set student.tokenizer.lowercase as the teachers have it",
                )
            )
    return problems


def _drift(
    recipe: MergeRecipe, tokenizers: dict[str, LoadedTokenizer], union: Union, texts: dict[str, list[str]]
) -> list[Conflict]:
    """Languages that the union tokenizer splits differently from their teachers."""
    merged = union_tokenizer(
        union,
        list(tokenizers.values()),
        lowercase=recipe.student.tokenizer.lowercase,
        strip_accents=recipe.student.tokenizer.stripped,
    )
    maps = dict(zip(recipe.teachers, union.maps, strict=True))
    problems = []
    for language, settings in recipe.languages.items():
        for name in settings.teachers:
            own = language_tokenizer(tokenizers[name], maps[name], union)
            measured = segmentation(merged, own, texts[language], unk_id=union.special_ids["unk"])
            if (
                measured.drift > LARGE_DRIFT
                or measured.unknown_share > measured.own_unknown_share + LARGE_UNKNOWN
            ):
                problems.append(
                    Conflict(
                        f"languages.{language}: the union tokenizer splits {measured.drift:.0%} of {name}'s "
                        f"tokens differently and leaves {measured.unknown_share:.1%} unknown (own "
                        f"{measured.own_unknown_share:.1%})",
                        f"load tokenizer/{language} for this language instead of the default tokenizer",
                    )
                )
    return problems


def _print_languages(
    recipe: MergeRecipe,
    sizes: dict[str, LanguageSize],
    shares: dict[str, float],
    tokenizers: dict[str, LoadedTokenizer],
    console: Console,
) -> None:
    table = Table(title="languages (estimated from a sample of each)")
    columns = ("language", "teachers", "characters", "tokens", "scored", "masked positions", "store")
    for name in columns:
        table.add_column(name, justify="left" if name in ("language", "teachers") else "right")
    for language, settings in recipe.languages.items():
        size = sizes[language]
        scored = shares[language] * size.tokens
        masked = scored * recipe.masking.probability * len(settings.teachers)
        store = sum(estimated_store(recipe, scored, tokenizers[name].size) for name in settings.teachers)
        table.add_row(
            language,
            ", ".join(settings.teachers),
            f"{size.characters:,}",
            f"{size.tokens:,}",
            f"{shares[language]:.0%}",
            f"{masked:,.0f}",
            f"{store / 2**20:,.0f} MiB",
        )
    console.print(table)


def _print_student(recipe: MergeRecipe, vocabulary: Vocabulary, console: Console) -> PreTrainedModel:
    config, _ = resolve_student(recipe, vocabulary)
    student = build_student(config, seed=recipe.seed)
    total = sum(parameter.numel() for parameter in student.parameters())
    rows = student.get_input_embeddings().weight.numel()
    console.print(
        f"student: {config.model_type}, {vocabulary.size:,} pieces, {total:,} parameters, {rows:,} of them "
        f"({rows / total:.0%}) embeddings",
        markup=False,
    )
    return student


def _print_times(
    recipe: MergeRecipe,
    tokenizers: dict[str, LoadedTokenizer],
    own: LoadedTokenizer | None,
    sizes: dict[str, LanguageSize],
    shares: dict[str, float],
    student: PreTrainedModel,
    arguments: Arguments,
    console: Console,
) -> list[Conflict]:
    """Time a few batches of each teacher and of the student, and scale up; returns conflicts of the masks."""
    found: list[Conflict] = []
    scored, dtype = 0.0, resolve_dtype(recipe.scoring.precision)
    for name, teacher in recipe.teachers.items():
        languages = [language for language, s in recipe.languages.items() if name in s.teachers]
        if not languages:
            continue
        model = load_teacher(name, teacher).to(device())
        for language in languages:
            speed = scoring_speed(recipe, model, tokenizers[name], sizes[language].texts)
            found += mask_conflicts(recipe, model, tokenizers[name], sizes[language].texts, language)
            seconds = shares[language] * sizes[language].tokens / speed
            scored += seconds
            console.print(
                f"score {language} with {name} in {str(dtype).removeprefix('torch.')}: {speed:,.0f} "
                f"tokens/s, {clock(seconds)}",
                markup=False,
            )
            if own is not None:
                coverage = label_coverage(recipe, model, tokenizers[name], own, sizes[language].texts)
                console.print(
                    f"labels of {name} for {language}, by a sample: {describe(coverage)}", markup=False
                )
    step = step_seconds(recipe, student, arguments, recipe.scoring.top_k)
    trained = step * arguments["max_steps"] * arguments["gradient_accumulation_steps"]
    batch = (
        arguments["per_device_train_batch_size"]
        * arguments["gradient_accumulation_steps"]
        * recipe.corpora.max_length
    )
    console.print(
        f"train {arguments['max_steps']:,} steps of at most {batch:,} tokens in "
        f"{'bfloat16' if arguments['bf16'] else 'float32'}: {step:.2f} s each, {clock(trained)}",
        markup=False,
    )
    console.print(f"in all about {clock(scored + trained)}, without evaluation and corpora", markup=False)
    return found
