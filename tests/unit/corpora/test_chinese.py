"""Simplified and traditional characters, told apart."""

import pytest

from polydistill.config.load import parse_recipe
from polydistill.corpora.chinese import count_scripts, line_script, named_script
from polydistill.pipelines.stages.languages import wrong_languages

SIMPLIFIED = "这个国家的历史学会发表了关于语言的报告。"
TRADITIONAL = "這個國家的歷史學會發表了關於語言的報告。"
BOTH = "人口在山上。"


def test_scripts_of_lines() -> None:
    assert line_script(SIMPLIFIED) == "simplified"
    assert line_script(TRADITIONAL) == "traditional"
    assert line_script(BOTH) is None
    assert line_script("国國") is None
    # One character alone tells nothing.
    assert line_script(BOTH + "国") is None
    assert count_scripts([SIMPLIFIED, BOTH, TRADITIONAL, SIMPLIFIED]) == {"simplified": 2, "traditional": 1}


def test_the_tables_are_those_of_published_lists() -> None:
    # The first of the State Council's table of simplified characters of 1986, and what they replace, but for
    # those that traditional text has too, in another meaning.
    for short, long in zip("爱碍袄罢坝摆颁办", "愛礙襖罷壩擺頒辦", strict=True):
        assert line_script(short * 2) == "simplified", short
        assert line_script(long * 2) == "traditional", long


@pytest.mark.parametrize(
    ("language", "script"),
    [("zh", None), ("zh-Hans", "simplified"), ("zh_Hant", "traditional"), ("zh-TW", "traditional")],
)
def test_scripts_of_names(language, script) -> None:
    assert named_script(language) == script


def _recipe(recipe_values, tmp_path, language: str, training: list[str], further: list[str]):
    for name, lines in {"train": training, "further": further}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    settings = {**recipe_values["languages"].pop("ru"), "text": str(tmp_path / "train.txt")}
    settings["evaluation"] = {"news": str(tmp_path / "further.txt")}
    recipe_values["languages"][language] = settings
    return parse_recipe(recipe_values)


def _places(recipe) -> list[str]:
    return [conflict.what for conflict in wrong_languages(recipe) if "characters" in conflict.what]


def test_a_plan_names_mixed_text_and_other_characters(recipe_values, tmp_path) -> None:
    mixed = [SIMPLIFIED] * 85 + [TRADITIONAL] * 15
    recipe = _recipe(recipe_values, tmp_path, "zh", mixed, [TRADITIONAL] * 5)
    assert _places(recipe) == [
        "languages.zh.text: 15 of 100 lines are not in simplified characters",
        "languages.zh.evaluation.news: 5 of 5 lines are not in simplified characters, as the training text "
        "is",
    ]


def test_a_plan_takes_the_name_s_script(recipe_values, tmp_path) -> None:
    recipe = _recipe(recipe_values, tmp_path, "zh-Hant", [SIMPLIFIED] * 10, [TRADITIONAL] * 5)
    assert _places(recipe) == ["languages.zh-Hant.text: 10 of 10 lines are not in traditional characters"]


def test_a_plan_accepts_text_of_one_script(recipe_values, tmp_path) -> None:
    nearly = [SIMPLIFIED] * 95 + [TRADITIONAL] * 5
    assert _places(_recipe(recipe_values, tmp_path, "zh", nearly, [SIMPLIFIED, BOTH])) == []
