"""The evaluation stages of a balance run: MRR of teachers and students, the measure D, and probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polydistill.artefacts import artefact, is_current
from polydistill.config.probe import ProbeRecipe
from polydistill.disk import fingerprint, hash_folder, read_json, write_json
from polydistill.evaluation.readers import Reader, evaluate_language, text_files
from polydistill.evaluation.uncertainty import paired_difference
from polydistill.masking import masks_identity
from polydistill.models.load import load_masked_lm, weights_fingerprint
from polydistill.models.precision import device, resolve_dtype
from polydistill.pipelines.balance.state import Balance
from polydistill.pipelines.probe.pipeline import probe_models
from polydistill.tasks.tagged import read_tasks

TEACHER = "teacher"
# A normal distribution's 95 % interval, in standard deviations.
NORMAL_95 = 1.959964


def evaluate_models(state: Balance) -> None:
    """Every language's teacher and all students on the same masked tokens, to evaluation/mlm.json and ranks.npz."""
    recipe, run = state.recipe, state.run
    target = run.path / "evaluation" / "mlm"
    students = {name: run.path / "students" / name / "final" for name in recipe.students}
    inputs = {
        "stage": "evaluation",
        "students": {name: hash_folder(folder, pattern="*.safetensors") for name, folder in students.items()},
        "teachers": {
            language: weights_fingerprint(str(folder)) for language, folder in state.teachers.items()
        },
        "tokenizer": state.tokenizer.fingerprint,
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": masks_identity(recipe.masking),
        "groups": recipe.groups,
        "seed": recipe.seed,
        "corpora": {language: fingerprint(made_from) for language, (_, made_from) in state.corpora.items()},
    }
    if not is_current(target, inputs):
        with run.stage("evaluate"), artefact(target, inputs) as folder:
            models = {
                name: load_masked_lm(str(path), name=name).to(device()) for name, path in students.items()
            }
            rows: dict[str, list[dict[str, Any]]] = {}
            ranks: dict[str, Any] = {}
            for language in recipe.languages:
                run.say(f"evaluating {language}")
                of_language: dict[str, npt.NDArray[Any]] = {}
                rows[language] = _measure(state, language, models, of_language)
                ranks |= {f"{language}/{key}": value for key, value in of_language.items()}
            summary = summarise(ranks, list(recipe.languages), list(students), recipe.groups)
            write_json(folder / "mlm.json", {"languages": rows, "summary": summary, "ties": "mean rank"})
            np.savez_compressed(folder / "ranks.npz", **ranks)
    # Where every run has it; evaluation/ itself is no artefact, for probes write there too.
    write_json(run.path / "evaluation" / "mlm.json", read_json(target / "mlm.json", dict), sealed=True)


def _measure(
    state: Balance, language: str, students: Mapping[str, Any], ranks: dict[str, npt.NDArray[Any]]
) -> list[dict[str, Any]]:
    recipe = state.recipe
    teacher = load_masked_lm(str(state.teachers[language]), name=language).to(device())
    readers = [
        Reader(name, model, state.tokenizer, "shared")
        for name, model in {TEACHER: teacher, **students}.items()
    ]
    # Results come from text that early stopping has not seen.
    texts = text_files(state.corpora[language][0]) | {"held_out": state.held_out(language)[1]}
    return evaluate_language(
        readers, training=state.texts[language].examples, texts=texts, settings=recipe.evaluation,
        masking=recipe.masking, max_length=recipe.corpora.max_length, dtype=resolve_dtype(recipe.evaluation.precision),
        seed=recipe.seed, ranks=ranks,
    )  # fmt: skip


def summarise(
    ranks: Mapping[str, npt.NDArray[Any]],
    languages: Sequence[str],
    students: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """MRR and D of each group of languages on held-out text.

    ranks  `language/held_out/shared//model` → [M] ranks, and `…/counts` → [E] masked tokens of each example
    `mrr`: model → group → mean over languages. `D` (balanced-2022, eq. 3): student → group → mean over languages of
    its MRR minus the teacher's, with a 95 % interval. `differences`: the same from the first student to each other one.
    The intervals know the chance of the texts (bootstrap over examples, languages independent), not of the seed.
    """
    found = {"all": list(languages), **{name: list(members) for name, members in groups.items()}}

    def reciprocal(language: str, model: str) -> npt.NDArray[np.float64]:
        return 1.0 / ranks[f"{language}/held_out/shared//{model}"].astype(np.float64)

    def against(one: str, other: str) -> dict[str, dict[str, float]]:
        pairs = {
            language: paired_difference(
                reciprocal(language, one),
                reciprocal(language, other),
                ranks[f"{language}/held_out/shared//counts"],
            )
            for language in languages
        }
        rows = {}
        for group, members in found.items():
            value = float(np.mean([pairs[language].value for language in members]))
            errors = [(pairs[language].high - pairs[language].low) / (2 * NORMAL_95) for language in members]
            half = NORMAL_95 * float(np.sqrt(np.sum(np.square(errors)))) / len(members)
            rows[group] = {"value": value, "low": value - half, "high": value + half}
        return rows

    return {
        "mrr": {
            model: {
                group: float(np.mean([reciprocal(language, model).mean() for language in members]))
                for group, members in found.items()
            }
            for model in (TEACHER, *students)
        },
        "D": {student: against(student, TEACHER) for student in students},
        "differences": {other: against(students[0], other) for other in students[1:]},
        "first": students[0],
    }


def probe_students(state: Balance, tasks: Sequence[str] | None = None) -> None:
    """Probes of all students on the recipe's tagged text, to evaluation/probes.json.

    tasks  those of the recipe's to run; by default all
    """
    recipe, run = state.recipe, state.run
    chosen = {task: data for task, data in recipe.probe.tasks.items() if tasks is None or task in tasks}
    if not chosen:
        return
    groups = {
        name: kept
        for name, members in recipe.groups.items()
        if (kept := [one for one in members if any(one in data for data in chosen.values())])
    }
    probe_models(
        ProbeRecipe.model_validate({
            "recipe": "probe", "name": recipe.name, "seed": recipe.seed, "groups": groups,
            "models": {
                name: {"model": str(run.path / "students" / name / "final")} for name in recipe.students
            },
            "tasks": {
                task: {language: one.model_dump() for language, one in data.items()} for task, data in chosen.items()
            },
            "probing": recipe.probe.probing.model_dump(mode="json"),
        }),
        run,
        read_tasks(chosen, field="probe.tasks"),
    )  # fmt: skip
