"""The recipe of fine-tuning: the papers' presets, and what it refuses."""

import pytest
from tests.finetuning import recipe_values, task

from polydistill.config.finetune import Columns, FinetuneRecipe
from polydistill.config.load import parse_recipe
from polydistill.errors import RecipeError
from polydistill.pipelines.finetune.jobs import Job
from polydistill.pipelines.finetune.plan import timed_features
from polydistill.tasks.splits import read_tasks
from polydistill.tasks.training import steps_of
from polydistill.training.arguments import check_arguments, check_finetuning


def recipe(tmp_path, change=lambda values: None, **more) -> FinetuneRecipe:
    tasks = {
        "tags": task(tmp_path, "pos", ("en", "ru")),
        "far": task(tmp_path, "qa", ("en", "ru"), setting="zero_shot", source="en"),
    }
    values = recipe_values(tmp_path, {"one": tmp_path, "two": tmp_path}, tasks, **more)
    change(values)
    parsed = parse_recipe(values)
    assert isinstance(parsed, FinetuneRecipe)
    return parsed


def refused(tmp_path, change) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, change)
    return str(caught.value)


def test_presets_are_the_papers(tmp_path) -> None:
    """MergeDistill tables 7 and 11; Eliquare section 3."""
    expected = {
        ("mergedistill", "tags"): (3e-5, 10, 0.1, 32, 256),
        ("mergedistill", "far"): (3e-5, 10, 0.1, 32, 384),
        ("xtreme", "tags"): (5e-6, 10, 0.1, 64, 128),
        ("xtreme", "far"): (3e-5, 2, 0.1, 32, 384),
        ("eliquare", "tags"): (5e-5, 5, 500, 32, 128),
    }
    names = ("learning_rate", "num_train_epochs", "warmup_steps", "per_device_train_batch_size")

    def plain(values) -> None:
        for settings in values["tasks"].values():
            del settings["max_length"]

    for (preset, name), wanted in expected.items():
        parsed = recipe(tmp_path, plain, preset=preset, training={})
        arguments = check_finetuning(parsed.arguments(parsed.tasks[name]))
        assert (*(arguments[key] for key in names), parsed.max_length(parsed.tasks[name])) == wanted
        assert arguments["lr_scheduler_type"] == "linear"
    own = recipe(
        tmp_path, lambda v: v["tasks"]["tags"].update(training={"learning_rate": 1.0}, preset="xtreme")
    )
    # A task's own value overrides the recipe's, which overrides the preset's.
    assert own.arguments(own.tasks["tags"])["learning_rate"] == 1.0
    assert own.arguments(own.tasks["tags"])["num_train_epochs"] == 2
    assert own.arguments(own.tasks["far"])["learning_rate"] == 5e-3


def test_sources_targets_and_teachers(tmp_path) -> None:
    parsed = recipe(tmp_path, teachers={"ru": "two"}, baseline="one")
    assert parsed.tasks["tags"].sources == ["en", "ru"]
    assert parsed.tasks["tags"].targets("ru") == ["ru"]
    assert parsed.tasks["far"].sources == ["en"]
    assert parsed.tasks["far"].targets("en") == ["en", "ru"]
    assert [parsed.teachers_of(language) for language in ("en", "ru")] == [["one"], ["two"]]
    # If a language's teacher has no scores, the baseline replaces it, if it has some.
    assert parsed.teachers_of("ru", {"one": {"en", "ru"}, "two": {"en"}}) == ["one"]
    assert parsed.teachers_of("ru", {"one": {"ru"}, "two": {"ru"}}) == ["two"]
    assert parsed.teachers_of("ru", {"one": {"en"}}) == []
    # Of several teachers those with scores stay, and the baseline joins none of them.
    several = recipe(tmp_path, teachers={"ru": ["two", "one"]}, baseline="one")
    assert several.teachers_of("ru") == ["two", "one"]
    assert several.teachers_of("ru", {"one": {"ru"}, "two": {"en"}}) == ["one"]
    assert several.teachers_of("en") == ["one"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: v["tasks"]["tags"]["data"]["ru"].pop("train"),
            "data.ru.train: this language has no training set",
        ),
        (lambda v: v["tasks"]["tags"].update(source="en"), "source 'en': needs setting: zero_shot"),
        (
            lambda v: v["tasks"]["far"].pop("source"),
            "source: missing; name the language to train on, one of en, ru",
        ),
        (
            lambda v: v["tasks"]["far"].update(source="xx"),
            "source 'xx': the task has no such language; it has en, ru",
        ),
        (
            lambda v: v["tasks"]["far"]["data"]["en"].pop("train"),
            "data.en.train: the source has no training set",
        ),
        (
            lambda v: v.update(teachers={"ru": "three"}),
            "teachers.ru 'three': no model of that name; the recipe defines one, two",
        ),
        (
            lambda v: v.update(teachers={"fr": "one"}),
            "teachers.fr: no task has this language; they have en, ru",
        ),
        (
            lambda v: v.update(teachers={"ru": ["one", "three"]}),
            "teachers.ru 'three': no model of that name; the recipe defines one, two",
        ),
        (lambda v: v.update(teachers={"ru": ["one", "one"]}), "teachers.ru 'one': is named twice"),
        (lambda v: v.update(teachers={"ru": []}), "teachers.ru"),
        (lambda v: v.update(baseline="three"), "baseline 'three': no model of that name"),
        (
            lambda v: v.update(groups={"covered": ["en", "fr"]}),
            "groups.covered[1] 'fr': no task has this language; they have en, ru",
        ),
        (
            lambda v: v.update(groups={"covered": ["en"], "other": ["ru", "en"]}),
            "groups.other[1] 'en': is in groups.covered too; leave it in one place",
        ),
        (
            lambda v: v.update(groups={"covered": ["en", "en"]}),
            "groups.covered[1] 'en': is in groups.covered",
        ),
        (lambda v: v.update(groups={"none": []}), "groups.none []: has no languages; name some, or remove"),
        (lambda v: v.update(groups={"all": ["en"]}), "groups.all: the name is reserved for all languages"),
        (lambda v: v.update(equivalence_margin=0), "equivalence_margin 0"),
        (
            lambda v: v["models"].update(two={"model": "x", "languages": ["fr"]}),
            "models.two.languages[0] 'fr': no task has",
        ),
        (lambda v: v["tasks"]["far"].update(kind="answers"), "tasks.far.kind 'answers'"),
        (
            lambda v: v["tasks"]["far"]["data"]["en"].update(test={"split": "test"}),
            "give either `path` or `dataset`",
        ),
    ],
)
def test_what_is_refused(tmp_path, change, said) -> None:
    assert said in refused(tmp_path, change)


