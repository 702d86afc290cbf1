"""From the step at which teachers' labels have no weight, a merge draws text that none has scored."""

import json

import numpy as np
import pytest

from polydistill.config.load import parse_recipe
from polydistill.corpora.examples import Examples
from polydistill.pipelines.merge import student
from polydistill.pipelines.merge.state import scored_shares, untaught_step
from polydistill.pipelines.run import run_recipe
from polydistill.pipelines.stages import scoring
from polydistill.store.reader import Store
from polydistill.training.objectives import Progress
from polydistill.training.sampler import LanguageSampler, Phase


def arguments(steps=101):
    return {"max_steps": steps, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["distillation.annealing_share=0.5"], 50),
        (["distillation.annealing_share=0.304"], 31),
        (["distillation.annealing_share=0.001"], 1),
        (["distillation.annealing_share=1"], None),
        (["distillation.annealing_share=0.5", "languages.en.labels=gold"], 50),
        (["distillation.annealing_share=0.5", "languages.en.labels=soft"], None),
        (["distillation.annealing_share=0.5", "distillation.labels=gold"], None),
        (["distillation.annealing_share=0.5", "distillation.final_teacher_weight=0.1"], None),
        (["distillation.annealing_share=0.5", "distillation.schedule=constant"], None),
        (["distillation.annealing_share=0.5", "scoring.examples=all"], None),
    ],
)
def test_the_step_from_which_no_teacher_counts(recipe_values, changes, expected) -> None:
    recipe = parse_recipe(recipe_values, changes)
    assert untaught_step(recipe, arguments()) == expected
    if expected is not None:
        share = recipe.distillation.annealing_share
        assert Progress(expected, 101).share(share) == 1
        assert expected == 1 or Progress(expected - 1, 101).share(share) < 1


def test_teachers_score_what_is_drawn_while_they_count(recipe_values) -> None:
    """1,000 steps of 4 draw 4,000 examples, a quarter of them while teachers count, of 16,000 of one language
    and few of the other.
    """
    one = recipe_values | {"languages": {"ru": recipe_values["languages"]["ru"]}}
    one |= {"teachers": {"ru": recipe_values["teachers"]["ru"]}}
    for share, expected in ((1, 4 / 16), (0.5, 2 / 16)):
        recipe = parse_recipe(one, [f"distillation.annealing_share={share}"])
        assert scored_shares(recipe, arguments(1000), {"ru": 16_000}) == {"ru": [expected]}


def test_phases_of_a_training_draw_their_own_rows() -> None:
    """From its step on, a phase draws each of its rows once before it repeats any."""
    phases = [[Phase(0, range(6)), Phase(4, range(6, 14))], [Phase(0, range(5))]]
    lengths = [np.arange(14), np.arange(5)]
    drawn = list(LanguageSampler(lengths, [0.5, 0.5], batch_size=2, num_batches=12, seed=0, phases=phases))
    first = [(row, epoch) for language, row, epoch in drawn[:8] if language == 0]
    second = [(row, epoch) for language, row, epoch in drawn[8:] if language == 0]
    assert {row for row, _ in first} <= set(range(6))
    assert sorted(row for row, _ in second) == list(range(6, 14))
    assert {epoch for _, epoch in second} == {0}
    plain = list(LanguageSampler(lengths, [0.5, 0.5], batch_size=2, num_batches=12, seed=0))
    assert [key for key in plain if key[0] == 1] == [key for key in drawn if key[0] == 1]


def test_a_merge_goes_on_with_text_that_no_teacher_has_scored(tmp_path, recipe_values, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "MIN_SCORED", 1)
    seen = []
    kept = student.training_data

    def training_data(merge):
        seen.append((merge, kept(merge)))
        return seen[-1][1]

    monkeypatch.setattr(student, "training_data", training_data)
    values = recipe_values | {"output": str(tmp_path / "run")}
    run = run_recipe(
        parse_recipe(values, ["distillation.annealing_share=0.5", "training.logging_steps=1"]),
        until="train",
        show=lambda line: None,
    )
    log = json.loads((run / "student" / "log.json").read_text("utf-8"))["log"]
    steps = [entry for entry in log if "mlm_loss" in entry]
    # Eight steps: lambda is 0 from the fourth of 0 to 7; the log says lambda after each step.
    assert ["kd_loss" in entry for entry in steps] == [True] * 4 + [False] * 4
    assert [entry["teacher_weight"] for entry in steps[4:]] == [0.0] * 4
    merge, (data, _) = seen[-1]
    for language, teachers in (("en", ["en", "en2"]), ("ru", ["ru"])):
        examples = data[language]
        stored, *texts = examples.parts
        assert len(texts) == len(teachers)
        scored = {int(i) for name in teachers for i in Store(run / "store" / language / name).examples}
        later = range(len(stored), len(examples))
        ids = {examples.identify(row)["example"] for row in later}
        corpus = Examples(run / "corpora" / language / "train.arrow")
        assert not ids & scored
        assert ids | scored == {int(i) for i in corpus.ids}
        # Every row is the text that its id says, in the student's ids, with masks of its own.
        row = int(later[-1])
        made = examples.example(row, 3, 0)
        assert made.row == row
        assert made.top_ids.shape == (len(made.positions), 0)
        text = corpus.texts(np.flatnonzero(corpus.ids == examples.identify(row)["example"]))[0]
        whole = merge.maps[teachers[-1]][merge.tokenizers[teachers[-1]].backend.encode(text).ids]
        restored = made.input_ids.copy()
        restored[made.positions] = made.gold
        assert restored.tolist() == whole[: len(restored)].tolist()
        assert made.positions.tolist() != examples.example(row, 4, 0).positions.tolist()
        several = examples.several([row, 0], 3, 0)
        assert [e.row for e in several] == [row, 0]
        assert several[0].input_ids.tolist() == made.input_ids.tolist()
        assert several[1].gold.tolist() == stored.example(0, 3, 0).gold.tolist()
    stamp = json.loads((run / "student" / "final" / "stamp.json").read_text("utf-8"))
    assert stamp["inputs"]["text_from"] == 4
