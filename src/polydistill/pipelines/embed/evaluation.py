"""What teacher, start and student are worth: held-out cosine, retrieval of translations, similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polydistill.corpora.sentences import read_split
from polydistill.disk import Json, hash_folder, read_json, write_json, write_text
from polydistill.evaluation.sentences import cosines, rank_correlation, retrieval_accuracy
from polydistill.models.precision import device, resolve_dtype
from polydistill.models.sentence_files import read_sentence_files
from polydistill.models.sentences import SentenceEncoder, encode_ids, load_sentence_encoder
from polydistill.pipelines.embed.state import Embedding, SentenceModel
from polydistill.pipelines.embed.student import first_student
from polydistill.pipelines.embed.vectors import stored_vectors
from polydistill.pipelines.run_folder import fingerprints
from polydistill.reports.card_embed import embed_card, with_embed_results

EVALUATION_VERSION = 1
MODELS = ("teacher", "start", "student")
Rows = npt.NDArray[np.float32]
# Texts → [N, D] vectors.
Encode = Callable[[list[str]], Rows]


def evaluate_models(state: Embedding) -> None:
    """Measure teacher, start and student, to evaluation/embed.json, and put the results on the card."""
    recipe, run = state.recipe, state.run
    final = run.path / "student" / "final"
    inputs = {
        "stage": "evaluation",
        "version": EVALUATION_VERSION,
        "student": hash_folder(final, pattern="*.safetensors"),
        "start": state.student.identity(),
        "teacher": state.teacher.identity(),
        "sentences": fingerprints(state.sentences),
        "vectors": fingerprints(state.vectors),
        "measured": state.measured_on,
        "settings": recipe.evaluation.model_dump(mode="json", exclude={"retrieval", "similarity"}),
        "projection": recipe.student.model_dump(mode="json", include={"projection", "projection_sentences"}),
        "seed": recipe.seed,
    }

    def write(folder: Path) -> None:
        results: Json = {"languages": {}, "retrieval": {}, "similarity": {}, "models": list(MODELS)}
        for number, (model, encode) in enumerate(_encoders(state)):
            run.count("evaluation", number, len(MODELS), "models")
            if model != "teacher":
                _held_out(state, model, encode, results["languages"])
            _parallel(state, model, encode, results["retrieval"])
            _scored(state, model, encode, results["similarity"])
            run.say(f"{model}: {_line(results, model)}")
        write_json(folder / "embed.json", results)

    run.make("evaluation", inputs, write, stage="evaluate")
    # On every run: a retrained model has a card without results.
    results = read_json(run.path / "evaluation" / "embed.json", dict)
    write_text(final / "README.md", with_embed_results(embed_card(recipe), results))


def _encoders(state: Embedding) -> Iterator[tuple[str, Encode]]:
    """Each model and how it encodes; loaded in turn."""

    def encoder(model: SentenceEncoder, reader: SentenceModel) -> Encode:
        return lambda texts: encode_ids(
            model.eval(),
            reader.ids(texts),
            reader.pad_id,
            batch_tokens=state.recipe.evaluation.batch_tokens,
            dtype=resolve_dtype(state.recipe.evaluation.precision),
        )

    yield "teacher", encoder(state.teacher.model, state.teacher)
    yield "start", encoder(first_student(state), state.student)
    final = str(state.run.path / "student" / "final")
    files = read_sentence_files(final, field="student")
    loaded = load_sentence_encoder(files, max_length=state.student.max_length, field="student").to(device())
    yield "student", encoder(loaded, state.student)


def _held_out(state: Embedding, model: str, encode: Encode, results: Json) -> None:
    """Mean cosine with the teacher's stored vectors on held-out sentences, and its standard error."""
    for name, artefact in state.sentences.items():
        split = read_split(artefact.path, "held_out")
        target = stored_vectors(state.vectors[name], "held_out")[split.rows].astype(np.float32)
        values = cosines(encode(split.texts), target)
        results.setdefault(name, {"sentences": len(values), "models": {}})["models"][model] = {
            "cosine": float(values.mean()),
            "error": float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0,
        }


def _parallel(state: Embedding, model: str, encode: Encode, results: Json) -> None:
    """Retrieval accuracy from every language (outer) to every other, and the mean over all pairs."""
    for name, languages in state.measured.parallel.items():
        vectors = {language: encode(texts) for language, texts in languages.items()}
        pairs = {
            source: {
                target: retrieval_accuracy(vectors[source], vectors[target])
                for target in languages
                if target != source
            }
            for source in languages
        }
        number = len(next(iter(languages.values())))
        of_name = results.setdefault(name, {"sentences": number, "pairs": {}, "means": {}})
        of_name["pairs"][model] = pairs
        of_name["means"][model] = float(np.mean([v for row in pairs.values() for v in row.values()]))


def _scored(state: Embedding, model: str, encode: Encode, results: Json) -> None:
    """Spearman's correlation with people's scores; None for a model whose cosines are all equal."""
    for name, pairs in state.measured.scored.items():
        of_name = results.setdefault(name, {"pairs": len(pairs.first), "models": {}})
        of_name["models"][model] = rank_correlation(encode(pairs.first), encode(pairs.second), pairs.scores)


def _line(results: Json, model: str) -> str:
    """A model's figures in one line."""
    parts = [
        f"cosine {language} {row['models'][model]['cosine']:.3f}"
        for language, row in results["languages"].items()
        if model in row["models"]
    ]
    parts += [f"retrieval {name} {row['means'][model]:.3f}" for name, row in results["retrieval"].items()]
    parts += [
        f"Spearman {name} {'none' if row['models'][model] is None else format(row['models'][model], '.3f')}"
        for name, row in results["similarity"].items()
    ]
    return ", ".join(parts) or "nothing to measure"
