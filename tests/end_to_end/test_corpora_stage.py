"""The corpora stage of a run: it goes on at the part, and its engine changes nothing."""

import pytest

from polydistill.config.load import parse_recipe
from polydistill.corpora import build
from polydistill.corpora import parts as part_reader
from polydistill.errors import CorpusError
from polydistill.pipelines.run import run_recipe
from polydistill.pipelines.stages import corpora


@pytest.fixture
def small(recipe_values, monkeypatch) -> dict:
    monkeypatch.setattr(part_reader, "PART_BYTES", 3000)
    recipe_values["corpora"]["workers"] = 1
    return recipe_values


class StoppedError(Exception):
    """The run stops here."""


def test_a_stopped_stage_goes_on_at_the_part(small, monkeypatch) -> None:
    recipe = parse_recipe(small)
    cleaned: list[int] = []
    clean_part = build.clean_part

    def count(*arguments: object) -> bytes:
        cleaned.append(1)
        return clean_part(*arguments)

    def stop(*arguments: object) -> bytes:
        raise StoppedError

    monkeypatch.setattr(build, "clean_part", count)
    with monkeypatch.context() as patched:
        patched.setattr(build, "pack_part", stop)
        with pytest.raises(StoppedError):
            run_recipe(recipe, until="corpora")
    first = len(cleaned)
    assert first > 5
    run_recipe(recipe, until="corpora")
    # English was cleaned in the first run; now Russian is.
    second = len(cleaned) - first
    run_recipe(recipe, until="corpora")
    assert len(cleaned) == first + second
    assert not (recipe.folder / "corpora" / "en" / "parts").exists()
    monkeypatch.undo()
    monkeypatch.setattr(part_reader, "PART_BYTES", 3000)
    monkeypatch.setattr(build, "clean_part", count)
    cleaned.clear()
    run_recipe(parse_recipe(small | {"output": f"{recipe.folder}-whole"}), until="corpora")
    assert len(cleaned) == first + second


def test_a_run_may_change_its_engine_and_its_workers(small) -> None:
    run_recipe(parse_recipe(small), until="corpora")
    small["corpora"] |= {"workers": 3, "engine": "local", "address": "auto"}
    said: list[str] = []
    run_recipe(parse_recipe(small), until="corpora", show=said.append)
    assert not any(line.startswith("corpora/") for line in said)


def test_a_text_that_changes_meanwhile_leaves_no_corpus(small, texts, tmp_path, monkeypatch) -> None:
    text = tmp_path / "growing.txt"
    text.write_bytes(texts["en"].read_bytes())
    small["languages"]["en"]["text"] = str(text)
    build_corpus = corpora.build_corpus

    def grow(*arguments: object, **settings: object) -> dict:
        statistics = build_corpus(*arguments, **settings)
        with text.open("a") as handle:
            handle.write("one more line\n")
        return statistics

    with monkeypatch.context() as patched:
        patched.setattr(corpora, "build_corpus", grow)
        with pytest.raises(CorpusError, match=r"languages.en.text .*changed while it was read"):
            run_recipe(parse_recipe(small), until="corpora")
    folder = parse_recipe(small).folder / "corpora" / "en"
    assert not folder.exists()
    run_recipe(parse_recipe(small), until="corpora")
    assert (folder / "stamp.json").is_file()
