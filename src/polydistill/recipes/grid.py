"""A grid: recipes run one after the other, each in a folder of its own within the grid's, and one table of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from polydistill.config import AnyRecipe, GridRecipe, grid_values, parse_recipe
from polydistill.errors import RecipeError
from polydistill.evaluation.convergence import Curve, compared, loss_curve
from polydistill.files import hash_file, read_json, write_json
from polydistill.recipes.run_folder import Run
from polydistill.reports import build_report

STAGES = ("evaluate", "report")


def run_grid(
    recipe: GridRecipe, run: Run, run_one: Callable[[AnyRecipe, Callable[[str], None]], Path], *, until: str
) -> Path:
    """Run every recipe of a grid; returns its folder, which holds each run's by its name and evaluation/grid.json.

    run_one  runs a recipe to its end; gets the recipe and where its lines go
    A run that is done is not done again, so the same command goes on after a crash.
    """
    children = children_of(recipe)
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
        write_json(run.path / "evaluation" / "grid.json", found)
        if until == "report":
            with run.stage("report"):
                path = build_report(run.path)
            run.say(f"report: {path}")
    return run.path


def children_of(recipe: GridRecipe) -> dict[str, AnyRecipe]:
    """Name → recipe of every run, in order; RecipeError names the run whose recipe cannot be used."""
    folder = Path(recipe.output or f"runs/{recipe.name}")
    changes = {
        name if variant is None else f"{name}-{variant}": (
            of_run,
            recipe.variants[variant] if variant else {},
        )
        for name, of_run in recipe.runs.items()
        for variant in (recipe.variants or [None])
    }
    whole = {name: grid_values(recipe.base, *of_run) for name, of_run in changes.items()} | recipe.after
    children: dict[str, AnyRecipe] = {}
    for name, values in whole.items():
        place = f"{'after' if name in recipe.after else 'runs'}.{name}"
        earlier = [str(folder / other) for other in children]
        values = values | {
            "name": name, "output": str(folder / name), "reuse": [*earlier, *recipe.reuse, *values.get("reuse", [])],
        }  # fmt: skip
        try:
            child = parse_recipe(values, origin=place)
        except RecipeError as error:
            # Of the recipe's own file they say the file; here it is a place in the grid.
            raise RecipeError(place, error.value, f"{error.field}: {error.reason}", error.remedy) from error
        if isinstance(child, GridRecipe):
            raise RecipeError(f"{place}.recipe", "grid", "a grid holds no grid", "write its runs here")
        children[name] = child
    return children


def awaited(child: AnyRecipe, earlier: list[str]) -> list[str]:
    """Folders of models that a run of a grid is to read, and that earlier runs of it have yet to make.

    earlier  folders of the runs before it
    """
    settings = child.model_dump()
    named = [settings.get("teacher")]
    for key in ("models", "teachers", "languages"):
        for one in (settings.get(key) or {}).values():
            named += [one.get("model"), one.get("teacher")] if isinstance(one, dict) else []
    models = [one.get("model") if isinstance(one, dict) else one for one in named]
    return [
        model
        for model in dict.fromkeys(models)
        if isinstance(model, str)
        and not Path(model).exists()
        and any(Path(model).is_relative_to(one) for one in earlier)
    ]


def grid_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """One row for each language, text, model and tokenizer of a run, or each task of its probes and fine-tuning."""
    mlm, probes, tuned = (folder / "evaluation" / f"{kind}.json" for kind in ("mlm", "probes", "finetune"))
    rows: list[dict[str, Any]] = []
    if mlm.is_file():
        rows += [
            {"run": name, "place": f"{language}, {row['text']}", "model": row["model"], "tokenizer": row["tokenizer"],
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
        {"run": name, "other": other, "step": found and found.step, "share": found and found.share}
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


def grid_table(folder: Path) -> Table:
    """The grid's rows for people: a line for each place, model and tokenizer, a column for each run."""
    found = read_json(folder / "evaluation" / "grid.json")
    table = Table(box=box.SIMPLE, title=str(folder))
    table.add_column("", overflow="fold")
    for name in found["runs"]:
        table.add_column(escape(name), justify="right", overflow="fold")
    for place, cells in by_place(found["rows"]).items():
        table.add_row(
            escape(place), *(f"{cells[name]['value']:.3f}" if name in cells else "" for name in found["runs"])
        )
    return table


def by_place(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Place, model and measure in words → run → row."""
    places: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        read_by = "" if row["tokenizer"] is None else f", {row['teacher'] or row['tokenizer']}'s tokenizer"
        key = f"{row['place']}: {row['measure']} of {row['model']}{read_by}"
        places.setdefault(key, {})[row["run"]] = row
    return places
