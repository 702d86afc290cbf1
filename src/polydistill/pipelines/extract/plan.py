"""Preflight of an extraction: sizes, times and conflicts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console

from polydistill.config.extract import ExtractRecipe
from polydistill.config.shared import Arguments
from polydistill.losses.live import OutputLayer, live_distillation
from polydistill.models.attention import attention_for
from polydistill.models.extract import extract_student
from polydistill.models.features import output_layer
from polydistill.models.inputs import pad_batch
from polydistill.models.memory import keep_freed_memory
from polydistill.models.narrow import first_parts
from polydistill.models.precision import device, resolve_dtype
from polydistill.models.trim import trim_model
from polydistill.pipelines.extract.state import (
    TRIM_FIELDS,
    Extract,
    adapting_arguments,
    begin,
    check_length,
    load_teacher,
    resolve_student,
    teacher_config,
    teacher_tokenizer,
    trim_choice,
)
from polydistill.pipelines.extract.teacher import IMPORTANCE_EXAMPLES, model_size
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.run_folder import open_run
from polydistill.pipelines.stages.conflicts import Conflict, collect, report_conflicts
from polydistill.pipelines.stages.engine import plan_engine
from polydistill.pipelines.stages.languages import wrong_languages
from polydistill.pipelines.stages.planning import (
    LanguageSize,
    further_texts,
    mask_conflicts,
    measure_text,
    median_seconds,
    print_settings,
    scoring_speed,
    step_seconds,
)
from polydistill.pipelines.stages.scoring import estimated_store, needed_shares
from polydistill.reports.progress import clock
from polydistill.tokenization.encode import as_text
from polydistill.tokenization.load import LoadedTokenizer, max_positions
from polydistill.tokenization.selection import Selection, document_frequency, select
from polydistill.tokenization.trim import trim_tokenizer
from polydistill.training.arguments import check_arguments
from polydistill.training.live_teacher import LiveTeacher, read_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LARGE_UNKNOWN = 0.02
# Seconds of a fresh process before it measures: it imports PyTorch and loads a model.
PROCESS_SECONDS = 10
# A pass of this many tokens tells the speed of all others.
FORWARD_TOKENS = 512


def plan_extract(recipe: ExtractRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, sizes and times of an extraction; returns its conflicts.

    Leaves out what depends on missing files.
    """
    arguments = check_arguments(recipe.training)
    print_settings(recipe, console, training=arguments)
    conflicts = [*plan_engine(recipe, console), *further_texts(recipe), *wrong_languages(recipe)]
    # Like `training`, it is what a plan prints times of.
    adapting_arguments(recipe)
    tokenizers = collect({"teacher": recipe}, lambda _, r: teacher_tokenizer(r), conflicts)
    configs = collect({"teacher": recipe}, lambda _, r: teacher_config(r), conflicts)
    sizes = collect(
        {recipe.language: recipe.text},
        lambda _, text: measure_text(text, "text", list(tokenizers.values()), recipe.corpora.block_lines),
        conflicts,
    )
    if tokenizers and configs:
        size = sizes.get(recipe.language)
        _plan_student(recipe, tokenizers["teacher"], configs["teacher"], size, arguments, conflicts, console)
    return report_conflicts(conflicts, console)


def _plan_student(
    recipe: ExtractRecipe,
    tokenizer: LoadedTokenizer,
    config: PreTrainedConfig,
    size: LanguageSize | None,
    arguments: Arguments,
    conflicts: list[Conflict],
    console: Console,
) -> None:
    run = open_run(recipe)
    states = collect({"student": recipe}, lambda _, r: begin(r, run, arguments, tokenizer, config), conflicts)
    conflicts += _conflicts(recipe, tokenizer, size)
    if size is not None:
        console.print(
            f"{recipe.language}: {size.characters:,} characters, about {size.tokens:,} tokens", markup=False
        )
    selections = collect({"trim": recipe}, lambda _, r: _selection(r, tokenizer, config, size), conflicts)
    if states and selections:
        made = collect(
            {"times": states["student"]},
            lambda _, state: _print_models(state, selections["trim"], size, console),
            conflicts,
        )
        conflicts += made.get("times", [])


