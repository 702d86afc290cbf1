"""Texts in another language than their name."""

import pytest
from tests.conftest import bundled_lines

from polydistill.corpora.language import can_identify, other_language

pytest.importorskip("py3langid", reason="py3langid is not installed: pip install 'polydistill[lid]'")


@pytest.mark.parametrize("language", ["en", "de", "fr", "ru"])
def test_the_bundled_texts_are_in_their_languages(language) -> None:
    assert can_identify(language)
    assert other_language(language, bundled_lines(language, 400)) is None
    assert other_language(f"{language}-Latn", bundled_lines(language, 400)) is None


def test_another_language_is_named_and_too_little_text_tells_nothing() -> None:
    mixed = bundled_lines("de", 400) + bundled_lines("fr", 50)
    seeming, number, looked = other_language("fr", mixed)
    assert seeming == "de"
    assert looked == 100
    assert number > 80
    assert other_language("fr", [line for line in mixed if len(line) >= 40][:9]) is None
    assert not can_identify("klingon")


def test_a_plan_names_the_text(recipe_values, texts) -> None:

    from polydistill.config.load import parse_recipe
    from polydistill.pipelines.stages.languages import wrong_languages

    recipe_values["languages"]["ru"]["text"] = [str(texts["ru"]), str(texts["en"])]
    (conflict,) = wrong_languages(parse_recipe(recipe_values))
    assert conflict.level == "conflict"
    assert conflict.what.startswith(f"languages.ru.text[1] {str(texts['en'])!r}: ")
    assert "seem to be in 'en', not in 'ru'" in conflict.what
