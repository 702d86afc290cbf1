"""How much of a text teachers score, and what a plan says of their masks."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.conftest import write_examples

from polydistill.config.load import parse_recipe
from polydistill.corpora.examples import Examples
from polydistill.pipelines.run import run_recipe
from polydistill.pipelines.stages import planning, scoring
from polydistill.pipelines.stages.scoring import MIN_SCORED, needed_rows, needed_shares
from polydistill.store.reader import Store
from polydistill.tokenization.load import load_tokenizer


def recipe_with(**scoring):
    return SimpleNamespace(scoring=SimpleNamespace(examples="needed", **scoring))


def arguments(steps, batch=8, accumulation=2):
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
    }


@pytest.mark.parametrize(
    ("steps", "share", "copies", "expected"),
    [
        # 1,000 steps of 16 draw 16,000 of 100,000 examples: between two and three sixteenths.
        (1000, 1.0, 1, 3 / 16),
        (1000, 0.5, 1, 2 / 16),
        # Two copies of each example: half of the examples.
        (1000, 1.0, 2, 2 / 16),
        (7000, 1.0, 1, 1.0),
        # Very few steps: MIN_SCORED of 100,000.
        (1, 1.0, 1, 1 / 16),
    ],
)
def test_as_many_examples_are_scored_as_training_draws(steps, share, copies, expected) -> None:
    assert needed_shares(recipe_with(), arguments(steps), 100_000, share=share, copies=copies) == [expected]


def test_small_texts_and_all_are_scored_whole() -> None:
    assert needed_shares(recipe_with(), arguments(1), MIN_SCORED) == [1.0]
    assert needed_shares(recipe_with(), arguments(1), 10 * MIN_SCORED) == [2 / 16]
    everything = SimpleNamespace(scoring=SimpleNamespace(examples="all"))
    assert needed_shares(everything, arguments(1), 100_000) == [1.0]


def test_several_draws_of_masks_are_scored_as_far_as_training_goes() -> None:
    """16,000 of 10,000 examples: the second draw has ten sixteenths; a third one is not needed."""
    assert needed_shares(recipe_with(), arguments(1000), 10_000, draws=4) == [1.0, 10 / 16]
    assert needed_shares(recipe_with(), arguments(1000), 10_000, draws=1) == [1.0]
    assert needed_shares(recipe_with(), arguments(1000), 3_000, draws=3) == [1.0, 1.0, 1.0]
    everything = SimpleNamespace(scoring=SimpleNamespace(examples="all"))
    assert needed_shares(everything, arguments(1), 100_000, draws=2) == [1.0, 1.0]


def test_a_second_pass_over_the_text_has_other_masks(tmp_path, recipe_values, monkeypatch) -> None:
    """Each draw has a store of its own, of the same texts; copies of a text hide the same words in each."""
    monkeypatch.setattr(scoring, "MIN_SCORED", 1)
    run = run_recipe(
        parse_recipe(
            recipe_values | {"output": str(tmp_path / "run")},
            ["scoring.draws=2", "scoring.examples=all", "scoring.sampling=random"],
        ),
        until="train",
        show=lambda line: None,
    )
    stores = {path.name: Store(path) for path in (run / "store" / "en").iterdir()}
    assert set(stores) == {"en", "en@1", "en2", "en2@1"}

    def hidden(name):
        rows = (stores[name].row(index) for index in range(len(stores[name])))
        return {int(row.example): (row.positions.tolist(), row.top_ids.tolist()) for row in rows}

    first, second = hidden("en"), hidden("en@1")
    both = set(first) & set(second)
    assert len(both) > 0.9 * len(first)
    assert sum(first[key][0] != second[key][0] for key in both) > 0.8 * len(both)
    again = run_recipe(
        parse_recipe(
            recipe_values | {"output": str(tmp_path / "one")},
            ["scoring.sampling=random", "scoring.examples=all"],
        ),
        until="score",
        show=lambda line: None,
    )
    alone = Store(again / "store" / "en" / "en")
    assert [shard["checksum"] for shard in alone.manifest["shards"]] == [
        shard["checksum"] for shard in stores["en"].manifest["shards"]
    ], "the first draw is what a single one is"


def test_a_larger_share_holds_the_rows_of_a_smaller_one(tmp_path) -> None:
    """Rows are in order, and chosen by content: the first ones of the file are no more likely."""
    write_examples(tmp_path / "a.arrow", [(f"text {index}", 2) for index in range(1000)])
    examples = Examples(tmp_path / "a.arrow")
    small, large = needed_rows(examples, 1 / 4), needed_rows(examples, 1 / 2)
    assert len(small) == 250
    assert len(large) == 500
    assert set(small) < set(large)
    assert np.all(np.diff(small) > 0)
    assert abs(small.mean() - 500) < 60
    assert needed_rows(examples, 1.0) is None


def test_a_merge_scores_what_it_draws(tmp_path, recipe_values, monkeypatch) -> None:
    """And draws its languages by the size of their text, not by what is scored."""
    monkeypatch.setattr(scoring, "MIN_SCORED", 1)
    values = recipe_values | {"training": recipe_values["training"] | {"max_steps": 1}}
    sizes, shown = {}, {}
    for name in ("needed", "all"):
        lines = []
        run = run_recipe(
            parse_recipe(values | {"output": str(tmp_path / name)}, [f"scoring.examples={name}"]),
            until="train",
            show=lines.append,
        )
        sizes[name] = {store.parent.name: len(Store(store)) for store in run.glob("store/*/*")}
        shown[name] = next(line for line in lines if "student:" in line)
    corpus = {name: len(Examples(run / "corpora" / name / "train.arrow")) for name in ("en", "ru")}
    # Examples without a masked piece are in no store.
    assert all(0.95 * corpus[name] <= sizes["all"][name] <= corpus[name] for name in corpus)
    assert all(sizes["needed"][name] <= corpus[name] / 4 for name in corpus)
    assert shown["needed"] == shown["all"]
    # A store of more than is needed is taken; one of less is not.
    for source, steps, reused in (("all", 1, True), ("needed", 40, False)):
        lines = []
        again = values | {"output": str(tmp_path / f"from-{source}"), "reuse": [str(tmp_path / source)]}
        run_recipe(parse_recipe(again, [f"training.max_steps={steps}"]), until="score", show=lines.append)
        assert any("masked positions" in line for line in lines) is not reused


@pytest.mark.parametrize(
    ("share", "rise", "conflicts"), [(0.3, 0.6, 1), (0.3, 0.4, 0), (0.15, 9, 0), (0.1, 9, 0)]
)
def test_a_plan_finds_teachers_that_cannot_take_the_masks(
    recipe_values, monkeypatch, share, rise, conflicts
) -> None:
    """The teacher's loss is measured at the recipe's share and at 0.15; here it rises by a given number."""
    recipe = parse_recipe(recipe_values, [f"masking.probability={share}"])
    tokenizer = load_tokenizer(recipe.teachers["en"].model, name="en")
    shares = []

    def predicted(_, __, ___, chosen):
        shares.append(sum(len(e.positions) for e in chosen) / sum(len(e.input_ids) for e in chosen))
        return [
            SimpleNamespace(gold_logprobs=np.full(len(e.positions), -2.0 - rise * (len(shares) - 1)))
            for e in chosen
        ]

    monkeypatch.setattr(planning, "_predicted", predicted)
    texts = ["the people of the world and the water of the land " * 40]
    found = planning.mask_conflicts(recipe, None, tokenizer, texts, "en")
    assert len(found) == conflicts
    if share > 0.15:
        assert shares[1] > 1.5 * shares[0]
    if conflicts:
        assert "teacher en has a loss of 2.6 nats on en, and 2.0 at 0.15" in found[0].what
        assert "set masking.probability to 0.15" in found[0].remedy
