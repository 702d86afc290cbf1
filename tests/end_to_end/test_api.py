"""The Python API says what the recipes say."""

import pytest

import polydistill as pd
from polydistill.errors import RecipeError, RunFolderError


def test_a_run_is_an_object(recipe_values, tmp_path, capsys) -> None:
    values = {
        key: value for key, value in recipe_values.items() if key not in ("name", "teachers", "languages")
    }
    run = pd.merge("small", recipe_values["teachers"], recipe_values["languages"], **values)
    assert isinstance(run, pd.FinishedRun)
    assert "student: " in capsys.readouterr().out
    model, tokenizer = run.load()
    assert model.config.vocab_size == len(tokenizer)
    assert {(row["language"], row["model"]) for row in run.results} >= {("en", "student"), ("ru", "ru")}
    assert run.report.is_file()
    assert len(run.store("en", "en2")) > 100
    with pytest.raises(RunFolderError, match="store/en/en2"):
        run.store("en", "nobody")
    assert run.table is not None
    # The same by the other ways in; finished work is found.
    again = pd.run(recipe_values, show=lambda line: None)
    assert again == run
    other = pd.run(
        recipe_values | {"output": str(tmp_path / "other"), "reuse": [recipe_values["output"]]},
        ["training.max_steps=2"],
        until="score",
        show=lambda line: None,
    )
    assert other.store("ru", "ru").folder.is_relative_to(run.folder), "a store of the run that it reuses"
    with pytest.raises(RunFolderError, match="stage `train`"):
        _ = other.student


def test_the_other_jobs_have_functions(extract_values, texts, tmp_path) -> None:
    with pytest.raises(RecipeError, match="nonsense"):
        pd.pretrain("x", {"en": {"text": str(texts["en"])}}, nonsense=1)
    with pytest.raises(RecipeError, match="nonsense"):
        pd.balance("x", {"en": {"text": str(texts["en"])}}, nonsense=1)
    with pytest.raises(RecipeError, match="nonsense"):
        pd.embed("x", "teacher", {"en": {"text": str(texts["en"])}}, "student", nonsense=1)
    given = {key: extract_values.pop(key) for key in ("name", "teacher", "language", "text")}
    extract_values.pop("recipe")
    extract_values["training"] = extract_values["training"] | {"max_steps": 2}
    run = pd.extract(**given, **extract_values)
    assert run.student.is_dir()
    with pytest.raises(AttributeError, match="nothing"):
        _ = pd.nothing
