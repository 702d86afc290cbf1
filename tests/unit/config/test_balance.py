"""The recipe `balance`: what it accepts, and its messages for the rest."""

import pytest

from polydistill.config.balance import BalanceRecipe
from polydistill.config.load import load_recipe, parse_recipe
from polydistill.errors import RecipeError

SHORTEST = {"recipe": "balance", "name": "x", "languages": {"tr": {"text": "a.txt"}, "eu": {"text": "b.txt"}}}


def test_the_shortest_recipe_is_the_papers_method_and_its_two_baselines() -> None:
    recipe = parse_recipe(SHORTEST)
    assert isinstance(recipe, BalanceRecipe)
    assert {name: (s.labels, s.truncate) for name, s in recipe.students.items()} == {
        "ours": ("soft", "smallest"),
        "HL": ("gold", "none"),
        "HL-balanced": ("gold", "smallest"),
    }
    assert recipe.tokenizer.strip_accents == ["Latin", "Greek", "Cyrillic"]
    assert recipe.tokenizer.lowercase
    assert recipe.teachers.patience == 3


def test_a_recipe_that_is_written_out_is_read_as_the_same() -> None:
    recipe = parse_recipe(
        SHORTEST
        | {
            "students": {"a": {"truncate": 10_000}, "b": {"labels": "both"}},
            "groups": {"low": ["eu"]},
            "tokenizer": {"strip_accents": False},
        }
    )
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def tail_of(**student) -> str | None:
    recipe = parse_recipe(SHORTEST | {"students": {"a": student}})
    assert isinstance(recipe, BalanceRecipe)
    return recipe.students["a"].tail


@pytest.mark.parametrize("tail", [None, "bucket", "renormalise", "gold", "raw"])
def test_a_live_teacher_leaves_no_rest_so_folders_that_recorded_one_keep_their_student(tail) -> None:
    assert tail_of(tail=tail) is None
    assert tail_of(labels="both", predictions="live", tail=tail) is None


def test_stored_predictions_are_scaled_to_one_where_a_recipe_is_silent() -> None:
    assert tail_of(predictions="stored") == tail_of(predictions="stored", tail=None) == "renormalise"
    assert tail_of(predictions="stored", tail="bucket") == "bucket"


@pytest.mark.parametrize("name", ["balanced-shared", "balanced-diverse"])
def test_the_presets_are_the_papers_two_sets(name) -> None:
    recipe = load_recipe(name)
    sizes = [language.max_characters for language in recipe.languages.values()]
    assert sizes == [n * 10**6 for n in (100, 100, 50, 30, 20, 10, 10)]
    # The paper's text gives 50 and 100 for high-resource languages, and 10 to 30 for the others.
    assert [len(recipe.groups[group]) for group in ("low", "high")] == [4, 3]
    config = recipe.model.config
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["hidden_size"]) == (6, 4, 512)
    assert recipe.corpora.max_length == 128
    assert recipe.training["learning_rate"] == 5e-5


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"languages": {}}, ["languages"]),
        ({"groups": {"low": ["sw"]}}, ["groups.low[0] 'sw'", "it has tr, eu"]),
        ({"groups": {"low": []}}, ["groups.low: lists no language"]),
        ({"groups": {"all": ["tr"]}}, ["groups.all", "choose another name"]),
        ({"students": {"teacher": {}}}, ["students.teacher", "choose another name"]),
        ({"students": {"a": {"truncate": "half"}}}, ["students.a.truncate", "half"]),
        ({"students": {"a": {"truncate": 0}}}, ["students.a.truncate"]),
        ({"students": {"a": {"tail": "cut"}}}, ["students.a.tail 'cut'", "renormalise"]),
        ({"students": {"a": {"tail": "cut", "predictions": "stored"}}}, ["students.a.tail 'cut'"]),
        ({"students": {"a": {"labels": "hard"}}}, ["students.a.labels 'hard'", "gold"]),
        (
            {"students": {"a": {"predictions": "stored", "temperature": 2}}},
            ["students.a", "temperature 2", "predictions: live"],
        ),
        (
            {"tokenizer": {"strip_accents": ["Latin", "Elvish"]}},
            ["strip_accents", "Elvish", "no script of that name"],
        ),
        ({"teachers": {"epochs": 0}}, ["teachers.epochs 0"]),
        (
            {"probe": {"tasks": {"pos": {"sw": {"train": "a.conllu", "test": "b.conllu"}}}}},
            ["probe.tasks.pos.sw", "not a language of this recipe"],
        ),
        ({"languages": {"../x": {"text": "a"}}}, ["languages", "../x"]),
    ],
)
def test_what_is_refused(change, wanted) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SHORTEST | change)
    for part in wanted:
        assert part in str(caught.value), str(caught.value)


