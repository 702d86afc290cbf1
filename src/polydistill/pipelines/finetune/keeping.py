"""The fine-tuned model that is kept: of a task, a model and a source language, the seed best on dev."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polydistill.disk import Json, fingerprint, read_json, read_record, write_json, write_text
from polydistill.pipelines.finetune.jobs import Job
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.training import fit_tokenizers
from polydistill.reports.card_tasks import task_card
from polydistill.tasks.scores import METRICS
from polydistill.tokenization.wordpiece import save_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD = "finetuned.json"


def keep_best(job: Job, run: Run, folder: Path, checkpoints: Path) -> None:
    """Keep a tested job's best checkpoint, if no kept seed has as high a score on dev.

    folder  of the job, with training.json and scores.json
    """
    record = read_json(folder / "training.json", dict)
    seedless = fingerprint({key: value for key, value in job.inputs.items() if key != "seed"})
    place = kept_place(job)
    known = read_record(run.path / place / RECORD)
    rivals = known.get("settings") == seedless and known.get("seed") != job.seed
    if rivals and known["dev"] >= record["score"]:
        return

    def write(out: Path) -> None:
        model = job.load(str(checkpoints / record["best"]))
        name_labels(model, job)
        model.save_pretrained(out)
        save_loaded(job.coder(job.source).tokenizer, out)
        fit_tokenizers(out, model)
        facts = _facts(job, record, read_json(folder / "scores.json", dict)) | {"settings": seedless}
        write_json(out / RECORD, facts, sealed=True)
        write_text(out / "README.md", task_card(facts))

    run.make(place, {"stage": "finetuned", "job": fingerprint(job.inputs)}, write, stage=place)


def kept_place(job: Job) -> str:
    """The folder of the kept model, within the run's."""
    return f"models/{job.texts.name}/{job.model.name}/{job.source}"


def missing_models(jobs: list[Job], run: Run) -> list[str]:
    """Kept models that are gone though their jobs are finished: somebody removed them."""
    places = dict.fromkeys(kept_place(job) for job in jobs)
    return [place for place in places if not read_record(run.path / place / RECORD)]


def name_labels(model: PreTrainedModel, job: Job) -> None:
    """Write the labels into a model's configuration, as `transformers.pipeline` prints them."""
    labels = job.texts.labels(job.source)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}


def _facts(job: Job, record: Json, tested: Json) -> Json:
    task = job.texts.task
    return {
        "name": f"{job.recipe.name}: {job.model.name} for {job.texts.name}",
        "task": job.texts.name,
        "kind": task.kind,
        "source": job.source,
        "model": job.model.settings.model,
        "seed": job.seed,
        "dev": record["score"],
        "metric": METRICS[task.kind][0],
        "scores": tested["scores"],
        "max_length": job.coder(job.source).max_length,
        "training": {
            name: value
            for name, value in job.recipe_arguments.items()
            if name in ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")
        },
    }
