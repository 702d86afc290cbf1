"""Preflight of an embed recipe: sentences, the vectors' size, times, and conflicts."""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console

from polydistill.config.embed import EmbedRecipe
from polydistill.corpora.sentences import cleaned
from polydistill.losses.vectors import vector_loss
from polydistill.models.attention import attention_for
from polydistill.models.inputs import length_batches, pad_batch
from polydistill.models.precision import device, resolve_dtype
from polydistill.models.sentences import encode_ids
from polydistill.pipelines.embed.state import (
    SentenceModel,
    check_files,
    needs_projection,
    open_student,
    open_teacher,
    teacher_width,
)
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.stages.conflicts import Conflict, collect, report_conflicts
from polydistill.pipelines.stages.languages import wrong_languages
from polydistill.pipelines.stages.planning import measure_text, median_seconds, print_settings
from polydistill.reports.progress import clock
from polydistill.tasks.sentences import read_measured
from polydistill.training.arguments import check_arguments

SAMPLED = 256
# Unknown pieces above this share mean that a tokenizer does not know the language.
LARGE_UNKNOWN = 0.1


def plan_embed(recipe: EmbedRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, sentences, the vectors' size and times; returns the errors that a run would raise."""
    arguments = check_arguments(recipe.training)
    print_settings(recipe, console, training=arguments)
    conflicts: list[Conflict] = []
    collect({"files": recipe}, lambda _, r: check_files(r), conflicts)
    if conflicts:
        return report_conflicts(conflicts, console)
    conflicts += wrong_languages(recipe)
    samples, sentences = _texts(recipe, console, conflicts)
    measured = collect({"test": recipe}, lambda _, r: read_measured(r), conflicts)
    if measured:
        for name, texts in measured["test"].parallel.items():
            number = len(next(iter(texts.values())))
            console.print(f"retrieval {name}: {number:,} sentences in {', '.join(texts)}", markup=False)
        for name, pairs in measured["test"].scored.items():
            console.print(f"similarity {name}: {len(pairs.first):,} pairs", markup=False)
    teachers = collect({"teacher": recipe}, lambda _, r: open_teacher(r), conflicts)
    students = collect({"student": recipe}, lambda _, r: open_student(r), conflicts)
    if teachers and students and samples:
        teacher, student = teachers["teacher"], students["student"]
        fits = collect(
            {"student": student}, lambda _, s: needs_projection(recipe, s, teacher_width(teacher)), conflicts
        )
        if fits:
            _times(recipe, console, teacher, student, samples, sentences, projects=fits["student"])
            conflicts += [
                conflict
                for reader, model in (("teacher", teacher), ("student", student))
                for conflict in _unknown(reader, model, samples)
            ]
    return report_conflicts(conflicts, console)


def _texts(
    recipe: EmbedRecipe, console: Console, conflicts: list[Conflict]
) -> tuple[dict[str, list[str]], int]:
    """(language → some sentences of its text, all sentences to be read by the teacher, about)."""
    texts = {name: language for name, language in recipe.languages.items() if language.text}
    measured = collect(
        texts, lambda name, each: measure_text(each.text, f"languages.{name}.text", [], 64), conflicts
    )
    samples: dict[str, list[str]] = {}
    total = 0
    for name, size in measured.items():
        lines = [line for text in size.texts for line in text.split("\n") if cleaned(line, recipe.sentences)]
        number = round(size.characters * len(lines) / max(1, sum(map(len, lines))))
        kept = min(number, recipe.sentences.max_sentences or number)
        console.print(f"{name}: about {number:,} sentences, {kept:,} of them used", markup=False)
        total += kept
        samples[name] = lines[:SAMPLED]
    for name in recipe.languages.keys() - texts.keys():
        console.print(f"{name}: translations alone", markup=False)
    return samples, total


def _times(
    recipe: EmbedRecipe,
    console: Console,
    teacher: SentenceModel,
    student: SentenceModel,
    samples: dict[str, list[str]],
    sentences: int,
    *,
    projects: bool,
) -> None:
    arguments = check_arguments(recipe.training)
    width = teacher_width(teacher)
    stored = sentences * width * np.dtype(recipe.vectors.dtype).itemsize
    texts = [text for some in samples.values() for text in some][:SAMPLED]
    ids = teacher.ids(texts)
    seconds = median_seconds(
        lambda: encode_ids(
            teacher.model,
            ids,
            teacher.pad_id,
            batch_tokens=recipe.vectors.batch_tokens,
            dtype=resolve_dtype(recipe.vectors.precision),
        )
    )
    console.print(
        f"vectors: {sentences:,} x {width} {recipe.vectors.dtype}, {stored / 2**20:,.0f} MiB; "
        f"{len(texts) / seconds:,.0f} sentences a second, {clock(sentences * seconds / len(texts))}",
        markup=False,
    )
    console.print(
        f"student: {student.model.num_parameters():,} parameters, {student.width} numbers"
        + (f", projected to {width}" if projects else ""),
        markup=False,
    )
    each = _step_seconds(recipe, student, texts) * arguments["gradient_accumulation_steps"]
    steps = int(arguments["max_steps"])
    console.print(f"train {steps:,} steps: {each:.2f} s each, {clock(each * steps)}", markup=False)


def _step_seconds(recipe: EmbedRecipe, student: SentenceModel, texts: list[str]) -> float:
    """Seconds of a forward and backward pass of a micro-batch, as long as the sampled sentences are."""
    arguments = check_arguments(recipe.training)
    size = int(arguments["per_device_train_batch_size"])
    ids = student.ids([texts[index % len(texts)] for index in range(size)])
    where, model = device(), student.load().train()
    # As training cuts a batch into parts of similar lengths.
    parts = [
        pad_batch([ids[index] for index in part], student.pad_id)
        for part in length_batches([len(row) for row in ids], max(64, sum(map(len, ids)) // 2))
    ]

    def step() -> None:
        for input_ids, attention in parts:
            with torch.autocast(where.type, torch.bfloat16, enabled=bool(arguments["bf16"])):
                vectors = model(input_ids.to(where), attention.to(where))
            vector_loss(vectors, torch.ones_like(vectors), recipe.loss).sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    with attention_for(where, recipe.sentences.max_length):
        return median_seconds(step)


def _unknown(reader: str, model: SentenceModel, samples: dict[str, list[str]]) -> list[Conflict]:
    """A conflict for each language that a tokenizer reads as unknown pieces."""
    unknown = model.tokenizer.special_ids.get("unk")
    conflicts = []
    for language, texts in samples.items():
        ids = np.concatenate(model.ids(texts)) if texts else np.zeros(0, np.int32)
        share = float((ids == unknown).mean()) if len(ids) and unknown is not None else 0.0
        if share > LARGE_UNKNOWN:
            conflicts.append(
                Conflict(
                    f"the {reader} reads {100 * share:.0f} % of the pieces of {language} as unknown",
                    f"use a {reader} whose vocabulary knows the language",
                )
            )
    return conflicts
