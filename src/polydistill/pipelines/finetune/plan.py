"""Preflight of a fine-tuning: its data, jobs, times and conflicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polydistill.config.finetune import FinetuneRecipe
from polydistill.disk import Json
from polydistill.errors import UserError
from polydistill.models.attention import attention_for
from polydistill.models.precision import device
from polydistill.pipelines.finetune.jobs import Job, all_jobs, notes_of, task_arguments
from polydistill.pipelines.pipeline import Pipelines
from polydistill.pipelines.stages.conflicts import Conflict, collect, refusal, report_conflicts
from polydistill.pipelines.stages.planning import median_seconds, print_settings
from polydistill.reports.progress import clock
from polydistill.tasks.heads import Feature, collate, num_tokens
from polydistill.tasks.labelled import Example
from polydistill.tasks.splits import TaskTexts
from polydistill.tasks.training import steps_of
from polydistill.tasks.words import LARGE_UNKNOWN

TIMED_STEPS = 2
TIMED_EXAMPLES = 32
# A step is timed on this many of its examples: a plan must be quick.
TIMED_BATCH = 4
SHOWN_LABELS = 8


def plan_finetune(recipe: FinetuneRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, sizes, labels, jobs and times; returns the conflicts."""
    conflicts: list[Conflict] = []
    print_settings(recipe, console, tasks=_resolved_tasks(recipe, conflicts))
    table = Table(box=box.SIMPLE)
    for heading in ("task", "language", "train", "dev", "test", "labels"):
        table.add_column(heading, justify="right" if heading in ("train", "dev", "test") else "left")
    read: dict[str, TaskTexts] = {}
    for name, task in recipe.tasks.items():
        texts = TaskTexts(name, task, recipe.seed)
        try:
            for language in task.data:
                _add_row(table, texts, language)
            texts.check()
            conflicts += [
                Conflict(note, "check the file, or leave it as it is", "note") for note in texts.notes()
            ]
            read[name] = texts
        except UserError as error:
            conflicts.append(refusal(error))
    console.print(table)
    if len(read) == len(recipe.tasks) and not any(conflict.level == "error" for conflict in conflicts):
        try:
            jobs = all_jobs(recipe, read)
            conflicts += [
                Conflict(note, "see models.NAME.languages, `teachers` and max_length, or ignore it", "note")
                for note in notes_of(jobs)
            ]
            conflicts += _unknown(jobs)
            conflicts += _times(jobs, console)
        except UserError as error:
            conflicts.append(refusal(error))
    return report_conflicts(conflicts, console)


def _resolved_tasks(recipe: FinetuneRecipe, conflicts: list[Conflict]) -> Json:
    """The recipe's tasks with hyper-parameters of preset, recipe and task merged; refused ones as given."""
    tasks: Json = recipe.model_dump(mode="json")["tasks"]
    arguments = collect(recipe.tasks, lambda name, _: task_arguments(recipe, name), conflicts)
    for name, task in recipe.tasks.items():
        tasks[name]["max_length"] = recipe.max_length(task)
        tasks[name]["training"] = arguments.get(name, recipe.arguments(task))
    return tasks


def _add_row(table: Table, texts: TaskTexts, language: str) -> None:
    sizes = {split: f"{len(examples):,}" for split, examples in texts.splits[language].items()}
    labels = texts.labels(language) if language in texts.task.sources else []
    shown = f"{len(labels)}: {', '.join(labels[:SHOWN_LABELS])}" if labels else ""
    table.add_row(
        texts.name,
        language,
        *(sizes.get(split, "") for split in ("train", "dev", "test")),
        escape(shown + (", …" if len(labels) > SHOWN_LABELS else "")),
    )


