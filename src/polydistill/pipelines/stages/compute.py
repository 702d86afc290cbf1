"""What a run's models cost: steps, seconds of this machine, floating-point operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from polydistill.artefacts import ARTEFACTS, artefact_places
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_record
from polydistill.evaluation.compute import Sizes, forward_operations, sizes_of, training_operations
from polydistill.reports.records import LOG, TIMING
from polydistill.store.schema import MANIFEST

# What is counted, each with seconds and operations.
PARTS = ("training", "scoring", "teachers")
# A model's folder → its stage in timing.json, where that has another name.
STAGES = {"student": "train", "teacher": "adapt"}
# Default of `masking.probability` where a recipe of an earlier version has none.
MASKED = 0.15


def run_compute(run: Path, made_in: Path | None = None) -> dict[str, Json]:
    """Model → its `steps`, `seconds` and `flops` of its training, of the scoring that it learned from, and of
    the training of its teachers, `counted` naming those that were made within `made_in`; {} for a run that
    trains nothing.

    made_in  a folder that holds the run, such as a grid's; by default the run's own
    `flops` is None where a model's weights or tokens are not known. A teacher that runs beside the student
    (`extract`, `balance`) is in the student's seconds; its operations are in `scoring`.
    """
    recipe_file = run / "recipe.yaml"
    recipe: Json = read_resolved(recipe_file) if recipe_file.is_file() else {}
    scope = (made_in or run).resolve()
    rows: dict[str, Json] = {}
    for folder in (run / "student", *sorted((run / "students").glob("*"))):
        log = read_record(folder / LOG)
        if not log:
            continue
        row: Json = {"steps": _steps(log), "training": _training(run, folder, log, recipe)}
        row["scoring"] = _scoring(run, scope, recipe, row["training"]) if _taught(folder, recipe) else None
        row["teachers"] = _teachers(run, scope, recipe)
        row["counted"] = [part for part in PARTS if row[part] is not None]
        rows[folder.name] = row | {"total": total(row[part] for part in PARTS if row[part] is not None)}
    return rows


def over_seeds(each: Iterable[Mapping[str, Json]]) -> dict[str, Json]:
    """Model → the means over runs that differ by their seed."""
    together: dict[str, list[Json]] = {}
    for rows in each:
        for model, row in rows.items():
            together.setdefault(model, []).append(row)
    return {model: _mean(rows) for model, rows in together.items()}


def _mean(rows: Sequence[Json]) -> Json:
    mean: Json = {"steps": round(sum(row["steps"] for row in rows) / len(rows)), "runs": len(rows)}
    for part in (*PARTS, "total"):
        known = [row[part] for row in rows if row[part] is not None]
        # What one seed made and the others reuse counts for all of them.
        mean[part] = (
            {key: None if value is None else value / len(known) for key, value in total(known).items()}
            if known
            else None
        )
    mean["counted"] = [part for part in PARTS if mean[part] is not None]
    return mean


def total(parts: Iterable[Json]) -> Json:
    """Seconds and operations together; None where one of them is not known."""
    found = list(parts)
    return {
        key: None if any(part[key] is None for part in found) else sum(part[key] for part in found)
        for key in ("seconds", "flops")
    }


def _taught(folder: Path, recipe: Json) -> bool:
    """Whether a model learned from a teacher; a merge's student reads its stores whatever its labels are."""
    student = recipe.get("students", {}).get(folder.name, {}) if recipe.get("recipe") == "balance" else {}
    return bool(student.get("labels") != "gold")


def _steps(log: Json) -> int:
    return int(max((entry.get("step", 0) for entry in log.get("log", [])), default=0))


