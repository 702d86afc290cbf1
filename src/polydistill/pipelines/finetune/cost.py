"""What fine-tuned models cost: their fine-tuning here, and their pre-training where its run is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polydistill.config.finetune import FinetuneRecipe
from polydistill.disk import Json, read_record
from polydistill.evaluation.compute import sizes_of, training_operations
from polydistill.pipelines.finetune.jobs import Job
from polydistill.pipelines.stages.compute import run_compute, total
from polydistill.reports.records import LOG, TIMING


def finetuning_compute(
    recipe: FinetuneRecipe, jobs: Sequence[tuple[Job, Path]], run: Path
) -> dict[str, Json]:
    """Model → `steps`, `fine_tuning` (of all its jobs) and `pretraining`, each with `seconds` and `flops`.

    `pretraining` is the total of the run that made the model's folder, with what that counted; None where the
    folder is no run's. Dev and test predictions are in the seconds, not in the operations.
    """
    timing = read_record(run / TIMING)
    rows: dict[str, Json] = {}
    for name, settings in recipe.models.items():
        own = [(job, folder) for job, folder in jobs if job.model.name == name]
        if not own:
            continue
        parts = [_job(job, folder, settings.model) for job, folder in own]
        seconds = [timing.get(f"{task}/{name}") for task in dict.fromkeys(job.texts.name for job, _ in own)]
        made = None if settings.weights == "random" else pretraining(Path(settings.model))
        tuned = {
            # Reused jobs took their time elsewhere.
            "seconds": None if None in seconds else sum(part for part in seconds if part is not None),
            "flops": total({"seconds": 0.0, **part} for part in parts)["flops"],
        }
        rows[name] = {
            "steps": sum(part["steps"] for part in parts),
            "fine_tuning": tuned,
            "pretraining": made,
            "total": total([tuned, *([made] if made else [])]),
        }
    return rows


def _job(job: Job, folder: Path, model: str) -> Json:
    # Jobs of earlier versions have no tokens.
    record = read_record(folder / "training.json")
    steps, tokens = int(record.get("steps", 0)), record.get("tokens")
    sizes = sizes_of(Path(model)) if Path(model).is_dir() else None
    if sizes is None or tokens is None:
        return {"steps": steps, "flops": None}
    arguments = job.recipe_arguments
    batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    # A head is small beside the encoder: no position is predicted by the language model's.
    return {"steps": steps, "flops": training_operations(sizes, tokens, tokens / max(1, steps * batch), 0)}


def pretraining(model: Path) -> Json | None:
    """The total cost of the model in a run's `student/final` or `students/NAME/final`, and what it counts."""
    folder = model.parent
    for run in (folder.parent, folder.parent.parent):
        if (run / "recipe.yaml").is_file() and (folder / LOG).is_file():
            row = run_compute(run).get(folder.name)
            if row is not None:
                return {**row["total"], "steps": row["steps"], "counted": row["counted"]}
    return None
