"""The evaluation stage of an extraction: student and teacher on the same masked tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polydistill.corpora.examples import Examples
from polydistill.disk import Json, hash_folder, write_json
from polydistill.evaluation.cost import compare_cost
from polydistill.evaluation.readers import Reader, text_files
from polydistill.evaluation.summaries import TEACHER, HeldOut, summarise
from polydistill.masking import evaluation_masks_identity
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device
from polydistill.pipelines.extract.state import Extract, load_teacher
from polydistill.pipelines.stages.evaluation import Measured, Reading, evaluate


def evaluate_models(state: Extract) -> None:
    """Evaluate student, teacher and adapted teacher on held-out and further texts.

    Writes mlm.json, samples.json and ranks.npz into evaluation/.
    """
    recipe, run = state.recipe, state.run
    inputs = {
        "stage": "evaluation",
        "student": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "teacher": state.weights,
        "tokenizer": state.tokenizer.fingerprint,
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": evaluation_masks_identity(recipe.masking),
        "seed": recipe.seed,
        "corpus": state.corpus.fingerprint,
    }
    if state.adapted is not None:
        inputs["adapted"] = state.adapted.fingerprint
    evaluate(run, "evaluation", inputs, recipe, lambda: [_reading(state)], _summary)


def _reading(state: Extract) -> Reading:
    corpus, readers = state.corpus.path, make_readers(state)

    def decode(index: int, reader: Reader) -> str:
        tokenizer = (
            state.tokenizer if reader.model.config.vocab_size == state.tokenizer.size else state.original
        )
        return str(tokenizer.backend.id_to_token(index))

    training = Examples(corpus / "train.arrow")
    # Those that read alike, the student's pieces or all.
    shown = [reader for reader in readers if reader.view == readers[0].view]
    return Reading(state.recipe.language, readers, training, text_files(corpus), shown, decode)


def _summary(measured: Measured) -> Json:
    """Compare the student with its teacher on the same masked tokens, ranked among the student's pieces."""
    languages = {}
    for language, measures in measured.items():
        # `held_out/view/teacher/model`; the first two readers share a view.
        student = next(
            (place for place in measures if place.startswith("held_out/") and place.endswith("/student")),
            None,
        )
        if student is not None:
            teacher = measures[f"{student.rpartition('/')[0]}/teacher"]
            ranks = teacher.ranks if teacher.restricted_ranks is None else teacher.restricted_ranks
            reciprocal = {TEACHER: 1.0 / ranks, "student": 1.0 / measures[student].ranks}
            languages[language] = HeldOut(reciprocal, teacher.counts)
    return summarise(languages, {})


def measure_serving(state: Extract) -> None:
    """Measure size, latency and peak memory of teacher and student, to cost/cost.json. The evaluation stays
    apart: its bytes are the same on every run.
    """
    recipe, run = state.recipe, state.run
    if not recipe.cost.rounds:
        return
    final = run.path / "student" / "final"
    inputs = {
        "stage": "cost",
        "student": hash_folder(final, pattern="*.safetensors"),
        "teacher": state.weights,
        "settings": recipe.cost.model_dump(mode="json"),
    }

    def write(folder: Path) -> None:
        run.say("measuring latency and memory of teacher and student")
        names = {recipe.teacher.model: "teacher", str(final): "student"}
        rows = compare_cost(
            list(names),
            shapes=recipe.cost.shapes,
            rounds=recipe.cost.rounds,
            calls=recipe.cost.calls,
            names=names,
            say=run.say,
            count=run.count,
            loading={recipe.teacher.model: recipe.teacher.model_dump(include={"revision", "allow_pickle"})},
        )
        # Names instead of paths: the folder is read on other machines too.
        write_json(folder / "cost.json", [row | {"model": names[row["model"]]} for row in rows])

    run.make("cost", inputs, write)


def make_readers(state: Extract) -> list[Reader]:
    """Teacher, adapted teacher if any, and student with the student's tokenizer, so that all guess the same
    tokens; then, if pieces were dropped, the teacher with its own.
    """
    models = {"teacher": load_teacher(state.recipe)}
    if state.adapted is not None:
        models["adapted"] = load_masked_lm(str(state.adapted.path), name="adapted")
    models["student"] = load_masked_lm(str(state.run.path / "student" / "final"), name="student")
    view = "own" if state.kept is None else "trimmed"
    readers = []
    for name, model in models.items():
        # The student chooses among fewer pieces: the second rank of a model of all pieces is among these.
        mapping = pieces = None
        if state.kept is not None and model.config.vocab_size != len(state.kept):
            mapping, pieces = state.kept, np.zeros(model.config.vocab_size, dtype=bool)
            pieces[state.kept] = True
        readers.append(Reader(name, model.to(device()), state.tokenizer, view, "teacher", mapping, pieces))
    if state.kept is not None:
        readers.append(Reader("teacher", readers[0].model, state.original, "own", "teacher"))
    return readers
