"""The figures on a grid's page."""

from polydistill.disk import write_json
from polydistill.reports.grid_page import gather_grid


def row(run: str, place: str, model: str, value: float, tokenizer: str | None = None) -> dict:
    return {
        "run": run,
        "place": place,
        "model": model,
        "tokenizer": tokenizer,
        "teacher": None,
        "measure": "F1",
        "value": value,
        "error": 0.0,
    }


def test_two_fine_tunings_of_the_same_students_keep_their_rows_apart(tmp_path) -> None:
    rows = [
        row("a", "en, held_out", "student", 0.3, "union"),
        row("b", "en, held_out", "student", 0.4, "union"),
        row("few", "ner, en", "a", 0.5),
        row("few", "ner, en", "b", 0.6),
        row("many", "ner, en", "a", 0.7),
        row("many", "ner, en", "teacher", 0.8),
    ]
    write_json(tmp_path / "evaluation" / "grid.json", {"rows": rows, "runs": ["a", "b", "few", "many"]})
    page = gather_grid(tmp_path)
    shown = {
        (place["place"], place["model"]): {column: cell["value"] for column, cell in place["cells"].items()}
        for place in page["places"]
    }
    assert shown == {
        ("en, held_out", "student"): {"a": 0.3, "b": 0.4},
        ("few: ner, en", "student"): {"a": 0.5, "b": 0.6},
        ("many: ner, en", "student"): {"a": 0.7},
        # A model that is no run of the grid is in the column of the run that measured it.
        ("ner, en", "teacher"): {"many": 0.8},
    }
    assert page["columns"] == ["a", "b", "many"]
    assert page["loss_figure"] is None


def test_the_best_is_marked_where_there_is_one(tmp_path) -> None:
    rows = [
        row(run, place, "en", value, "own")
        for run, place, value in (
            ("a", "x", 0.3),
            ("b", "x", 0.3),
            ("a", "y", 0.3),
            ("b", "y", 0.4),
            ("a", "z", 0.3),
        )
    ]
    write_json(tmp_path / "evaluation" / "grid.json", {"rows": rows, "runs": ["a", "b"]})
    assert {place["place"]: place["best"] for place in gather_grid(tmp_path)["places"]} == {
        "x": None,
        "y": 0.4,
        "z": None,
    }


def test_no_best_is_marked_among_figures_of_other_things(tmp_path) -> None:
    """Students with other vocabularies guess other tokens: the summary has no difference of theirs."""
    rows = [
        row(run, place, "student", value) for place in ("x", "y") for run, value in (("a", 0.3), ("b", 0.4))
    ]
    summary = [
        {
            "place": place,
            "measure": "F1",
            "model": "student",
            "read_by": "",
            "cells": {},
            "differences": found,
        }
        for place, found in (("x", {"b": {"value": 0.1}}), ("y", {}))
    ]
    table = {"rows": rows, "runs": ["a", "b"], "summary": {"rows": summary}}
    write_json(tmp_path / "evaluation" / "grid.json", table)
    assert {place["place"]: place["best"] for place in gather_grid(tmp_path)["places"]} == {
        "x": 0.4,
        "y": None,
    }