def _selection(
    recipe: ExtractRecipe, tokenizer: LoadedTokenizer, config: PreTrainedConfig, size: LanguageSize | None
) -> Selection | None:
    """The pieces that a sample of the text uses; more text uses more of them."""
    if recipe.trim.when == "none":
        return None
    lines = [] if size is None else [line for text in size.texts for line in text.split("\n")]
    frequency = document_frequency(tokenizer.backend, lines, tokenizer.size)
    return select(
        tokenizer,
        {recipe.language: frequency},
        **trim_choice(recipe),
        fixed_id=config.pad_token_id,
        fields=TRIM_FIELDS,
    )


def _conflicts(
    recipe: ExtractRecipe, tokenizer: LoadedTokenizer, size: LanguageSize | None
) -> list[Conflict]:
    conflicts: list[Conflict] = []
    collect({"teacher": tokenizer}, lambda _, original: check_length(recipe, original), conflicts)
    encodings = (
        [] if size is None else as_text(tokenizer.backend).encode_batch(size.texts, add_special_tokens=False)
    )
    ids = [index for encoding in encodings for index in encoding.ids]
    unknown = sum(index == tokenizer.special_ids["unk"] for index in ids) / max(1, len(ids))
    if unknown > LARGE_UNKNOWN:
        conflicts.append(
            Conflict(
                f"text: the teacher's tokenizer leaves {unknown:.1%} of its tokens unknown",
                f"use a teacher that knows {recipe.language}",
            )
        )
    return conflicts


def _print_models(
    state: Extract, selection: Selection | None, text: LanguageSize | None, console: Console
) -> list[Conflict]:
    """Print the sizes of teacher and student, and the time of a few steps; returns conflicts of the masks."""
    recipe, arguments = state.recipe, state.arguments
    teacher = load_teacher(recipe)
    sizes = {"teacher": model_size(teacher)}
    tokenizer = state.original
    if selection is not None and recipe.trim.when == "before":
        teacher, tokenizer = trim_model(teacher, selection.kept), trim_tokenizer(tokenizer, selection)
    config = resolve_student(state, teacher.config, tokenizer)
    parts = first_parts(config, teacher.config) if state.narrows else None
    student, _ = extract_student(teacher, config, state.layers, seed=recipe.seed, narrowing=parts)
    cut = selection is not None and recipe.trim.when == "after"
    sizes["student"] = model_size(trim_model(student, selection.kept) if cut and selection else student)
    _print_sizes(sizes, console, estimated=selection is not None)
    _print_preparation(state, teacher, console)
    if recipe.losses.predictions == "stored":
        if text is not None:
            _print_scoring(recipe, teacher.to(device()), tokenizer, text, arguments, console)
        seconds = step_seconds(recipe, student, arguments, recipe.scoring.top_k)
    else:
        seconds = _live_step_seconds(recipe, student, teacher, arguments)
    _print_training("train", recipe, arguments, seconds, console)
    _print_cost(recipe, (teacher, student), console)
    if text is None:
        return []
    return mask_conflicts(recipe, teacher.to(device()), tokenizer, text.texts, recipe.language)


def _print_sizes(sizes: Mapping[str, Mapping[str, int]], console: Console, *, estimated: bool) -> None:
    note = " (estimated from a sample of the text)"
    for name, size in sizes.items():
        console.print(
            f"{name}: {size['layers']} layers, {size['rows']:,} "
            f"pieces{note if name == 'student' and estimated else ''}, "
            f"{size['parameters']:,} parameters, {size['embeddings']:,} of them embeddings",
            markup=False,
        )


def _print_preparation(state: Extract, teacher: PreTrainedModel, console: Console) -> None:
    """Print the time of the teacher's own training, and of measuring its parts."""
    recipe, arguments = state.recipe, state.adapting or state.arguments
    if state.adapting is None and not state.narrows:
        return
    # Of a copy: timing trains it.
    seconds = step_seconds(recipe, copy.deepcopy(teacher), arguments, 0)
    if state.adapting is not None:
        _print_training("adapt", recipe, arguments, seconds, console)
    if state.narrows:
        examples = seconds / arguments["per_device_train_batch_size"] * IMPORTANCE_EXAMPLES
        console.print(
            f"importance of the teacher's parts on {IMPORTANCE_EXAMPLES} examples: {clock(examples)}",
            markup=False,
        )


