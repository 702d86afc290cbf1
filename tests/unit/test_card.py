"""Model cards: what they say of licence, data, teachers and results."""

import yaml

from polydistill.config import parse_recipe
from polydistill.reports import model_card
from polydistill.reports.card import metadata, with_results

MERGE = {
    "name": "x",
    "teachers": {"a": "org/teacher", "b": "./folder"},
    "languages": {"ko": {"text": "a.txt", "teachers": "a"}, "zh": {"text": "b.txt", "teachers": "b"}},
}


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def row(model: str, mrr: float, **more) -> dict:
    return {
        "text": "held_out", "tokenizer": "own", "teacher": "a", "model": model, "mrr": mrr, "unigram_mrr": 0.1,
        "top1": 0.2, "num_masked": 1234,
    } | more  # fmt: skip


def test_the_metadata_block_has_languages_teachers_licence_and_data() -> None:
    card = model_card(parse_recipe(MERGE), {"init": "random"})
    found = front(card)
    assert found["language"] == ["ko", "zh"]
    # A folder on somebody's machine is nobody else's business.
    assert found["base_model"] == ["org/teacher"]
    assert "license" not in found
    assert "state them here" in card.lower()
    said = parse_recipe(MERGE | {"card": {"license": "cc-by-sa-4.0", "datasets": ["org/wiki"]}})
    card = model_card(said, {"init": "random"})
    assert (front(card)["license"], front(card)["datasets"]) == ("cc-by-sa-4.0", ["org/wiki"])
    assert "Published under cc-by-sa-4.0" in card


def test_results_stand_before_the_licence_and_once() -> None:
    card = model_card(parse_recipe(MERGE), {"init": "random"})
    rows = {"ko": [row("a", 0.3, mrr_teacher_pieces=0.31), row("student", 0.25)]}
    once = with_results(card, rows, "student")
    assert "| ko | held_out | own | 0.250 | 0.310 | 0.100 | 0.200 | 1,234 |" in once
    assert once.index("## Results") < once.index("## Licence")
    again = with_results(once, {"ko": [row("student", 0.75)]}, "student")
    assert again.count("## Results") == 1
    assert "| ko | held_out | own | 0.750 |  | 0.100 |" in again
    assert "0.250" not in again
    assert front(again) == front(card)


def test_what_a_models_own_card_states_is_read_if_it_can_be(tmp_path) -> None:
    assert metadata(str(tmp_path)) == {}
    readme = tmp_path / "README.md"
    readme.write_text("---\nlanguage: [ko]\nlicense: mit\ntags: [x]\n---\n# A --- B\n", "utf-8")
    assert metadata(str(tmp_path)) == {"language": ["ko"], "license": "mit"}
    for broken in ("# no front matter\n--- a\n--- b", "---\na: [\n---\n", "---\n- a\n---\n", ""):
        readme.write_text(broken, "utf-8")
        assert metadata(str(tmp_path)) == {}, broken
