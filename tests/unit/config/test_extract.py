"""The recipe `extract`: what it accepts, and its messages for the rest."""

import pytest

from polydistill.config.extract import ExtractRecipe
from polydistill.config.load import load_recipe, parse_recipe
from polydistill.errors import RecipeError

SHORTEST = {"recipe": "extract", "name": "x", "teacher": "folder", "language": "tr", "text": "a.txt"}


def test_the_shortest_recipe_has_the_papers_losses_and_its_teacher_fades() -> None:
    recipe = parse_recipe(SHORTEST)
    assert isinstance(recipe, ExtractRecipe)
    losses = recipe.losses
    assert [w.first for w in (losses.kd, losses.mlm, losses.cosine, losses.relation)] == [5, 2, 1, 0]
    assert [losses.kd.last, losses.kd.schedule, losses.mlm.last] == [0, "linear", None]
    assert (losses.logits.first, recipe.adapt, recipe.adapting) == (0, None, None)
    assert (losses.temperature, losses.positions, recipe.student.init, recipe.trim.when) == (
        2,
        "attended",
        "stride",
        "before",
    )
    assert (recipe.teacher.model, recipe.text[0].path) == ("folder", "a.txt")


def test_the_preset_is_the_paper() -> None:
    recipe = load_recipe("eliquare", ["language=sl", "text=sl.txt"])
    assert (recipe.training["learning_rate"], recipe.training["max_steps"]) == (5e-4, 20_000)
    assert (recipe.losses.kd.first, recipe.losses.kd.last, recipe.losses.kd.schedule) == (5, None, "constant")
    assert recipe.student.num_layers is None
    assert recipe.trim.when == "after"


def test_a_recipe_that_is_written_out_is_read_as_the_same() -> None:
    recipe = parse_recipe(SHORTEST | {"losses": {"kd": {"first": 5, "last": 0}, "mlm": 1}})
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_stored_predictions_leave_what_needs_a_live_teacher_out() -> None:
    recipe = parse_recipe(SHORTEST | {"losses": {"predictions": "stored", "kd": 1}})
    losses = recipe.losses
    assert [w.first for w in (losses.kd, losses.mlm, losses.cosine, losses.relation)] == [1, 2, 0, 0]
    assert (losses.temperature, losses.positions) == (1, "masked")
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_a_teacher_is_adapted_as_its_student_is_trained_at_a_rate_of_its_own() -> None:
    training = {"max_steps": 9, "learning_rate": 1e-3, "bf16": False}
    recipe = parse_recipe(SHORTEST | {"training": training, "adapt": {"max_steps": 4}})
    assert recipe.adapting == {"max_steps": 4, "learning_rate": 5e-5, "bf16": False}
    said = parse_recipe(SHORTEST | {"training": training, "adapt": {"learning_rate": 2e-5}})
    assert said.adapting == {"max_steps": 9, "learning_rate": 2e-5, "bf16": False}


def test_what_a_weight_comes_to_at_most() -> None:
    losses = parse_recipe(
        SHORTEST
        | {
            "losses": {
                "kd": {"first": 0, "last": 3},
                "mlm": 2,
                "cosine": {"first": 0, "last": 9, "schedule": "constant"},
            }
        }
    ).losses
    assert [w.highest for w in (losses.kd, losses.mlm, losses.cosine, losses.relation)] == [3, 2, 0, 0]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"losses": {"kd": -1}}, ["losses.kd.first -1", "greater than or equal to 0"]),
        ({"losses": {"kd": "much"}}, ["losses.kd 'much'", "neither a number nor"]),
        ({"losses": {"kd": True}}, ["losses.kd True", "neither a number nor"]),
        (
            {"losses": {"kd": {"first": 5, "shedule": "linear"}}},
            ["losses.kd.shedule", "did you mean 'schedule'"],
        ),
        ({"losses": {"kd": 0, "mlm": 0, "cosine": 0}}, ["nothing to learn", "give one a weight"]),
        ({"losses": {"temperature": 0}}, ["losses.temperature 0"]),
        ({"losses": {"positions": "all"}}, ["losses.positions 'all'", "attended"]),
        (
            {"losses": {"predictions": "stored", "cosine": 1}},
            ["losses", "cosine 1", "it can only be 0", "predictions: live"],
        ),
        ({"losses": {"predictions": "stored", "logits": 0.5}}, ["logits 0.5", "it can only be 0"]),
        ({"losses": {"logits": -1}}, ["losses.logits.first -1"]),
        ({"student": {"hidden_size": 0}}, ["student.hidden_size 0", "greater than or equal to 1"]),
        ({"adapt": 3}, ["adapt 3", "dictionary"]),
        ({"losses": {"predictions": "stored", "temperature": 2}}, ["temperature 2", "it can only be 1"]),
        ({"losses": {"predictions": "stored", "positions": "attended"}}, ["positions 'attended'", "masked"]),
        (
            {"losses": {"predictions": "stored", "relation": {"first": 0, "last": 1}}},
            ["relation", "it can only be 0"],
        ),
        ({"cost": {"shapes": []}}, ["cost.shapes"]),
        ({"student": {"init": "strid"}}, ["student.init 'strid'", "stride, distilbert"]),
        ({"student": {"init": [0, -1]}}, ["student.init [0, -1]", "[0, 2, 4]"]),
        ({"student": {"init": []}}, ["student.init []"]),
        ({"student": {"init": [1, 1]}}, ["layer 1 is listed twice"]),
        ({"student": {"init": [0, 1], "num_layers": 3}}, ["num_layers 3", "lists 2 layers"]),
        ({"student": {"num_layers": 0}}, ["student.num_layers 0"]),
        ({"trim": {"when": "later"}}, ["trim.when 'later'", "before"]),
        ({"trim": {"size": 9, "min_document_share": 0.1}}, ["size 9", "set only one of the two"]),
        ({"trim": {"min_document_share": 0}}, ["trim.min_document_share 0"]),
        ({"language": "../x"}, ["language '../x'"]),
        ({"teachers": {"a": "b"}}, ["teachers: unknown key", "did you mean 'teacher'"]),
    ],
)
def test_what_is_refused(change, wanted) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SHORTEST | change)
    for part in wanted:
        assert part in str(caught.value)
