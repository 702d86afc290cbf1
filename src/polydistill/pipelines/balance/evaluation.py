"""The evaluation stages of a balance run: MRR of teachers and students, the measure D, and probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from polydistill.config.probe import ProbeRecipe
from polydistill.disk import hash_folder, read_json, write_json
from polydistill.evaluation.mlm import Measures
from polydistill.evaluation.readers import Reader, text_files
from polydistill.evaluation.summaries import TEACHER, HeldOut, summarise
from polydistill.masking import evaluation_masks_identity
from polydistill.models.load import load_masked_lm, weights_fingerprint
from polydistill.models.precision import device
from polydistill.pipelines.balance.state import Balance
from polydistill.pipelines.probe.pipeline import probe_models
from polydistill.pipelines.run_folder import fingerprints
from polydistill.pipelines.stages.evaluation import Reading, evaluate
from polydistill.tasks.tagged import read_tagged_tasks


def evaluate_models(state: Balance) -> None:
    """Evaluate every language's teacher and all students on the same masked tokens.

    Writes evaluation/mlm.json, and mlm.json and ranks.npz into evaluation/mlm.
    """
    recipe, run = state.recipe, state.run
    students = {name: run.path / "students" / name / "final" for name in recipe.students}
    inputs = {
        "stage": "evaluation",
        "students": {name: hash_folder(folder, pattern="*.safetensors") for name, folder in students.items()},
        "teachers": {
            language: weights_fingerprint(str(folder)) for language, folder in state.teachers.items()
        },
        "tokenizer": state.tokenizer.fingerprint,
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": evaluation_masks_identity(recipe.masking),
        "groups": recipe.groups,
        "seed": recipe.seed,
        "corpora": fingerprints(state.corpora),
    }
    made = evaluate(
        run,
        "evaluation/mlm",
        inputs,
        recipe,
        lambda: _readings(state, students),
        lambda measured: summarise(
            {name: _held_out(measures) for name, measures in measured.items()}, recipe.groups
        ),
        languages=len(recipe.languages),
    )
    # The same place as in every run. evaluation/ itself is no artefact, because probes write there too.
    write_json(run.path / "evaluation" / "mlm.json", read_json(made.path / "mlm.json", dict), sealed=True)


def _readings(state: Balance, students: Mapping[str, Path]) -> Iterator[Reading]:
    """Each language's teacher and all students, with the shared vocabulary."""
    models = {name: load_masked_lm(str(path), name=name).to(device()) for name, path in students.items()}
    for language in state.recipe.languages:
        teacher = load_masked_lm(str(state.teachers[language]), name=language).to(device())
        readers = [
            Reader(name, model, state.tokenizer, "shared")
            for name, model in {TEACHER: teacher, **models}.items()
        ]
        # Results come from text that early stopping has not seen.
        texts = text_files(state.corpora[language].path) | {"held_out": state.held_out(language)[1]}
        yield Reading(language, readers, state.texts[language].examples, texts)


def _held_out(measured: Mapping[str, Measures]) -> HeldOut:
    measures = {
        place.rpartition("/")[2]: measures_of
        for place, measures_of in measured.items()
        if place.startswith("held_out/")
    }
    reciprocal = {model: 1.0 / measures_of.ranks for model, measures_of in measures.items()}
    return HeldOut(reciprocal, next(iter(measures.values())).counts)


def probe_students(state: Balance, tasks: Sequence[str] | None = None) -> None:
    """Probe all students on the recipe's tagged text, to evaluation/probes.json.

    tasks  the recipe's tasks to run; by default all
    """
    recipe, run = state.recipe, state.run
    chosen = {task: data for task, data in recipe.probe.tasks.items() if tasks is None or task in tasks}
    if not chosen:
        return
    groups = {
        name: kept
        for name, members in recipe.groups.items()
        if (kept := [item for item in members if any(item in data for data in chosen.values())])
    }
    probe_models(
        ProbeRecipe.model_validate(
            {
                "recipe": "probe",
                "name": recipe.name,
                "seed": recipe.seed,
                "groups": groups,
                "models": {
                    name: {"model": str(run.path / "students" / name / "final")} for name in recipe.students
                },
                "tasks": {
                    task: {language: item.model_dump() for language, item in data.items()}
                    for task, data in chosen.items()
                },
                "probing": recipe.probe.probing.model_dump(mode="json"),
            }
        ),
        run,
        read_tagged_tasks(chosen, field="probe.tasks"),
    )
