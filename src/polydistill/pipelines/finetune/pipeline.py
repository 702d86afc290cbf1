"""Fine-tuning: models × tasks × languages × seeds in one queue that resumes after a crash, then scores, RDT
and a report.
"""

from __future__ import annotations

from typing import NamedTuple

from polydistill.config.finetune import FinetuneRecipe
from polydistill.disk import read_json
from polydistill.pipelines.finetune.jobs import Job, all_jobs, notes_of, task_arguments
from polydistill.pipelines.finetune.keeping import missing_models
from polydistill.pipelines.finetune.plan import plan_finetune
from polydistill.pipelines.finetune.results import Results
from polydistill.pipelines.finetune.training import run_job
from polydistill.pipelines.pipeline import Command, Pipeline, Stage
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.evaluation import write_page
from polydistill.tasks.scores import METRICS
from polydistill.tasks.splits import TaskTexts, read_tasks


class Finetuning(NamedTuple):
    """The state that the stages of a fine-tuning share."""

    recipe: FinetuneRecipe
    run: Run
    texts: dict[str, TaskTexts]
    jobs: list[Job]


def check(recipe: FinetuneRecipe, _: Command) -> None:
    """Raise UserError for wrong arguments of training and unusable files; loads no model."""
    for task in recipe.tasks:
        task_arguments(recipe, task)
    read_tasks(recipe)


def prepare(recipe: FinetuneRecipe, run: Run, _: Command) -> Finetuning:
    """Read the tasks' data, and check every job."""
    texts = read_tasks(recipe)
    return Finetuning(recipe, run, texts, all_jobs(recipe, texts))


def evaluate(state: Finetuning) -> None:
    """Run the queue. Every job adds its scores to evaluation/finetune.json."""
    run, jobs = state.run, state.jobs
    notes = [*(note for task_texts in state.texts.values() for note in task_texts.notes()), *notes_of(jobs)]
    for note in notes:
        run.say(note)
    results = Results(state.recipe, len(jobs), notes)
    for number, job in enumerate(jobs, start=1):
        run.count(job.place, number - 1, len(jobs), "jobs")
        folder = run_job(job, run)
        results.add(job, folder)
        scores = read_json(folder / "scores.json")["scores"]
        metric = METRICS[job.texts.task.kind][0]
        shown = ", ".join(f"{language} {values[metric]:.3f}" for language, values in scores.items())
        run.say(
            f"{number}/{len(jobs)} {job.texts.name}/{job.model.name} from {job.source}, seed {job.seed}: "
            f"{shown} ({metric})"
        )
        results.write(run.path)
    if state.recipe.keep == "best":
        for place in missing_models(jobs, run):
            run.say(f"{place} is gone; remove {place.replace('models/', 'jobs/', 1)}-* to train it again")
        run.say(f"fine-tuned models: {run.path / 'models'}")
    with run.stage("intervals"):
        results.write(run.path, summarised=True)


def write_report(state: Finetuning) -> None:
    """Write the report."""
    with state.run.stage("report"):
        write_page(state.run)


PIPELINE = Pipeline(
    FinetuneRecipe,
    check,
    prepare,
    (Stage("evaluate", evaluate), Stage("report", write_report)),
    plan_finetune,
    distributed=False,
)
