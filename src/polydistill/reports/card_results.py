"""A card's results: a table for readers, and the hub's `model-index` for its own pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from polydistill.disk import Json
from polydistill.reports.card_sections import metadata_block, split_card

# Figures on fewer masked tokens are marked: the standard error of an MRR is then about 0.015 or more.
FEW_MASKED = 500
RESULTS, LICENCE = "## Results", "## Licence"
# Tokenizers that a model has one of.
WHOLE = ("union", "student", "shared", "trimmed")


def with_error(row: Json) -> str:
    """A row's MRR ± its standard error, which an evaluation of a single example lacks."""
    error = row.get("mrr_error", 0.0)
    return f"{row['mrr']:.3f}" + (f" ±{error:.3f}".replace("±0.", "±.") if error else "")


def with_results(card: str, languages: Mapping[str, Sequence[Json]], model: str) -> str:
    """A card with a table of the model's results, which replaces an existing table.

    languages  language → rows of evaluation/mlm.json
    model      its name in the rows
    The teacher's figure is on the same masked tokens, and among shared pieces where the student has fewer.
    The card's metadata gets the same figures as its `model-index`.
    """
    front, card = split_card(card)
    start, end = card.find(RESULTS), card.find(LICENCE)
    end = len(card) if end < 0 else end
    before, after = card[: start if 0 <= start < end else end], card[end:]
    lines = [
        RESULTS,
        "",
        "Mean reciprocal rank of masked tokens on held-out and further text, ± its standard error over "
        "examples; unigram: pieces ranked by their frequency alone.",
        "",
        "| language | text | tokenizer | MRR | teacher | unigram | top-1 | masked tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    few = False
    for language, rows in languages.items():
        for row in rows:
            if row["model"] != model:
                continue
            place = (row["text"], row["tokenizer"], row["teacher"])
            teacher = next(
                (
                    f"{other.get('mrr_teacher_pieces', other['mrr']):.3f}"
                    for other in rows
                    if other["model"] in ("teacher", row["teacher"])
                    and (other["text"], other["tokenizer"], other["teacher"]) == place
                    and other["model"] != model
                ),
                "",
            )
            lines.append(
                f"| {language} | {row['text']} | {row['tokenizer']} | {with_error(row)} | {teacher} | "
                f"{row['unigram_mrr']:.3f} | {row['top1']:.3f} | {row['num_masked']:,} |"
            )
            few = few or row["num_masked"] < FEW_MASKED
    if few:
        lines += ["", f"Figures on fewer than {FEW_MASKED} masked tokens are too noisy to compare models."]
    body = "\n".join([before.rstrip(), "", *lines, "", after])
    if not front:
        return body
    name = next((line[2:] for line in body.splitlines() if line.startswith("# ")), model)
    found = [result for language, rows in languages.items() for result in _results(language, rows, model)]
    return "\n".join(
        [*metadata_block(front | {"model-index": model_index(name, found)}), "", body.lstrip("\n")]
    )


def _results(language: str, rows: Sequence[Json], model: str) -> list[EvalResult]:
    """The hub's form of the rows of a model in a language; a figure that is no number is left out."""
    metrics = (
        ("mrr", "mrr", "mean reciprocal rank of masked tokens"),
        ("top1", "accuracy", "top-1 of masked tokens"),
        ("nats_per_character", "nats_per_character", "nats per character of hidden words"),
    )
    return [
        EvalResult(
            task_type="fill-mask",
            dataset_type=row["text"],
            dataset_name=f"{language}, {row['text'].replace('_', ' ')} text",
            metric_type=kind,
            metric_name=name if row["tokenizer"] in WHOLE else f"{name}, tokenizer of {row['teacher']}",
            metric_value=round(float(row[key]), 4),
        )
        for row in rows
        if row["model"] == model
        for key, kind, name in metrics
        if row.get(key) is not None and math.isfinite(row[key])
    ]


def model_index(name: str, results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """`model-index` of a card's metadata, as the hub reads it."""
    index: list[dict[str, Any]] = eval_results_to_model_index(name, list(results))
    return index