def _training(run: Path, folder: Path, log: Json, recipe: Json) -> Json:
    stage = STAGES.get(folder.name) or folder.relative_to(run).as_posix()
    runtime = next((entry["train_runtime"] for entry in log.get("log", []) if "train_runtime" in entry), None)
    # A model that was copied from another run has that training's log, and no stage here.
    seconds = read_record(run / TIMING).get(stage, runtime)
    final = folder / ("adapted" if folder.name == "teacher" else "final")
    sizes, tokens = sizes_of(final), log.get("tokens")
    if sizes is None or tokens is None:
        return {"seconds": seconds, "flops": None, "tokens": tokens, "length": None}
    length = tokens / max(1, _steps(log) * _batch(log.get("arguments", {})))
    flops = training_operations(sizes, tokens, length, tokens * _masked(recipe))
    return {"seconds": seconds, "flops": flops, "tokens": tokens, "length": length}


def _batch(arguments: Json) -> int:
    size = arguments.get("per_device_train_batch_size", 1) * arguments.get("gradient_accumulation_steps", 1)
    return int(size)


def _masked(recipe: Json) -> float:
    return float(recipe.get("masking", {}).get("probability", MASKED))


def _scoring(run: Path, scope: Path, recipe: Json, training: Json) -> Json | None:
    """The stores that the run reads, as far as made within `scope`; of a live teacher its passes."""
    found: list[Json] = []
    places = artefact_places(run) if (run / ARTEFACTS).is_file() else {}
    for name, place in places.items():
        if name.startswith("store/") and place.resolve().is_relative_to(scope):
            found.append(_store(name, place, recipe))
    if recipe.get("recipe") == "extract" and not found:
        found.append(_live(Path(recipe["teacher"]["model"]), training, recipe))
    if recipe.get("recipe") == "balance":
        first = next(iter(sorted((run / "teachers").glob("*/final"))), None)
        if first is not None:
            found.append(_live(first, training, recipe))
    return total(found) if found else None


def _store(name: str, place: Path, recipe: Json) -> Json:
    shards = read_record(place / MANIFEST).get("shards", [])
    tokens, masked, examples = (
        sum(shard[key] for shard in shards) for key in ("tokens", "masked", "examples")
    )
    _, _, of_store = name.split("/", 2)
    teacher = recipe.get("teachers", {}).get(of_store.partition("@")[0]) or recipe.get("teacher") or {}
    model = teacher.get("model", "") if isinstance(teacher, dict) else teacher
    sizes = sizes_of(Path(model)) if model and Path(model).is_dir() else None
    flops = None if sizes is None else forward_operations(sizes, tokens, tokens / max(1, examples), masked)
    seconds = read_record(place.parents[2] / TIMING).get(name.replace("store/", "score/", 1))
    return {"seconds": seconds, "flops": flops}


def _live(teacher: Path, training: Json, recipe: Json) -> Json:
    sizes: Sizes | None = sizes_of(teacher) if teacher.is_dir() else None
    tokens, length = training["tokens"], training["length"]
    if sizes is None or tokens is None or length is None:
        return {"seconds": 0.0, "flops": None}
    return {"seconds": 0.0, "flops": forward_operations(sizes, tokens, length, tokens * _masked(recipe))}


def _teachers(run: Path, scope: Path, recipe: Json) -> Json | None:
    """Training and scoring of the teachers that were made within `scope`, an adapted one among them."""
    parts: list[Json] = []
    for folder in (*sorted((run / "teachers").glob("*")), run / "teacher"):
        if log := read_record(folder / LOG):
            parts.append(_training(run, folder, log, recipe))
    teachers = recipe.get("teachers")
    named = [recipe.get("teacher"), *(teachers.values() if isinstance(teachers, dict) else ())]
    models = {value["model"] for value in named if isinstance(value, dict) and "model" in value}
    for model in sorted(models):
        path = Path(model).resolve()
        if (
            path.parts[-2:] == ("student", "final")
            and path.is_relative_to(scope)
            and path.parents[1] != run.resolve()
        ):
            parts += [row["total"] for row in run_compute(path.parents[1], scope).values()]
    return total(parts) if parts else None
