"""The stages that recipes share at the end: evaluation on every language's texts, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polydistill.config.shared import Masking, TextRecipe
from polydistill.corpora.examples import Examples
from polydistill.disk import Json, write_json
from polydistill.evaluation.mlm import Measures
from polydistill.evaluation.readers import Reader, evaluate_language, sample_guesses
from polydistill.models.precision import resolve_dtype
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.reports.page import report_run

# Of how shown sentences are chosen.
SAMPLES_VERSION = 2


class Reading(NamedTuple):
    """What a language is evaluated with.

    training  the training text, for counts of its pieces
    texts     name → evaluation text
    shown     the readers, of one tokenizer, whose guesses the report shows
    decode    (a model's id, its reader) → the piece in readable form
    """

    language: str
    readers: Sequence[Reader]
    training: Examples
    texts: Mapping[str, Examples]
    shown: Sequence[Reader] = ()
    decode: Callable[[int, Reader], str] | None = None


# Language → `text/view/teacher/model` → its measures.
Measured = dict[str, dict[str, Measures]]


def evaluate(
    run: Run,
    name: str,
    inputs: Json,
    recipe: TextRecipe,
    readings: Callable[[], Iterable[Reading]],
    summarise: Callable[[Measured], Json],
    *,
    masking: Masking | None = None,
    max_length: int | None = None,
    languages: int = 1,
) -> Artefact:
    """Evaluate into the folder `name`: mlm.json, ranks.npz and, where guesses are shown, samples.json.

    readings   loads models; called only if there is something to evaluate
    summarise  the summary of mlm.json, see `evaluation.summaries.summarise`
    masking, max_length  by default the recipe's
    languages  how many there are
    """

    def write(folder: Path) -> None:
        rows: dict[str, list[Json]] = {}
        samples: dict[str, list[Json]] = {}
        measured: Measured = {}
        common: Json = {
            "settings": recipe.evaluation,
            "masking": masking or recipe.masking,
            "max_length": max_length or recipe.corpora.max_length,
            "seed": recipe.seed,
        }
        for reading in readings():
            run.say(f"evaluating {reading.language}")
            run.count(name, len(measured), languages, "languages")
            measured[reading.language] = {}
            rows[reading.language] = evaluate_language(
                reading.readers,
                training=reading.training,
                texts=reading.texts,
                dtype=resolve_dtype(recipe.evaluation.precision),
                measured=measured[reading.language],
                **common,
            )
            if reading.shown:
                samples[reading.language] = sample_guesses(
                    reading.shown, reading.texts["held_out"], decode=reading.decode, **common
                )
        write_json(
            folder / "mlm.json", {"languages": rows, "summary": summarise(measured), "ties": "mean rank"}
        )
        if samples:
            write_json(folder / "samples.json", samples)
        ranks: Json = {}
        for language, of_language in measured.items():
            for place, measures in of_language.items():
                ranks[f"{language}/{place}"] = measures.ranks.astype(np.float32)
                ranks[f"{language}/{place.rpartition('/')[0]}/counts"] = measures.counts
        np.savez_compressed(folder / "ranks.npz", **ranks)

    return run.make(name, inputs | {"samples": SAMPLES_VERSION}, write, stage="evaluate")


def write_page(run: Run) -> None:
    """Write the report of a run."""
    path = report_run(run.path)
    run.say(f"report: {path}")
