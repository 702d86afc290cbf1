"""Preflight: what a recipe would do and cost, and the conflicts that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.config import (
    AnyRecipe,
    BalanceRecipe,
    ExtractRecipe,
    FinetuneRecipe,
    GridRecipe,
    MergeRecipe,
    ProbeRecipe,
    Source,
    load_recipe,
)
from polydistill.corpora import sample_texts
from polydistill.models import (
    build_student,
    device,
    load_masked_lm,
    resolve_dtype,
)
from polydistill.recipes.conflict import Conflict, collect, counted, report_conflicts
from polydistill.recipes.engine import plan_engine
from polydistill.recipes.grid_runs import awaited, check_child, children_of
from polydistill.recipes.merge import check_teacher
from polydistill.recipes.merge_training import resolve_student
from polydistill.recipes.plan_times import scoring_speed, step_seconds
from polydistill.recipes.probe_plan import plan_probe
from polydistill.recipes.stores import estimated_store
from polydistill.tokenization import (
    LoadedTokenizer,
    Union,
    count_tokens,
    language_tokenizer,
    load_tokenizer,
    segmentation,
    union_tokenizer,
    unite,
)
from polydistill.training import check_arguments, clock

SAMPLE_CHARACTERS = 400_000
LARGE_VOCABULARY = 300_000
LARGE_DRIFT = 0.10
LARGE_UNKNOWN = 0.02


@dataclass(frozen=True)
class LanguageSize:
    """What a language's text comes to: characters are counted, tokens estimated from a sample."""

    characters: int
    tokens: int
    texts: list[str]


def plan_recipe(recipe: str | AnyRecipe, overrides: Sequence[str], console: Console) -> list[Conflict]:
    """Print the resolved settings, sizes, times and conflicts of a recipe; returns the conflicts."""
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe
    found: list[Conflict]
    if isinstance(loaded, ProbeRecipe):
        console.print(
            escape(yaml.safe_dump(loaded.model_dump(mode="json"), allow_unicode=True, sort_keys=False))
        )
        return report_conflicts(plan_probe(loaded, console), console)
    if isinstance(loaded, GridRecipe):
        return _plan_grid(loaded, console)
    if isinstance(loaded, FinetuneRecipe):
        from polydistill.recipes.finetune_plan import plan_finetune

        return report_conflicts(plan_finetune(loaded, console), console)
    arguments = check_arguments(loaded.training)
    console.print(
        escape(
            yaml.safe_dump(
                loaded.model_dump(mode="json") | {"training": arguments}, allow_unicode=True, sort_keys=False
            )
        )
    )
    found = plan_engine(loaded, console)
    if isinstance(loaded, ExtractRecipe):
        # Here, for it takes its parts from this module.
        from polydistill.recipes.extract_plan import plan_extract

        return report_conflicts(found + plan_extract(loaded, arguments, console), console)
    if isinstance(loaded, BalanceRecipe):
        from polydistill.recipes.balance_plan import plan_balance

        return report_conflicts(found + plan_balance(loaded, console), console)
    if not isinstance(loaded, MergeRecipe):
        console.print(
            "a pre-training recipe: its vocabulary and model are made from the text, gold labels only"
        )
        collect({loaded.name: loaded}, lambda _, one: check_child(one), found)
        return report_conflicts(found, console)
    tokenizers = collect(
        loaded.teachers,
        lambda name, t: load_tokenizer(t.model, name=name, tokenizer=t.tokenizer, revision=t.revision),
        found,
    )
    sizes = collect(
        loaded.languages,
        lambda language, s: measure_text(
            s.text, f"languages.{language}.text", [tokenizers[t] for t in s.teachers if t in tokenizers]
        ),
        found,
    )
    # What cannot be loaded is listed with the rest, and what hangs on it is left out.
    if len(tokenizers) == len(loaded.teachers) and len(sizes) == len(loaded.languages):
        union = unite(list(tokenizers.values()))
        _print_languages(loaded, sizes, tokenizers, console)
        students = collect({"student": loaded}, lambda _, r: _print_student(r, union, console), found)
        refused: list[Conflict] = []
        collect(tokenizers, lambda _, tokenizer: check_teacher(loaded, tokenizer), refused)
        # A run would end before it scores, and so would its timing.
        if students and not refused:
            timed = {"times": students["student"]}
            collect(timed, lambda _, s: _print_times(loaded, tokenizers, sizes, s, arguments, console), found)
        texts = {language: size.texts for language, size in sizes.items()}
        found += conflicts(loaded, tokenizers, union, texts)
    return report_conflicts(found, console)


