"""A grid: recipes run one after the other, each in a folder of its own within the grid's, and one table of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polydistill.config.grid import GridRecipe
from polydistill.config.load import AnyRecipe
from polydistill.disk import hash_file, read_json, write_json
from polydistill.evaluation.convergence import Curve, compared, loss_curve
from polydistill.pipelines.grid.children import check_children, children_of
from polydistill.pipelines.run_folder import Run
from polydistill.reports.page import report_run

STAGES = ("evaluate", "report")


def run_grid(
    recipe: GridRecipe, run: Run, run_one: Callable[[AnyRecipe, Callable[[str], None]], Path], *, until: str
) -> Path:
    """Run every recipe of a grid; returns its folder, which holds each run's by its name and evaluation/grid.json.

    run_one  runs a recipe to its end; gets the recipe and where its lines go
    A run that is done is not done again, so the same command goes on after a crash.
    """
    children = children_of(recipe)
    check_children(children)
    with run.claim():
        run.record_recipe()
        for number, (name, child) in enumerate(children.items(), 1):
            run.say(f"{name} ({number} of {len(children)}, {child.recipe})")
            with run.stage(name):
                run_one(child, lambda line, name=name: run.say(f"{name}: {line}"))  # type: ignore[misc]
        rows = [row for name in children for row in grid_rows(Path(children[name].output), name)]
        curves = {
            name: curve for name, child in children.items() if (curve := loss_curve(Path(child.output)))
        }
        found = {
            "rows": rows, "runs": list(children), "sooner": sooner(children, curves),
            "losses": {name: curve._asdict() for name, curve in curves.items()},
        }  # fmt: skip
        write_json(run.path / "evaluation" / "grid.json", found, sealed=True)
        if until == "report":
            with run.stage("report"):
                path = report_run(run.path)
            run.say(f"report: {path}")
    return run.path


def grid_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """One row for each language, text, model and tokenizer of a run, or each task of its probes and fine-tuning."""
    mlm, probes, tuned = (folder / "evaluation" / f"{kind}.json" for kind in ("mlm", "probes", "finetune"))
    rows: list[dict[str, Any]] = []
    if mlm.is_file():
        rows += [
            {"run": name, "place": f"{language}, {row['text']}", "language": language, "text": row["text"], "model": row["model"], "tokenizer": row["tokenizer"],
             "teacher": row["teacher"], "measure": "MRR", "value": row["mrr"], "error": row["mrr_error"],
             "masked": row["num_masked"]}
            for language, found in read_json(mlm)["languages"].items()
            for row in found
        ]  # fmt: skip
    if probes.is_file():
        rows += [
            {"run": name, "place": f"{task}, {group}, {kind.replace('_', ' ')}", "model": model, "tokenizer": None,
             "teacher": None, "measure": metric.replace("_", " "), "value": cell["mean"], "error": cell["deviation"]}
            for task, metrics in read_json(probes)["summary"].items()
            for metric, models in metrics.items()
            for model, groups in models.items()
            for group, kinds in groups.items()
            for kind, cell in kinds.items()
            if cell
        ]  # fmt: skip
    if tuned.is_file():
        rows += [
            {"run": name, "place": f"{task}, {target}", "model": model, "tokenizer": None, "teacher": None,
             "measure": metric.replace("_", " "), "value": cell["mean"], "error": cell["deviation"]}
            for task, metrics in read_json(tuned).get("summary", {}).items()
            for metric, models in metrics.items()
            for model, targets in models.items()
            for target, cell in targets.items()
        ]  # fmt: skip
    return rows


def sooner(children: Mapping[str, AnyRecipe], curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Where each run's student reaches the loss at which another's ends: see `evaluation.convergence.reached`.

    curves  of the runs that trained one
    Only of runs that guess the same pieces of the same text.
    """
    alike: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        alike.setdefault(_what_is_guessed(children[name]), {})[name] = curve
    return [
        {"run": name, "other": other, "step": found and found.step, "factor": found and found.factor}
        for group in alike.values()
        for name, others in compared(group).items()
        for other, found in others.items()
    ]


def _what_is_guessed(child: AnyRecipe) -> str:
    """Equal for runs whose losses can be compared."""
    settings = child.model_dump(mode="json")
    texts = settings.get("text") or {
        language: one["text"] for language, one in (settings.get("languages") or {}).items()
    }
    tokenizer = Path(child.output) / "student" / "final" / "tokenizer.json"
    return json.dumps(
        [texts, settings.get("corpora"), settings.get("masking"), hash_file(tokenizer) if tokenizer.is_file() else None],
        sort_keys=True,
    )  # fmt: skip
