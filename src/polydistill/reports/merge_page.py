"""The page of a merge: the student beside its teachers in each language, the vocabulary and the stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from polydistill.artefacts import artefact_places
from polydistill.config.yaml_text import read_resolved
from polydistill.disk import Json, read_json
from polydistill.reports.figures import curves, grouped_bars, logged
from polydistill.reports.records import summary_of


def gather_merge(run: Path) -> Json:
    """The page's own values, read from the run's JSON files."""
    recipe = read_resolved(run / "recipe.yaml")
    evaluation = read_json(run / "evaluation" / "mlm.json")
    log = read_json(run / "student" / "log.json")
    vocabulary = read_json(run / "tokenizer" / "vocabulary.json")
    initialisation = read_json(run / "student" / "final" / "initialisation.json")
    return {
        "headline": _headline(evaluation),
        "verdict": verdict(summary_of(evaluation)["D"].get("student", {}), vocabulary["segmentation"]),
        "languages": _languages(run, recipe, log),
        "vocabulary": vocabulary,
        "segmentation": vocabulary["segmentation"],
        "mrr_figure": Markup(_mrr_figure(evaluation)),
        "words_figure": Markup(_words_figure(evaluation)),
        "loss_figure": Markup(_loss_figure(log["log"], ("kd_loss", "mlm_loss"))),
        "language_figure": Markup(
            _loss_figure(log["log"], tuple(f"loss_{name}" for name in recipe["languages"]))
        ),
        "results": evaluation["languages"],
        "D": summary_of(evaluation)["D"].get("student", {}).get("all"),
        "samples": read_json(run / "evaluation" / "samples.json"),
        "initialisation": initialisation,
        "stores": _stores(run, recipe),
        "labels": _labels(run),
    }


# The share of a teacher's tokens that the union tokenizer cuts otherwise, from which its own is better.
LARGE_DRIFT = 0.10


def verdict(differences: Mapping[str, Json], segmentation: Mapping[str, Json]) -> list[str]:
    """Sentences on a student beside its teachers.

    differences   group or language → student minus best teacher on held-out text, with its interval
    segmentation  `language/teacher` → how the student's tokenizer splits the language
    A language whose interval includes zero is not told apart, which is not the same as equal; without an
    interval nothing is said of it.
    """
    places: dict[str, list[str]] = {"better than": [], "not told apart from": [], "behind": []}
    for language, cell in differences.items():
        if language != "all" and "low" in cell:
            place = (
                "better than" if cell["low"] > 0 else "behind" if cell["high"] < 0 else "not told apart from"
            )
            places[place].append(language)
    found = {place: languages for place, languages in places.items() if languages}
    said = []
    if found:
        parts = [
            f"{place} {'them' if number else 'its teachers'} in {_listed(languages)}"
            for number, (place, languages) in enumerate(found.items())
        ]
        said.append(f"The student is {_listed(parts)} (MRR on held-out text, 95 % intervals).")
    split = {
        name.split("/")[0]: row["drift"] for name, row in segmentation.items() if row["drift"] > LARGE_DRIFT
    }
    if split and found:
        said.append(
            f"Load the language's own tokenizer for {_listed(list(split))}: the union's splits "
            f"{max(split.values()):.0%} of its tokens otherwise."
        )
    return said


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _headline(evaluation: Json) -> list[Json]:
    """For each language: student, best teacher and baseline, on that teacher's own tokenizer."""
    cards = []
    for language, rows in evaluation["languages"].items():
        own = [row for row in rows if row["text"] == "held_out" and row["tokenizer"] == "own"]
        teachers = [row for row in own if row["model"] != "student"]
        best = max(teachers, key=lambda row: row["mrr"])
        student = next(
            row
            for row in rows
            if row["text"] == "held_out"
            and row["model"] == "student"
            and (row["tokenizer"], row["teacher"]) in (("own", best["teacher"]), ("student", None))
        )
        cards.append(
            {
                "language": language,
                "teacher": best["model"],
                "teacher_mrr": best["mrr"],
                "student_mrr": student["mrr"],
                "unigram_mrr": student["unigram_mrr"],
                # With a vocabulary of the student's own, where MRR cannot compare.
                "teacher_nats": best.get("nats_per_character"),
                "student_nats": student.get("nats_per_character"),
            }
        )
    return cards