def _times(jobs: Sequence[Job], console: Console) -> list[Conflict]:
    """Print each model's and task's time, scaled up from a few steps; returns notes on changed arguments."""
    notes: list[Conflict] = []
    table = Table(box=box.SIMPLE)
    for heading in ("task", "model", "jobs", "steps", "a step", "in all"):
        table.add_column(heading, justify="left" if heading in ("task", "model") else "right")
    total = 0.0
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.texts.name, job.model.name), []).append(job)
    for (task, model), own in groups.items():
        step, example = _measure(own[0])
        seconds, steps = 0.0, 0
        for job in own:
            splits = job.texts.splits
            number = _num_features(job)
            arguments, changed = job.arguments(number)
            if changed and job.seed == own[0].seed:
                notes.append(
                    Conflict(
                        f"{task}/{model} from {job.source}: {changed}",
                        "set training.warmup_steps to choose another",
                        "note",
                    )
                )
            epoch, whole = steps_of(number, arguments)
            tests = sum(len(splits[target]["test"]) for target in job.targets)
            evaluations = whole / epoch * job.recipe.evaluations_per_epoch * len(splits[job.source]["dev"])
            seconds += whole * step + (evaluations + tests) * example
            steps += whole
        total += seconds
        table.add_row(task, model, str(len(own)), f"{steps:,}", f"{step:.2f} s", clock(seconds))
    console.print(table)
    console.print(
        f"{len(jobs)} jobs, in all about {clock(total)} (at most: early stopping shortens it)", markup=False
    )
    return notes


def _unknown(jobs: Sequence[Job]) -> list[Conflict]:
    """Languages that a model's tokenizer does not know."""
    shares = {}
    for job in jobs:
        for target in job.targets:
            if (job.model.name, target, job.texts.name) in shares:
                continue
            coder, tests = job.coder(target), job.texts.splits[target]["test"]
            ids = [
                index
                for feature in coder.encode(_spread(tests, TIMED_EXAMPLES))
                for index in _flat(feature["input_ids"])
            ]
            share = ids.count(coder.tokenizer.special_ids["unk"]) / max(1, len(ids))
            shares[job.model.name, target, job.texts.name] = share
    return [
        Conflict(
            f"models.{model}: reads {100 * share:.0f} % of the tokens of {target} as unknown ({task})",
            "compare it on languages that its vocabulary knows: see models.NAME.languages",
        )
        for (model, target, task), share in shares.items()
        if share > LARGE_UNKNOWN
    ]


def _flat(ids: Sequence[int | list[int]]) -> list[int]:
    """The ids of a feature, which holds a list for each choice in tasks that have choices."""
    return [index for part in ids for index in (part if isinstance(part, list) else [part])]


def _num_features(job: Job) -> int:
    """Features of the training file, scaled up from a sample."""
    train = job.texts.splits[job.source]["train"]
    sample = _spread(train, 4 * TIMED_EXAMPLES)
    return round(len(job.coder(job.source).encode(sample, training=True)) / len(sample) * len(train))


def _spread(examples: Sequence[Example], number: int) -> list[Example]:
    """Examples from all over a file: those at its beginning may be short."""
    return list(examples[:: max(1, len(examples) // number)])[:number]


def _measure(job: Job) -> tuple[float, float]:
    """(seconds of a training step, seconds of an example's prediction)."""
    coder = job.coder(job.source)
    sample = _spread(job.texts.splits[job.source]["train"], TIMED_EXAMPLES)
    features = coder.encode(sample, training=True)
    model = job.load()
    size = job.recipe_arguments["per_device_train_batch_size"]
    chosen = timed_features(features, min(size, TIMED_BATCH), grouped=job.groups_by_length)
    batch = collate(chosen, pad_id=coder.tokenizer.special_ids["pad"])
    inputs = {name: tensor.to(device()) for name, tensor in batch.items()}
    halves = bool(job.recipe_arguments.get("bf16"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    seconds = partial(median_seconds, calls=TIMED_STEPS)

    def gradients() -> None:
        model.train()
        with torch.autocast(device().type, torch.bfloat16, enabled=halves):
            loss = model(**inputs).loss
        loss.backward()

    with attention_for(device(), coder.max_length):
        batches = size / len(chosen) * job.recipe_arguments["gradient_accumulation_steps"]
        training = seconds(gradients) * batches + seconds(optimizer.step)
    testing = seconds(lambda: job.rows(model, job.source, sample[:TIMED_BATCH])) / len(sample[:TIMED_BATCH])
    return training, testing


def timed_features(features: Sequence[Feature], number: int, *, grouped: bool) -> Sequence[Feature]:
    """Features that represent a batch: of all lengths, padded to the longest, or all near the mean length."""
    if not grouped:
        return features[:: max(1, len(features) // number)][:number]
    lengths = [num_tokens(feature) for feature in features]
    mean = statistics.mean(lengths)
    near = sorted(range(len(features)), key=lambda index: abs(lengths[index] - mean))
    return [features[index] for index in near[:number]]
