"""Users' mistakes in a balance run: a message with field, value and remedy, before hours of training."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.end_to_end.test_balance import balance_values, treebank

from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.run import run_recipe


def refused(values: dict) -> str:
    with pytest.raises(UserError) as caught:
        run_recipe(parse_recipe(values), show=lambda line: None)
    assert not list(Path(values["output"]).glob("teachers/*/final"))
    return str(caught.value)


def planned(values: dict) -> tuple[str, str]:
    """(what `plan` prints, its conflicts)."""
    console = Console(record=True, width=400, file=io.StringIO())
    conflicts = plan_recipe(parse_recipe(values), (), console)
    return console.export_text(), "\n".join(f"{conflict.what}; {conflict.remedy}" for conflict in conflicts)


def test_plan_says_what_each_model_sees_and_takes(texts, tmp_path) -> None:
    shown, conflicts = planned(balance_values(texts, tmp_path / "run"))
    assert conflicts == ""
    for wanted in ("teacher of en", "HL-balanced", "500 pieces", "in all about"):
        assert wanted in shown, wanted
    # As much of each language as the smallest one has.
    assert "40,000" in shown
    assert not (tmp_path / "run").exists()


def test_less_text_than_asked_for(texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    values["languages"]["ru"]["max_characters"] = 10**9
    said = refused(values)
    for wanted in ("languages.ru.max_characters 1000000000", "the training text has 8", "ask for fewer"):
        assert wanted in said, said
    assert "languages.ru.max_characters 1,000,000,000: the text has about" in planned(values)[1]


def test_a_broken_row_of_a_treebank_is_named_by_file_and_line(texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    good = treebank(tmp_path / "good.conllu", ["the", "house"])
    bad = tmp_path / "bad.conllu"
    # Far from the beginning.
    row = "1\tthe\t_\tDET" + "\t_" * 6
    bad.write_text(f"{row}\n\n" * 5 + f"{row}\n2\thouse\n\n", "utf-8")
    values["probe"] = {"tasks": {"pos": {"en": {"train": good, "test": str(bad)}}}}
    said = refused(values)
    assert "probe.tasks.pos.en.test" in said, said
    assert "bad.conllu" in said
    assert "line 11" in said
    assert "bad.conllu" in planned(values)[1]


def test_tagged_text_with_a_single_tag_and_tags_that_only_others_have(texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    both = treebank(tmp_path / "both.conllu", ["the", "house"])
    single = treebank(tmp_path / "one.conllu", ["house"])
    values["probe"] = {"tasks": {"pos": {"en": {"train": single, "test": both}}}}
    for said in (refused(values), planned(values)[1]):
        assert "probe.tasks.pos.en.train" in said
        assert "a single tag (NOUN)" in said
    more = tmp_path / "more.conllu"
    more.write_text(Path(both).read_text("utf-8") + "1\tred\t_\tADJ" + "\t_" * 6 + "\n\n", "utf-8")
    values["probe"]["tasks"]["pos"] = {
        "en": {"train": both, "test": both},
        "ru": {"train": str(more), "test": both},
    }
    assert "probe.tasks.pos.en: its training file has no ADJ, which others have" in planned(values)[1]


def test_a_folder_that_holds_no_vocabulary(texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    values["tokenizer"] = {"vocabulary": str(tmp_path)}
    said = refused(values)
    assert "tokenizer.vocabulary" in said
    assert "holds no tokenizer of an earlier run" in said


def test_a_teacher_of_another_vocabulary(texts, teachers, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    values["languages"]["en"]["teacher"] = str(teachers["ru"])
    said = refused(values)
    assert "languages.en.teacher" in said
    assert "its vocabulary is not the run's" in said


def test_held_out_text_that_cannot_be_parted(texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    few = tmp_path / "few.txt"
    few.write_text("\n".join(texts["en"].read_text("utf-8").splitlines()[:40]), "utf-8")
    values["languages"]["en"] = {"text": str(few)}
    values["corpora"]["block_lines"] = 1
    values["corpora"]["held_out_share"] = 0.02
    said = refused(values)
    assert "languages.en.text" in said
    assert "1 held-out examples are too few" in said


def test_students_arguments_of_training(texts, tmp_path) -> None:
    values = balance_values(texts, tmp_path / "run")
    values["students"] = {"ours": {"training": {"learning_rte": 1}}}
    assert "did you mean 'learning_rate'" in refused(values)
