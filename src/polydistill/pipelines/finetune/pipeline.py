"""Fine-tuning: models x tasks x languages x seeds in one queue that goes on where it was, to scores, RDT and a report."""

from __future__ import annotations

from pathlib import Path

from polydistill.config.finetune import FinetuneRecipe
from polydistill.disk import read_json
from polydistill.pipelines.finetune.jobs import all_jobs, notes_of, run_job
from polydistill.pipelines.finetune.results import Results
from polydistill.pipelines.run_folder import Run
from polydistill.reports.page import report_run
from polydistill.tasks.scores import METRICS
from polydistill.tasks.splits import read_tasks

STAGES = ("evaluate", "report")


def run_finetune(recipe: FinetuneRecipe, run: Run, *, until: str = "report") -> Path:
    """Run the queue; returns the run's folder. Scores are in evaluation/finetune.json, which grows with every job."""
    with run.claim():
        texts = read_tasks(recipe)
        jobs = all_jobs(recipe, texts)
        run.record_recipe()
        notes = [*(note for one in texts.values() for note in one.notes()), *notes_of(jobs)]
        for note in notes:
            run.say(note)
        results = Results(recipe, len(jobs), notes)
        for number, job in enumerate(jobs, start=1):
            folder = run_job(job, run)
            results.add(job, run.use(job.place, folder))
            scores = read_json(folder / "scores.json")["scores"]
            metric = METRICS[job.texts.task.kind][0]
            shown = ", ".join(f"{language} {found[metric]:.3f}" for language, found in scores.items())
            run.say(
                f"{number}/{len(jobs)} {job.texts.name}/{job.model.name} from {job.source}, seed {job.seed}: {shown} ({metric})"
            )
            results.write(run.path)
        with run.stage("intervals"):
            results.write(run.path, summarised=True)
        if until == "report":
            report_run(run.path)
    return run.path