def _plan_grid(recipe: GridRecipe, console: Console) -> list[Conflict]:
    """Plan each run; of one that reads models which earlier ones make, what does not hang on them."""
    children = children_of(recipe)
    own: dict[str, list[Conflict]] = {}
    for number, (name, child) in enumerate(children.items()):
        console.rule(escape(name))
        earlier = dict(list(children.items())[:number])
        own[name] = []
        collect({name: child}, lambda _, one: check_child(one), own[name])
        if own[name]:
            report_conflicts(own[name], console)
        elif waits := awaited(child, earlier):
            console.print(f"planned when there are {', '.join(waits)}", markup=False)
        else:
            own[name] = plan_recipe(child, (), console)
    console.rule(escape(recipe.name))
    for name, found in own.items():
        console.print(f"{name}: {counted(found)}", markup=False)
    return [
        Conflict(f"{name}: {one.what}", one.remedy, one.level) for name, found in own.items() for one in found
    ]


def conflicts(
    recipe: MergeRecipe, tokenizers: dict[str, LoadedTokenizer], union: Union, texts: dict[str, list[str]]
) -> list[Conflict]:
    """What does not fit together, each with its remedy."""
    found: list[Conflict] = []
    used = {teacher for settings in recipe.languages.values() for teacher in settings.teachers}
    for name in sorted(set(recipe.teachers) - used):
        found.append(
            Conflict(f"teacher {name} has no language: its pieces enlarge the vocabulary and it teaches nothing",
                     f"name it under a language's `teachers`, or remove teachers.{name}")
        )  # fmt: skip
    for language, settings in recipe.languages.items():
        own = [tokenizers[name] for name in settings.teachers]
        for what, values in (
            ("lower-case", [tokenizer.lowercases for tokenizer in own]),
            ("strip accents from", [tokenizer.strips_accents for tokenizer in own]),
        ):
            if len(set(values)) > 1:
                yes = [t.name for t, value in zip(own, values, strict=True) if value]
                no = [t.name for t, value in zip(own, values, strict=True) if not value]
                found.append(
                    Conflict(f"languages.{language}: {', '.join(yes)} {what} text and {', '.join(no)} do not",
                             f"use teachers that agree, or set languages.{language}.use to one of them")
                )  # fmt: skip
    lowercase = {name: tokenizer.lowercases for name, tokenizer in tokenizers.items()}
    if len(set(lowercase.values())) > 1 and recipe.student.tokenizer.lowercase is None:
        cased = [name for name, value in lowercase.items() if not value]
        found.append(
            Conflict(f"{', '.join(cased)} keep case and the other teachers do not: the union tokenizer keeps it, so the "
                     "others' languages lose pieces to capitals",
                     "set student.tokenizer.lowercase, or read each language by tokenizer/<language>")
        )  # fmt: skip
    collect(tokenizers, lambda _, tokenizer: check_teacher(recipe, tokenizer), found)
    if union.size > LARGE_VOCABULARY:
        found.append(
            Conflict(f"the union has {union.size:,} pieces: the embeddings would outweigh the encoder",
                     "use a factorised embedding (student.model_type: electra, student.config.embedding_size: 256)")
        )  # fmt: skip
    merged = union_tokenizer(
        union, list(tokenizers.values()), lowercase=recipe.student.tokenizer.lowercase,
        strip_accents=recipe.student.tokenizer.strip_accents,
    )  # fmt: skip
    maps = dict(zip(recipe.teachers, union.maps, strict=True))
    for language, settings in recipe.languages.items():
        for name in settings.teachers:
            own_tokenizer = language_tokenizer(tokenizers[name], maps[name], union)
            measured = segmentation(merged, own_tokenizer, texts[language], unk_id=union.special_ids["unk"])
            if (
                measured.drift > LARGE_DRIFT
                or measured.unknown_share > measured.own_unknown_share + LARGE_UNKNOWN
            ):
                found.append(
                    Conflict(f"languages.{language}: the union tokenizer makes {measured.drift:.0%} of {name}'s tokens "
                             f"otherwise and leaves {measured.unknown_share:.1%} unknown (own {measured.own_unknown_share:.1%})",
                             f"load tokenizer/{language} for this language, rather than the default tokenizer")
                )  # fmt: skip
    return found


