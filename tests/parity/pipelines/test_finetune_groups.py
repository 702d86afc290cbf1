"""Averages over groups of languages and tasks, and RDT from several teachers, from predictions written by
hand.
"""

import io

import numpy as np
import pytest
from rich.console import Console
from tests.finetuning import task
from tests.parity.pipelines.test_finetune_results import ITEMS, summary

from polydistill.reports.finetune_page import group_tables
from polydistill.reports.finetune_tables import finetune_tables

# `narrow` is stronger and reads two of the three languages, as MuRIL beside mBERT.
SCORES = {
    "student": {"en": (0.6, 0.6), "fr": (0.9, 0.9), "ru": (0.5, 0.5)},
    "wide": {"en": (0.5, 0.5), "fr": (0.6, 0.6), "ru": (0.4, 0.4)},
    "narrow": {"en": (0.8, 0.8), "fr": (0.75, 0.75)},
}
SECOND = {
    "student": {"en": (0.3, 0.3), "fr": (0.4, 0.4), "ru": (0.2, 0.2)},
    "wide": {"en": (0.4, 0.4), "fr": (0.5, 0.5), "ru": (0.25, 0.25)},
    "narrow": {"en": (0.5, 0.5), "fr": (0.55, 0.55)},
}
TEACHERS = {"en": ["narrow", "wide"], "fr": ["narrow", "wide"], "ru": "wide"}
GROUPS = {"covered": ["en", "fr"], "other": ["ru"]}


def grouped(tmp_path, teachers, **more) -> dict:
    return summary(tmp_path, teachers, SCORES, second=SECOND, teachers=TEACHERS, groups=GROUPS, **more)


def test_averages_by_group_and_over_tasks_by_hand(tmp_path, teachers) -> None:
    groups = grouped(tmp_path, teachers)["groups"]
    assert {name: group["languages"] for name, group in groups.items()} == GROUPS | {
        "all": ["en", "fr", "ru"]
    }
    topic = groups["covered"]["tasks"]["topic"]["metrics"]["accuracy"]["scores"]
    assert {model: cell["mean"] for model, cell in topic.items()} == {
        "student": pytest.approx((0.6 + 0.9) / 2),
        "wide": pytest.approx((0.5 + 0.6) / 2),
        "narrow": pytest.approx((0.8 + 0.75) / 2),
    }
    # Tasks count alike: the mean of the tasks' averages.
    average = groups["covered"]["average"]["scores"]["student"]
    assert average["mean"] == pytest.approx((0.75 + 0.35) / 2)
    assert average["number"] == 2
    assert groups["other"]["average"]["scores"]["student"]["mean"] == pytest.approx((0.5 + 0.2) / 2)
    # A model that does not read all of a group's languages has no average over them.
    assert set(groups["other"]["average"]["scores"]) == {"student", "wide"}
    assert set(groups["all"]["average"]["scores"]) == {"student", "wide"}
    assert groups["all"]["average"]["scores"]["wide"]["mean"] == pytest.approx((1.5 / 3 + 1.15 / 3) / 2)


def test_rdt_of_a_group_is_that_of_its_averages_from_each_teacher(tmp_path, teachers) -> None:
    """As in table 4: 75.3 beside 69.2 is +8.8, whatever the languages' own RDTs are."""
    evaluation = grouped(tmp_path, teachers)
    covered = evaluation["groups"]["covered"]
    topic = covered["tasks"]["topic"]["metrics"]["accuracy"]["rdt"]
    assert list(topic) == ["wide", "narrow"]
    assert topic["wide"]["student"]["value"] == pytest.approx(100 * (0.75 / 0.55 - 1))
    assert topic["narrow"]["student"]["value"] == pytest.approx(100 * (0.75 / 0.775 - 1))
    assert topic["narrow"]["wide"]["value"] == pytest.approx(100 * (0.55 / 0.775 - 1))
    assert covered["average"]["rdt"]["narrow"]["student"]["value"] == pytest.approx(100 * (0.55 / 0.65 - 1))
    # `narrow` teaches no language of the other group, and not all of them.
    assert list(evaluation["groups"]["other"]["average"]["rdt"]) == ["wide"]
    assert list(evaluation["groups"]["all"]["average"]["rdt"]) == ["wide"]
    # By language, RDT is from each of its teachers; their mean over languages is equation 3.
    by_teacher = evaluation["rdt_by_teacher"]["topic"]["accuracy"]
    narrow, wide = by_teacher["narrow"]["student"], by_teacher["wide"]["student"]
    assert [narrow["en"]["value"], narrow["fr"]["value"]] == [pytest.approx(-25), pytest.approx(20)]
    assert narrow["all"]["value"] == pytest.approx(-2.5)
    assert "ru" not in narrow
    assert wide["all"]["value"] == pytest.approx(np.mean([20, 50, 25]))
    # The first teacher of a language is the one that `rdt` compares with.
    first = evaluation["rdt"]["topic"]["accuracy"]["student"]
    assert {language: cell["teacher"] for language, cell in first.items() if language != "all"} == {
        "en": "narrow",
        "fr": "narrow",
        "ru": "wide",
    }


