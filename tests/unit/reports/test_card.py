"""Model cards: licence, data, teachers and results."""

import io

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from rich.console import Console

from polydistill.config.load import parse_recipe
from polydistill.config.shared import Card
from polydistill.disk import write_json
from polydistill.errors import RecipeError
from polydistill.reports.card import export_card, merge_card, metadata
from polydistill.reports.card_results import with_results
from polydistill.reports.card_sections import front_matter, shown_name
from polydistill.reports.tables import results_table

MERGE = {
    "name": "x",
    "teachers": {"a": "org/teacher", "b": "./folder"},
    "languages": {"ko": {"text": "a.txt", "teachers": "a"}, "zh": {"text": "b.txt", "teachers": "b"}},
}


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def row(model: str, mrr: float, **more) -> dict:
    return {
        "text": "held_out",
        "tokenizer": "own",
        "teacher": "a",
        "model": model,
        "mrr": mrr,
        "unigram_mrr": 0.1,
        "top1": 0.2,
        "num_masked": 1234,
    } | more


def test_the_metadata_block_has_languages_teachers_licence_and_data() -> None:
    card = merge_card(parse_recipe(MERGE), {"init": "random"})
    block = front(card)
    assert block["language"] == ["ko", "zh"]
    # The card must not show a local folder.
    assert block["base_model"] == ["org/teacher"]
    assert "license" not in block
    assert "state them here" in card.lower()
    said = parse_recipe(MERGE | {"card": {"license": "cc-by-sa-4.0", "datasets": ["org/wiki"]}})
    card = merge_card(said, {"init": "random"})
    assert (front(card)["license"], front(card)["datasets"]) == ("cc-by-sa-4.0", ["org/wiki"])
    assert "Published under cc-by-sa-4.0" in card


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/teacher", "org/teacher"),
        ("/data/runs/korean/student/final", "korean"),
        ("runs/demo/teachers/en-de/student/final", "en-de"),
        ("./models/albert-kor-base", "albert-kor-base"),
        ("/student/final", "final"),
    ],
)
def test_a_teacher_has_a_telling_name(model, shown) -> None:
    """No card shows a path of the machine, and none calls a teacher `final`."""
    assert shown_name(model) == shown


def test_a_card_says_how_the_model_was_trained() -> None:
    recipe = parse_recipe(MERGE | {"training": {"max_steps": 321, "learning_rate": 2e-3}, "seed": 5})
    card = merge_card(recipe, {"init": "random"})
    for line in ("- max steps: 321", "- learning rate: 0.002", "- masking: 0.15 of words", "- seed: 5"):
        assert line in card.splitlines()
    assert "| zh | folder |" in card
    assert card.index("## Training") < card.index("## Licence")


def test_results_stand_before_the_licence_and_once() -> None:
    card = merge_card(parse_recipe(MERGE), {"init": "random"})
    rows = {"ko": [row("a", 0.3, mrr_teacher_pieces=0.31), row("student", 0.25)]}
    once = with_results(card, rows, "student")
    assert "| ko | held_out | own | 0.250 | 0.310 | 0.100 | 0.200 | 1,234 |" in once
    assert once.index("## Results") < once.index("## Licence")
    again = with_results(once, {"ko": [row("student", 0.75)]}, "student")
    assert again.count("## Results") == 1
    assert "| ko | held_out | own | 0.750 |  | 0.100 |" in again
    assert "0.250" not in again
    stated = front(again)
    index = stated.pop("model-index")
    assert stated == front(card)
    name, (result, accuracy) = model_index_to_eval_results(index)
    assert name == "x"
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "ko, held out text",
        "mrr",
        0.75,
    )
    assert result.metric_name == "mean reciprocal rank of masked tokens, tokenizer of a"
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.2)
    # No figure that is no number: the hub refuses the whole card for one.
    broken = with_results(card, {"ko": [row("student", 0.75, top1=float("nan"))]}, "student")
    assert len(front(broken)["model-index"][0]["results"][0]["metrics"]) == 1