def measure_text(
    sources: Sequence[Source], field: str, tokenizers: Sequence[LoadedTokenizer]
) -> LanguageSize:
    """Read a sample of a language's text and scale it up to what its files hold."""
    texts, characters = sample_texts(sources, field=field, max_characters=SAMPLE_CHARACTERS)
    backends = [tokenizer.backend for tokenizer in tokenizers]
    counted = sum(count_tokens(backends, texts)) if backends else 0
    sampled = max(1, sum(map(len, texts)))
    return LanguageSize(characters, round(counted * characters / sampled), texts)


def _print_languages(
    recipe: MergeRecipe,
    sizes: dict[str, LanguageSize],
    tokenizers: dict[str, LoadedTokenizer],
    console: Console,
) -> None:
    table = Table(title="languages (estimated from a sample of each)")
    for name in ("language", "teachers", "characters", "tokens", "masked positions", "store"):
        table.add_column(name, justify="left" if name in ("language", "teachers") else "right")
    for language, settings in recipe.languages.items():
        size = sizes[language]
        masked = size.tokens * recipe.masking.probability * len(settings.teachers)
        store = sum(estimated_store(recipe, size.tokens, tokenizers[name].size) for name in settings.teachers)
        table.add_row(
            language, ", ".join(settings.teachers), f"{size.characters:,}", f"{size.tokens:,}", f"{masked:,.0f}",
            f"{store / 2**20:,.0f} MiB",
        )  # fmt: skip
    console.print(table)


def _print_student(recipe: MergeRecipe, union: Union, console: Console) -> Any:
    config, _ = resolve_student(recipe, union)
    student = build_student(config, seed=recipe.seed)
    total = sum(parameter.numel() for parameter in student.parameters())
    rows = student.get_input_embeddings().weight.numel()
    console.print(
        f"student: {config.model_type}, {union.size:,} pieces, {total:,} parameters, {rows:,} of them ({rows / total:.0%}) embeddings",
        markup=False,
    )
    return student


def _print_times(
    recipe: MergeRecipe,
    tokenizers: dict[str, LoadedTokenizer],
    sizes: dict[str, LanguageSize],
    student: Any,
    arguments: dict[str, Any],
    console: Console,
) -> None:
    """Time a few batches of each teacher and of the student, and scale up."""
    scored, dtype = 0.0, resolve_dtype(recipe.scoring.precision)
    for name, teacher in recipe.teachers.items():
        languages = [language for language, s in recipe.languages.items() if name in s.teachers]
        if not languages:
            continue
        model = load_masked_lm(
            teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
        ).to(device())
        for language in languages:
            speed = scoring_speed(recipe, model, tokenizers[name], sizes[language].texts)
            seconds = sizes[language].tokens / speed
            scored += seconds
            console.print(
                f"score {language} with {name} in {str(dtype).removeprefix('torch.')}: {speed:,.0f} tokens/s, "
                f"{clock(seconds)}",
                markup=False,
            )
    step = step_seconds(recipe, student, arguments)
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
    console.print(f"in all about {clock(scored + trained)}, evaluation and corpora not counted", markup=False)
