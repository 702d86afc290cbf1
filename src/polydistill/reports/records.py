"""A run's records (recipe, places of artefacts, times, training logs), checked before they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from polydistill.artefacts import ARTEFACTS, STAMP, artefact_places, check_file
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json, read_record, write_json
from polydistill.errors import RunFolderError

ENVIRONMENT, TIMING = "environment.json", "timing.json"
# A training's log, beside its model.
LOG = "log.json"
# Evaluation file → the keys that tables and pages need.
EVALUATED = {
    "mlm.json": ("languages", "summary"),
    "probes.json": ("summary", "scores"),
    "grid.json": ("rows", "runs"),
    "finetune.json": ("done", "jobs", "scores"),
    "embed.json": ("languages", "retrieval", "similarity", "models"),
}


def is_timing(value: object) -> bool:
    """Whether a value can be timing.json's: stage → seconds."""
    return isinstance(value, dict) and all(is_seconds(seconds) for seconds in value.values())


def is_seconds(value: object) -> bool:
    """Whether a value is a time: a finite number that is not negative."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )


def is_environment(value: object) -> bool:
    """Whether a value can be environment.json's."""
    names = {"python", "processor", "cores", "memory_gib", "gpu", "packages"}
    return isinstance(value, dict) and names <= value.keys() and isinstance(value["packages"], dict)


def heal_records(run: Path) -> None:
    """Drop invalid entries from a run's records. Nothing depends on them, and the run writes them again."""
    for name in (TIMING, ARTEFACTS):
        path = run / name
        if not path.is_file():
            continue
        record = read_record(path)
        kept = {
            key: value
            for key, value in record.items()
            if (is_seconds(value) if name == TIMING else _is_there(run, key, value))
        }
        if kept != record or not kept:
            write_json(path, kept)


def _is_there(run: Path, name: str, place: object) -> bool:
    """Whether an entry of artefacts.json holds. The run records again what it makes or reuses."""
    return isinstance(place, str) and (name.startswith("teachers/") or (run / place / STAMP).is_file())


def check_records(run: Path) -> list[str]:
    """Read the records of a run's folder; return the names of those that exist.

    Raises RunFolderError, with a remedy, for the first that is missing, damaged or not a record.
    """
    check_recipe(run)
    read = ["recipe.yaml"]
    for name, whole in ((ENVIRONMENT, is_environment), (TIMING, is_timing)):
        if (run / name).is_file():
            if not whole(read_json(run / name, dict)):
                raise _no_record(run / name, "remove it and rerun the command: it is made again")
            read.append(name)
        elif name == ENVIRONMENT:
            raise _gone(run / name, "rerun the command: it is made again")
    if (run / ARTEFACTS).is_file():
        for name, place in artefact_places(run).items():
            if name.startswith("corpora/") and (place / STAMP).is_file():
                check_file(place, "statistics.json")
                read_json(place / "statistics.json", dict)
        read.append(ARTEFACTS)
    elif any((run / name).is_dir() for name in ("corpora", "store", "jobs", "vectors")):
        raise _gone(run / ARTEFACTS, "rerun the command: it is made again")
    for name, keys in EVALUATED.items():
        path = run / "evaluation" / name
        if path.is_file():
            check_evaluation(path, keys)
            read.append(f"evaluation/{name}")
    return read + [path.relative_to(run).as_posix() for path in check_logs(run)]


def summary_of(evaluation: Json) -> Json:
    """The summary in mlm.json (see `evaluation.summaries.summarise`), whichever version wrote it.

    Earlier versions wrote D as a number without an interval for merges and extractions, and no D for
    pre-trainings.
    """
    summary: Json = evaluation["summary"]
    if isinstance(summary.get("D"), dict):
        return summary
    cells = {
        group: {"value": value}
        for group, value in {"all": summary.get("D"), **summary.get("differences", {})}.items()
        if value is not None
    }
    return {"mrr": {}, "D": {"student": cells} if cells else {}, "differences": {}, "first": "student"}


def check_evaluation(path: Path, keys: tuple[str, ...] | None = None) -> Json:
    """The contents of an evaluation's file; RunFolderError if it lacks a key that tables need."""
    evaluation: Json = read_json(path, dict)
    lacking = [key for key in keys or EVALUATED[path.name] if key not in evaluation]
    if lacking:
        raise RunFolderError(
            str(path),
            None,
            f"is damaged: it has no {lacking[0]!r}",
            f"remove the folder {path.parent} and rerun the command: it is made again",
        )
    return evaluation


def check_recipe(run: Path) -> Json:
    """A run's recipe; RunFolderError if its recipe.yaml is missing or is no recipe."""
    path = run / "recipe.yaml"
    try:
        recipe = read_resolved(path)
    except OSError as error:
        raise _gone(path, "run the same command again") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunFolderError(
            str(path),
            None,
            "is damaged: it is no longer YAML",
            "rerun the recipe with --update, which rewrites it",
        ) from error
    if not isinstance(recipe, Mapping) or not all(
        isinstance(recipe.get(key), str) for key in ("name", "recipe")
    ):
        raise RunFolderError(
            str(path),
            None,
            "is damaged: it is no recipe",
            "rerun the recipe with --update, which rewrites it",
        )
    return dict(recipe)


def check_logs(run: Path) -> list[Path]:
    """The logs of a run's trainings; RunFolderError if a whole model's log is missing or damaged."""
    logs = []
    for folder in (
        run / "student",
        *sorted((run / "students").glob("*")),
        *sorted((run / "teachers").glob("*")),
        run / "teacher",
    ):
        names = ("untrimmed", "final", "adapted")
        trained = next((folder / name for name in names if (folder / name / STAMP).is_file()), None)
        if trained is None:
            continue
        remedy = (
            f"remove the folder {trained} and rerun the command: it is made again, from the last checkpoint "
            "where one is left, and its log with it"
        )
        path = folder / LOG
        if not path.is_file():
            raise _gone(path, remedy)
        try:
            log = read_json(path, dict)
        except RunFolderError as error:
            raise RunFolderError(error.field, error.value, error.reason, remedy) from error
        if not _is_log(log):
            raise _no_record(path, remedy)
        logs.append(path)
    return logs


def _is_log(log: Json) -> bool:
    entries, shares = log.get("log"), log.get("probabilities")
    return (
        isinstance(entries, list)
        and all(isinstance(entry, dict) and "step" in entry for entry in entries)
        and isinstance(shares, dict)
        and all(type(share) in (int, float) for share in shares.values())
    )


def _gone(path: Path, remedy: str) -> RunFolderError:
    return RunFolderError(str(path), None, "is gone", remedy)


def _no_record(path: Path, remedy: str) -> RunFolderError:
    return RunFolderError(str(path), None, "is damaged: it does not hold what a run writes there", remedy)
