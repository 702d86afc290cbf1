"""The sentences whose guesses a page shows, and its code to use the student."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml

from polydistill.config.load import parse_recipe
from polydistill.config.shared import Evaluation, Masking
from polydistill.corpora.examples import Examples
from polydistill.evaluation import readers
from polydistill.evaluation.readers import CANDIDATES, Reader, sample_guesses
from polydistill.pipelines.run import run_recipe
from polydistill.reports.page import _use
from polydistill.tokenization.load import load_tokenizer


@pytest.mark.parametrize("known", ["all", "none", "some"])
def test_words_that_were_guessed_right_come_first_by_frequency(
    tmp_path, recipe_values, teachers, monkeypatch, known
) -> None:
    """Each word once; without any, the text's own order."""
    run = run_recipe(parse_recipe(recipe_values | {"output": str(tmp_path)}), until="corpora")
    examples = Examples(run / "corpora" / "en" / "held_out.arrow")
    tokenizer = load_tokenizer(str(teachers["en"]), name="en")

    def guess(model, masked, place, *, pad_id):
        gold = int(masked.gold[place])
        piece = str(tokenizer.backend.id_to_token(gold))
        right = {"all": True, "none": False, "some": len(piece) == 3}[known]
        return [(gold if right else tokenizer.special_ids["unk"], 0.5)]

    monkeypatch.setattr(readers, "guesses", guess)
    shown = sample_guesses(
        [Reader("en", SimpleNamespace(), tokenizer, "own", "en")],
        examples,
        settings=Evaluation(num_samples=6),
        masking=Masking(),
        max_length=64,
        seed=0,
        decode=lambda index, reader: reader.tokenizer.backend.id_to_token(index),
    )
    assert len(shown) == 6
    golds = [entry["gold"] for entry in shown]
    right = [entry["guesses"]["en"][0][0] == entry["gold"] for entry in shown]
    if known == "none":
        assert not any(right)
        return
    assert right[0]
    words = [sum(letter.isalpha() for letter in gold) >= 3 and gold[:2] != "##" for gold in golds]
    first = [each and word for each, word in zip(right, words, strict=True)]
    telling = [gold for gold, each in zip(golds, first, strict=True) if each]
    assert first == sorted(first, reverse=True)
    assert len(set(telling)) == len(telling) > (2 if known == "all" else 0)
    texts = examples.texts(examples.first(6 * CANDIDATES))
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.backend.encode(text, add_special_tokens=False).tokens)
    frequencies = [counts[gold] for gold in telling]
    assert frequencies == sorted(frequencies, reverse=True)


def test_a_page_shows_how_to_use_the_student(tmp_path) -> None:
    """With one mask: several give another form of answer."""
    final = tmp_path / "student" / "final"
    (final / "tokenizer" / "ko").mkdir(parents=True)
    assert _use(tmp_path, {"name": "a"}) is None
    (final / "tokenizer" / "ko" / "tokenizer.json").write_text("{}")
    (final / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>"}))
    (tmp_path / "evaluation").mkdir()
    sample = {"before": "a <mask> 'b", "after": "c <mask> d", "gold": "x", "guesses": {}}
    (tmp_path / "evaluation" / "samples.json").write_text(json.dumps({"ko": [sample]}))
    use = _use(tmp_path, {"name": "a", "output": ""})
    assert yaml.safe_load(use["folder"]) == "runs/a/student/final"
    assert use["text"] == repr("'b <mask> c")
    assert use["languages"] == ["ko"]
    assert _use(tmp_path, {"name": "a", "output": "x/y"})["folder"] == "'x/y/student/final'"


def test_a_page_shows_training_arguments_that_the_recipe_leaves_out(tmp_path, recipe_values) -> None:
    """The learning rate's default decides as much as one that was given."""
    training = {name: value for name, value in recipe_values["training"].items() if name != "learning_rate"}
    values = recipe_values | {"output": str(tmp_path / "run"), "training": training}
    run = run_recipe(parse_recipe(values))
    page = (run / "report" / "index.html").read_text("utf-8")
    assert "learning_rate: 0.0005" in page
    assert f"max_steps: {training['max_steps']}" in page
    assert "use_cpu" not in page