def test_fewer_examples_are_drawn_from_all_over_a_file(tmp_path) -> None:
    """Some files are sorted by label; every model and seed gets the same examples."""
    values = recipe_values(
        tmp_path, {"one": tmp_path}, {"t": task(tmp_path, "classification", max_examples=9)}
    )
    whole = recipe_values(tmp_path, {"one": tmp_path}, {"t": task(tmp_path, "classification")})
    some, again, everything = (
        read_tasks(parse_recipe(v))["t"].splits["en"]["test"] for v in (values, values, whole)
    )
    assert some == again
    assert len(some) == 9
    places = [everything.index(example) for example in some]
    assert places == sorted(places)
    assert places[-1] > 12
    other = read_tasks(parse_recipe(values | {"seed": 1}))["t"].splits["en"]["test"]
    assert other != some


def test_a_plan_times_the_examples_that_a_batch_is_made_of(tmp_path) -> None:
    """Padded to the longest of the batch, unless texts of similar length are batched together."""
    features = [{"input_ids": [7] * length} for length in (2, 3, 40, 4, 5, 12, 6, 14, 7, 13)]
    drawn, alike = (
        [len(row["input_ids"]) for row in timed_features(features, 3, grouped=grouped)]
        for grouped in (False, True)
    )
    assert drawn == [2, 4, 6]
    assert sorted(alike) == [12, 13, 14]
    for name, value, grouped in (
        ("train_sampling_strategy", "group_by_length", True),
        ("train_sampling_strategy", "random", False),
        ("seed", None, False),
    ):
        more = {"training": {name: value}} if value else {}
        job = Job(recipe(tmp_path, **more), read_tasks(recipe(tmp_path))["tags"], None, "en", 0)
        assert job.groups_by_length is grouped


def test_arguments_of_training() -> None:
    preset = {
        "learning_rate": 1e-4,
        "num_train_epochs": 2,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": 8,
    }
    for name, value, said in (
        ("learning_rte", 1, "did you mean 'learning_rate'"),
        ("save_steps", 5, "is set by the run itself; use `evaluations_per_epoch` and `patience`"),
        ("output_dir", "x", "is set by the run itself; leave it out"),
        ("num_train_epochs", 0, "not a positive number"),
        ("num_train_epochs", None, "not a positive number"),
        ("num_train_epochs", float("inf"), "not a positive number"),
        ("learning_rate", -3, "not a number >= 0"),
        ("learning_rate", float("nan"), "not a number"),
        ("weight_decay", "x", "not a number >= 0"),
        ("warmup_steps", None, "not a number >= 0"),
        ("max_grad_norm", True, "not a number"),
        ("optim", "adamx", "refused by transformers"),
        ("lr_scheduler_type", "liner", "refused by transformers"),
        ("train_sampling_strategy", "group_by_lenght", "not an allowed value; give one of random"),
        ("max_steps", 2.5, "not a whole number"),
        ("per_device_train_batch_size", 0, "not a positive whole number"),
    ):
        with pytest.raises(RecipeError, match=said):
            check_finetuning({**preset, name: value})
    # Training without epochs is checked in the same way.
    for name, value in (("optim", "adamx"), ("weight_decay", "x"), ("learning_rate", -1)):
        with pytest.raises(RecipeError):
            check_arguments({name: value})
    assert steps_of(17, check_finetuning(preset)) == (3, 6)
    assert steps_of(17, check_finetuning(preset | {"max_steps": 4})) == (3, 4)
    assert steps_of(17, check_finetuning(preset | {"gradient_accumulation_steps": 2})) == (2, 4)
    assert Columns().quotes is None