def _print_training(
    what: str, recipe: ExtractRecipe, arguments: Arguments, seconds: float, console: Console
) -> None:
    """Print the time of a training from that of a micro-batch."""
    steps = arguments["max_steps"] * arguments["gradient_accumulation_steps"]
    console.print(
        f"{what} {arguments['max_steps']:,} steps: {seconds:.2f} s each micro-batch of "
        f"{arguments['per_device_train_batch_size']} x {recipe.corpora.max_length} tokens, "
        f"{clock(seconds * steps)}, without evaluation and corpora",
        markup=False,
    )


def _print_scoring(
    recipe: ExtractRecipe,
    teacher: PreTrainedModel,
    tokenizer: LoadedTokenizer,
    text: LanguageSize,
    arguments: Arguments,
    console: Console,
) -> None:
    """Print the size of the store of the teacher's predictions, and the time of scoring."""
    speed = scoring_speed(recipe, teacher, tokenizer, text.texts)
    share = needed_shares(recipe, arguments, text.tokens / recipe.corpora.max_length)[0]
    size = estimated_store(recipe, share * text.tokens, tokenizer.size)
    console.print(
        f"score {share:.0%} of {recipe.language}: {speed:,.0f} tokens/s, "
        f"{clock(share * text.tokens / speed)}, store of "
        f"{size / 2**20:,.0f} MiB",
        markup=False,
    )


def _print_cost(recipe: ExtractRecipe, models: Sequence[PreTrainedModel], console: Console) -> None:
    """Print the time of the stage that measures latency and memory."""
    cost = recipe.cost
    if not cost.rounds:
        return
    processes, seconds = 0, 0.0
    for model in models:
        speed = _forward_speed(model)
        for batch, length in cost.shapes:
            tokens = batch * min(length, max_positions(model.config))
            # The encoder alone, and with its head.
            processes += 2 * cost.rounds
            seconds += 2 * cost.rounds * (PROCESS_SECONDS + (1 + cost.calls) * tokens / speed)
    console.print(
        f"cost: {processes} fresh processes, about {clock(seconds)}; `cost: {{rounds: 0}}` leaves it out",
        markup=False,
    )


@torch.inference_mode()
def _forward_speed(model: PreTrainedModel) -> float:
    """Tokens a second of a forward pass."""
    length = min(FORWARD_TOKENS, max_positions(model.config))
    where = next(model.parameters()).device
    ids = torch.full((FORWARD_TOKENS // length, length), 5, device=where)
    attention = torch.ones_like(ids)
    return ids.numel() / median_seconds(lambda: model(input_ids=ids, attention_mask=attention))


def _live_step_seconds(
    recipe: ExtractRecipe, student: PreTrainedModel, teacher: PreTrainedModel, arguments: Arguments
) -> float:
    """Seconds of a micro-batch: both forward passes, the distillation loss, backward pass, optimizer step."""
    where = device()
    live = LiveTeacher(teacher, recipe.losses, resolve_dtype("auto"))
    live.to(where)
    model = student.to(where).train()
    shape = (arguments["per_device_train_batch_size"], recipe.corpora.max_length)
    ids, attention = pad_batch(list(np.random.default_rng(0).integers(5, 50, shape)), 0)
    inputs = {"input_ids": ids.to(where), "attention_mask": attention.to(where)}
    every = 1 if recipe.losses.positions == "attended" else max(1, round(1 / recipe.masking.probability))
    positions = torch.arange(0, ids.numel(), every, device=where)
    weight = torch.full((len(positions),), 1.0 / len(positions), device=where)
    gold = ids.flatten().to(where)[positions]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=bool(arguments["bf16"])):
            features, _, _ = read_model(model, inputs, positions, relations=False)
        theirs, _, _ = live.read(inputs, positions)
        ours = OutputLayer(features, *output_layer(model))
        live_distillation(
            ours,
            theirs,
            gold,
            weight,
            weight,
            temperature=recipe.losses.temperature,
            logits_weight=weight if recipe.losses.logits.highest else None,
        ).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    if where.type == "cpu":
        keep_freed_memory()
    with attention_for(where, recipe.corpora.max_length):
        return median_seconds(step)