def test_a_group_s_teacher_teaches_all_of_its_languages(tmp_path, teachers) -> None:
    """`wide` has scores in English, but is no teacher there."""
    found = summary(
        tmp_path,
        teachers,
        SCORES,
        teachers={"en": "narrow", "fr": ["narrow", "wide"], "ru": "wide"},
        groups=GROUPS,
    )["groups"]
    assert list(found["covered"]["average"]["rdt"]) == ["narrow"]
    assert found["all"]["average"]["rdt"] == {}


def test_one_teacher_a_language_has_no_second_list(tmp_path, teachers) -> None:
    evaluation = summary(tmp_path, teachers, {"a": {"en": (0.5,)}, "b": {"en": (0.6,)}}, teachers={"en": "b"})
    assert evaluation["rdt_by_teacher"] == {"topic": {"accuracy": {}, "macro_f1": {}}}


def width(evaluation: dict) -> float:
    cell = evaluation["groups"]["all"]["tasks"]["topic"]["metrics"]["accuracy"]["scores"]["a"]
    return cell["high"] - cell["low"]


def test_items_that_languages_share_are_drawn_together(tmp_path, teachers) -> None:
    """The same predictions in both languages: the average varies as much as one language where items are
    drawn together, and by the square root of two less where they are different texts.
    """
    scores = {"a": {"en": (0.6,), "ru": (0.6,)}}
    one = 2 * 1.96 * np.sqrt(0.6 * 0.4 / ITEMS)
    (tmp_path / "files").mkdir()
    apart = {"topic": task(tmp_path / "files", "classification", ("en", "ru"))}
    parallel = {"topic": apart["topic"] | {"parallel": True}}
    # One file under two languages is the same test set.
    assert width(summary(tmp_path / "same", teachers, scores)) == pytest.approx(one, rel=0.1)
    assert width(summary(tmp_path / "parallel", teachers, scores, tasks=parallel)) == pytest.approx(
        one, rel=0.1
    )
    assert width(summary(tmp_path / "apart", teachers, scores, tasks=apart)) == pytest.approx(
        one / np.sqrt(2), rel=0.1
    )


def test_a_test_set_of_two_tasks_is_drawn_once(tmp_path, teachers) -> None:
    scores = {"a": {"en": (0.6,)}}
    evaluation = summary(tmp_path, teachers, scores, second=scores)
    cell = evaluation["groups"]["all"]["average"]["scores"]["a"]
    assert cell["high"] - cell["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.6 * 0.4 / ITEMS), rel=0.1)


def test_a_difference_within_the_stated_margin_is_level(tmp_path, teachers) -> None:
    scores = {"student": {"en": (0.70,)}, "teacher": {"en": (0.71,)}}
    # Paired, the two differ on two items of 200: RDT is -1.4 with about 1.9 either way.
    cells = [
        summary(tmp_path / str(margin), teachers, scores, baseline="teacher", equivalence_margin=margin)[
            "rdt"
        ]["topic"]["accuracy"]["student"]["en"]
        for margin in (5.0, 2.0, None)
    ]
    assert cells[0]["low"] == cells[2]["low"] == pytest.approx(-3.5, abs=0.8)
    assert [cell["judgement"] for cell in cells] == ["level", "not settled", "not settled"]


def test_a_table_has_the_form_of_table_4(tmp_path, teachers) -> None:
    """Tasks and their average in columns, RDT from each teacher under a model's average."""
    evaluation = grouped(tmp_path, teachers)
    tables = {table["name"]: table for table in group_tables(evaluation)}
    assert list(tables) == ["covered", "other", "all"]
    covered = tables["covered"]
    assert [column["name"] for column in covered["columns"]] == [
        "topic, accuracy",
        "also, accuracy",
        "average over tasks",
    ]
    cell = covered["rows"]["student"][2]
    assert cell["score"]["mean"] == pytest.approx(0.55)
    assert {name: round(of["value"], 1) for name, of in cell["rdt"].items()} == {
        "wide": 10.0,
        "narrow": -15.4,
    }
    assert "narrow" not in tables["other"]["rows"]
    # Results of earlier versions have no groups.
    assert group_tables({}) == []
    file = io.StringIO()
    console = Console(file=file, width=120)
    for table in finetune_tables(tmp_path):
        console.print(table)
    shown = " ".join(file.getvalue().split())
    assert "averages over covered (en, fr), x 100" in shown
    assert "student 75.0 35.0 55.0" in shown
    assert "RDT from narrow, % -3.2 -33.3 -15.4" in shown
