"""The evaluation stage of an extraction: student and teacher on the same masked tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from polydistill.artefacts import artefact, is_current
from polydistill.corpora.examples import Examples
from polydistill.disk import fingerprint, hash_folder, write_json
from polydistill.evaluation.cost import compare_cost
from polydistill.evaluation.readers import Reader, evaluate_language, sample_guesses, text_files
from polydistill.masking import masks_identity
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device, resolve_dtype
from polydistill.pipelines.extract.state import Extract, load_teacher
from polydistill.pipelines.extract.tokenizer import corpus_of


def evaluate_models(state: Extract) -> None:
    """Student and teacher on held-out and further texts, to evaluation/mlm.json, samples.json and ranks.npz."""
    recipe, run = state.recipe, state.run
    corpus, made_from = corpus_of(state)
    target = run.path / "evaluation"
    inputs = {
        "stage": "evaluation",
        "student": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "teacher": state.weights,
        "tokenizer": state.tokenizer.fingerprint,
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": masks_identity(recipe.masking),
        "seed": recipe.seed,
        "corpus": fingerprint(made_from),
    }
    if is_current(target, inputs):
        return
    with run.stage("evaluate"), artefact(target, inputs) as folder:
        run.say(f"evaluating {recipe.language}")
        readers = make_readers(state)
        ranks: dict[str, Any] = {}
        common: dict[str, Any] = {
            "settings": recipe.evaluation, "masking": recipe.masking, "max_length": recipe.corpora.max_length,
            "seed": recipe.seed,
        }  # fmt: skip
        rows = evaluate_language(
            readers, training=Examples(corpus / "train.arrow"), texts=text_files(corpus),
            dtype=resolve_dtype(recipe.evaluation.precision), ranks=ranks, **common,
        )  # fmt: skip
        samples = sample_guesses(
            readers[:2], text_files(corpus)["held_out"], **common,
            decode=lambda index, reader: str(
                (state.original if reader.name == "teacher" else state.tokenizer).backend.id_to_token(index)
            ),
        )  # fmt: skip
        languages = {recipe.language: rows}
        difference = difference_from_teacher(rows)
        summary = {"D": difference, "differences": {recipe.language: difference}}
        write_json(folder / "mlm.json", {"languages": languages, "summary": summary, "ties": "mean rank"})
        write_json(folder / "samples.json", {recipe.language: samples})
        np.savez_compressed(
            folder / "ranks.npz", **{f"{recipe.language}/{key}": value for key, value in ranks.items()}
        )


def measure_serving(state: Extract) -> None:
    """Size, latency and peak memory of teacher and student, to cost/cost.json: beside the evaluation, whose bytes are
    the same on every run.
    """
    recipe, run = state.recipe, state.run
    if not recipe.cost.rounds:
        return
    final = run.path / "student" / "final"
    target = run.path / "cost"
    inputs = {
        "stage": "cost",
        "student": hash_folder(final, pattern="*.safetensors"),
        "teacher": state.weights,
        "settings": recipe.cost.model_dump(mode="json"),
    }
    if is_current(target, inputs):
        return
    with run.stage("cost"), artefact(target, inputs) as folder:
        run.say("measuring latency and memory of teacher and student")
        names = {recipe.teacher.model: "teacher", str(final): "student"}
        rows = compare_cost(
            list(names), shapes=recipe.cost.shapes, rounds=recipe.cost.rounds, calls=recipe.cost.calls,
            loading={recipe.teacher.model: recipe.teacher.model_dump(include={"revision", "allow_pickle"})},
        )  # fmt: skip
        # Names and no paths: the folder is read on other machines too.
        write_json(folder / "cost.json", [row | {"model": names[row["model"]]} for row in rows])


def make_readers(state: Extract) -> list[Reader]:
    """Teacher and student by the student's tokenizer, so that both guess the same tokens; then, if pieces were dropped,
    the teacher by its own.
    """
    student = load_masked_lm(str(state.run.path / "student" / "final"), name="student").to(device())
    teacher = load_teacher(state.recipe).to(device())
    if state.kept is None:
        return [
            Reader(name, model, state.tokenizer, "own", "teacher")
            for name, model in (("teacher", teacher), ("student", student))
        ]
    # The student chooses among fewer pieces: the teacher's second rank is among these.
    pieces = np.zeros(teacher.config.vocab_size, dtype=bool)
    pieces[state.kept] = True
    return [
        Reader("teacher", teacher, state.tokenizer, "trimmed", "teacher", state.kept, pieces),
        Reader("student", student, state.tokenizer, "trimmed", "teacher"),
        Reader("teacher", teacher, state.original, "own", "teacher"),
    ]


def difference_from_teacher(rows: list[dict[str, Any]]) -> float:
    """The student's MRR minus the teacher's on held-out text, same masked tokens, ranked among the student's pieces."""
    first = [row for row in rows if row["text"] == "held_out"][:2]
    teacher, student = first
    return float(student["mrr"] - teacher.get("mrr_teacher_pieces", teacher["mrr"]))