def _languages(run: Path, recipe: Json, log: Json) -> list[Json]:
    places = artefact_places(run)
    entries = []
    for language, settings in recipe["languages"].items():
        path = places[f"corpora/{language}"] / "statistics.json"
        entries.append(
            {
                "name": language,
                "teachers": settings["teachers"],
                "use": settings["use"],
                "share": log["probabilities"][language],
                "statistics": read_json(path),
            }
        )
    return entries


def _stores(run: Path, recipe: Json) -> list[Json]:
    places = artefact_places(run)
    entries = []
    for language, settings in recipe["languages"].items():
        for teacher in settings["teachers"]:
            manifest = read_json(places[f"store/{language}/{teacher}"] / "manifest.json")
            shards = manifest["shards"]
            total = {
                key: sum(shard[key] for shard in shards) for key in ("bytes", "examples", "masked", "tokens")
            }
            width = 2 if manifest["identity"]["vocabulary_size"] <= 1 << 16 else 4
            entries.append(
                {"language": language, "teacher": teacher, "identity": manifest["identity"]}
                | total
                | {"bytes_a_position": (total["bytes"] - width * total["tokens"]) / max(1, total["masked"])}
            )
    return entries


def _labels(run: Path) -> Json:
    """`language/teacher` → what became of the stored labels in the student's own vocabulary."""
    return {
        name.removeprefix("labels/"): read_json(place / "manifest.json")["record"]["coverage"]
        for name, place in sorted(artefact_places(run).items())
        if name.startswith("labels/")
    }


def _mrr_figure(evaluation: Json) -> str:
    languages = list(evaluation["languages"])
    series: dict[str, list[float | None]] = {}
    for place, rows in enumerate(evaluation["languages"].values()):
        for row in rows:
            if row["text"] != "held_out":
                continue
            if row["model"] != "student":
                names = [("teacher", row["mrr"]), ("unigram", row["unigram_mrr"])]
            else:
                names = [(f"student, {row['tokenizer']} tokenizer", row["mrr"])]
            for name, value in names:
                values = series.setdefault(name, [None] * len(languages))
                # With several teachers, the best row counts.
                values[place] = value if values[place] is None else max(value, values[place] or 0.0)
    order = ["unigram", "teacher", *sorted(name for name in series if name.startswith("student"))]
    return grouped_bars(languages, {name: series[name] for name in order if name in series}, ylabel="MRR")


def _words_figure(evaluation: Json) -> str:
    """Nats per character on held-out text, where students and teachers have other pieces; else empty."""
    languages = list(evaluation["languages"])
    series: dict[str, list[float | None]] = {}
    for place, rows in enumerate(evaluation["languages"].values()):
        for row in rows:
            if row["text"] == "held_out" and "nats_per_character" in row:
                name = "student" if row["model"] == "student" else "teacher"
                values = series.setdefault(name, [None] * len(languages))
                value = row["nats_per_character"]
                # Of several teachers, the best.
                values[place] = value if values[place] is None else min(value, values[place] or value)
    return grouped_bars(languages, series, ylabel="nats per character") if series else ""


def _loss_figure(log: list[dict[str, float]], names: tuple[str, ...]) -> str:
    series = {}
    for name in names:
        if points := logged(log, name):
            series[{"kd_loss": "KD", "mlm_loss": "MLM"}.get(name, name.removeprefix("loss_"))] = points
    return curves(series, xlabel="step", ylabel="nats per masked token")
