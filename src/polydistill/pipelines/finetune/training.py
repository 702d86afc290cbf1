"""A job's training and test, in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from polydistill.disk import Json, read_json, read_record, require_space, write_json, write_text
from polydistill.models.memory import return_freed_memory
from polydistill.pipelines.finetune.jobs import Job
from polydistill.pipelines.finetune.keeping import keep_best
from polydistill.pipelines.run_folder import Run
from polydistill.tasks.scores import METRICS
from polydistill.tasks.training import fine_tune
from polydistill.training.checkpoints import checkpoints_bytes

CHECKPOINTS = "checkpoints"


def run_job(job: Job, run: Run) -> Path:
    """Train and test, or resume an interrupted job; returns the folder with scores.json and predictions/."""

    def write(folder: Path) -> None:
        # A damaged record counts as missing: its work is redone.
        if not read_record(folder / "training.json"):
            _train(job, run, folder)
        if not read_record(folder / "scores.json"):
            _test(job, folder)
        if job.recipe.keep == "best":
            keep_best(job, run, folder, folder / CHECKPOINTS)
        # Weights take far more space than a job's results.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return_freed_memory()

    stage = f"{job.texts.name}/{job.model.name}"
    # A finished job has no weights left to keep, here or in another run.
    kept = {} if job.recipe.keep == "nothing" else {"keep": job.recipe.keep}
    made = run.make(job.place, job.inputs | kept, write, reuse=not kept, stage=stage, keep_partial=True)
    return run.use(job.place, made.path)


def _train(job: Job, run: Run, folder: Path) -> None:
    """Train; writes the best checkpoint, and training.json, which marks training as complete."""
    coder = job.coder(job.source)
    splits = job.texts.splits[job.source]
    features = coder.encode(splits["train"], training=True)
    dev = coder.encode(splits["dev"])
    arguments, change = job.arguments(len(features))
    name = f"{job.texts.name}/{job.model.name}/{job.source}-{job.seed}"
    if change:
        run.say(f"{name}: {change}")
    metric = METRICS[job.texts.task.kind][0]
    model = job.load()
    checkpoints = folder / CHECKPOINTS
    require_space(checkpoints, checkpoints_bytes(model, arguments, checkpoints), stage=name)
    record = fine_tune(
        model,
        features,
        folder=checkpoints,
        arguments=arguments,
        measure=lambda model: job.scores(job.rows(model, job.source, splits["dev"], dev), job.source)[metric],
        patience=job.recipe.patience,
        evaluations_per_epoch=job.recipe.evaluations_per_epoch,
        max_length=coder.max_length,
        pad_id=coder.tokenizer.special_ids["pad"],
        seed=job.seed,
        say=lambda line: run.say(f"{name}: {line}"),
        # Outside the job's folder, which a job of other settings would empty.
        evidence=run.path / "nonfinite" / job.place,
    )
    write_json(folder / "training.json", record, sealed=True)


def _test(job: Job, folder: Path) -> None:
    """Test; writes the predictions for each language, and scores.json, which marks them as complete."""
    record = read_json(folder / "training.json", dict)
    model = job.load(str(folder / CHECKPOINTS / record["best"]))
    scores: Json = {}
    for language in job.targets:
        rows = job.rows(model, language, job.texts.splits[language]["test"])
        write_text(
            folder / "predictions" / f"{language}.jsonl",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        )
        scores[language] = {"items": len(rows), **job.scores(rows, language)}
    write_json(
        folder / "scores.json",
        {
            "scores": scores,
            "dev": record["score"],
            "best_step": record["step"],
            "steps": record["steps"],
            "labels": job.texts.labels(job.source),
            "max_length": {language: job.coder(language).max_length for language in job.targets},
        },
        sealed=True,
    )