def test_what_a_models_own_card_states_is_read_if_it_can_be(tmp_path) -> None:
    assert metadata(str(tmp_path)) == {}
    readme = tmp_path / "README.md"
    readme.write_text("---\nlanguage: [ko]\nlicense: mit\ntags: [x]\n---\n# A --- B\n", "utf-8")
    assert metadata(str(tmp_path)) == {"language": ["ko"], "license": "mit"}
    for broken in ("# no front matter\n--- a\n--- b", "---\na: [\n---\n", "---\n- a\n---\n", ""):
        readme.write_text(broken, "utf-8")
        assert metadata(str(tmp_path)) == {}, broken


def test_a_figure_of_few_tokens_is_marked_on_the_card_and_in_the_terminal(tmp_path) -> None:
    """0.288 on 77 tokens beside 0.301 on 1,234: each with its standard error, the first with a warning."""
    few = row("student", 0.288, num_masked=77, mrr_error=0.041)
    many = row("student", 0.301, text="wiki", mrr_error=0.012)
    card = merge_card(parse_recipe(MERGE), {"init": "random"})
    warned, plain = (
        with_results(card, {"ko": [few, many]}, "student"),
        with_results(card, {"ko": [many]}, "student"),
    )
    assert "| 0.288 ±.041 |" in warned
    assert "fewer than 500 masked tokens" in warned
    assert "fewer than 500" not in plain
    for rows, wanted in (([few, many], True), ([many], False)):
        write_json(
            tmp_path / "evaluation" / "mlm.json",
            {"languages": {"ko": [entry | {"top5": 0.3, "loss": 5.0} for entry in rows]}, "summary": {}},
        )
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(results_table(tmp_path))
        printed = console.export_text()
        assert ("0.288 ±.041" in printed) == wanted
        assert "0.301 ±.012" in printed
        assert ("Fewer than 500 masked tokens, too few to compare by: ko held_out (77)" in printed) == wanted


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\0"])
@pytest.mark.parametrize("key", ["license", "datasets"])
def test_a_licence_of_two_lines_is_refused(key, end) -> None:
    """The second line used to become metadata of its own: `license: mit` with a forged base model."""
    value = f"mit{end}base_model: org/other"
    with pytest.raises(RecipeError, match=rf"card\.{key}"):
        parse_recipe(MERGE | {"card": {key: value if key == "license" else [value]}})


@pytest.mark.parametrize(
    "value",
    [
        "a: b",
        "[x",
        "# none",
        "no",
        "- x",
        "'",
        '"',
        "a --- b",
        "---",
        "x\nbase_model: org/other",
        "{a",
        "&a",
        "*a",
    ],
)
def test_no_value_adds_to_the_metadata(value, tmp_path) -> None:
    """Whatever it means in YAML, the value is that value of that key, on the card and when read back."""
    card = Card.model_construct(license=value, datasets=[value])
    lines = front_matter(["no", "ko"], card, [f"org/{value}"])
    assert (lines[0], lines[-2]) == ("---", "---")
    block = yaml.safe_load("\n".join(lines[1:-2]))
    assert block == {
        "language": ["no", "ko"],
        "license": value,
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["polydistill", "masked-lm"],
        "datasets": [value],
    } | ({"base_model": [f"org/{value}"]} if "/other" not in value else {})
    (tmp_path / "README.md").write_text("\n".join([*lines, "# A --- B", ""]), "utf-8")
    assert metadata(str(tmp_path)) == {"language": ["no", "ko"], "license": value, "datasets": [value]}
    record = {
        "metadata": metadata(str(tmp_path)),
        "model": "org/x",
        "architecture": "A",
        "parameters": 1,
        "opset": 18,
        "task": "masked language model",
        "sentences": False,
        "outputs": ["logits"],
        "inputs": [],
        "versions": {"polydistill": "0"},
        "files": {},
        "mrr": {},
        "logits": [{"onnx": {"relative_difference": 0.0}}],
    }
    exported = export_card(record)
    (tmp_path / "README.md").write_text(exported, "utf-8")
    assert metadata(str(tmp_path)) == record["metadata"]
    assert exported.splitlines().count("---") == 2


@pytest.mark.parametrize(
    "block",
    ["a: &a [*a]", "license: !!int abc", "license: !!python/object:os.system x", "license: " + "[" * 3000],
)
def test_a_card_with_yaml_that_no_card_has_states_nothing(tmp_path, block) -> None:
    (tmp_path / "README.md").write_text(f"---\n{block}\n---\n# A\n", "utf-8")
    assert metadata(str(tmp_path)) == {}