def test_null_takes_away_what_the_extended_recipe_has(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text(
        "recipe: balance\nname: x\nlanguages: {tr: {text: a.txt}, eu: {text: b.txt}}\n"
        "students: {a: {labels: gold}, b: {}}\nteachers: {epochs: 3}\n",
        "utf-8",
    )
    (tmp_path / "top.yaml").write_text(
        "extends: base.yaml\nstudents: {a: null, c: {labels: both}}\nlanguages: {eu: null}\nteachers: "
        "{epochs: null}\n",
        "utf-8",
    )
    recipe = load_recipe(tmp_path / "top.yaml")
    assert isinstance(recipe, BalanceRecipe)
    assert list(recipe.students) == ["b", "c"]
    assert list(recipe.languages) == ["tr"]
    assert recipe.teachers.epochs is None


def test_null_takes_away_what_was_given_in_short(tmp_path) -> None:
    """A teacher given as a bare path is removed; null in place of a number is the setting without one."""
    (tmp_path / "base.yaml").write_text(
        "recipe: merge\nname: x\nteachers: {a: models/a, b: models/b}\n"
        "languages: {tr: {text: a.txt, teachers: a}, eu: {text: {path: b.txt, max_characters: 10}, teachers: "
        "b}}\n",
        "utf-8",
    )
    (tmp_path / "top.yaml").write_text(
        "extends: base.yaml\nteachers: {a: null}\nlanguages: {tr: null, eu: {text: {max_characters: "
        "null}}}\n",
        "utf-8",
    )
    recipe = load_recipe(tmp_path / "top.yaml")
    assert list(recipe.teachers) == ["b"]
    assert list(recipe.languages) == ["eu"]
    assert recipe.languages["eu"].text[0].max_characters is None
    recipe = load_recipe(tmp_path / "base.yaml", ["teachers.a=null", "languages.tr=null"])
    assert list(recipe.teachers) == ["b"]
    assert list(recipe.languages) == ["eu"]
    (tmp_path / "tested.yaml").write_text(
        "extends: base.yaml\nlanguages: {tr: {evaluation: {news: n.txt, web: w.txt}}}\n", "utf-8"
    )
    recipe = load_recipe(tmp_path / "tested.yaml", ["languages.tr.evaluation.news=null"])
    assert list(recipe.languages["tr"].evaluation) == ["web"]


@pytest.mark.parametrize(("sizes", "drawn"), [([1, 2, 3], True), ([1, 2, 2], False)])
def test_the_figure_of_sizes_needs_three_of_one_kind(sizes, drawn) -> None:
    from polydistill.reports.balance_page import size_figure

    names = [f"s{index}" for index in range(3)]
    settings = {"labels": "soft", "predictions": "live"}
    recipe = {
        "students": dict.fromkeys(names, settings) | {"gold": {"labels": "gold", "predictions": "live"}}
    }
    logs = {name: {"characters": {"en": size * 1_000_000}} for name, size in zip(names, sizes, strict=True)}
    logs["gold"] = {"characters": {"en": 9_000_000}}
    models = {name: {"mrr": 0.2} for name in (*names, "gold", "teacher")}
    figure = size_figure(recipe, logs, models, "en")
    assert (figure is not None) == drawn
    assert figure is None or ("soft labels" in figure and "gold labels" not in figure)
