"""Models' inputs and decoded outputs: against transformers' own tokenizer calls, brute force, and by hand."""

import json
import shutil

import numpy as np
import pytest
from tests.finetuning import coder, recipe_values, task
from transformers import AutoConfig, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.pipelines.finetune.jobs import all_jobs, notes_of
from polydistill.tasks.encoding import best_span
from polydistill.tasks.heads import NO_LABEL, takes_segments
from polydistill.tasks.labelled import Choice, LabelledText
from polydistill.tasks.questions import Answer, Question
from polydistill.tasks.splits import read_tasks
from polydistill.tasks.tagged import TaggedSentence


def test_texts_and_pairs_are_those_of_the_model_s_own_tokenizer(teachers) -> None:
    fast = AutoTokenizer.from_pretrained(teachers["en"])
    long = "the house of the " * 20
    made = coder("pairs", teachers["en"], ["no", "yes"]).encode(
        [LabelledText(("the house", "of that"), "yes"), LabelledText((long, "of"), "no")]
    )
    wanted = fast(["the house", long], ["of that", "of"], truncation="longest_first", max_length=32)
    assert [row["input_ids"] for row in made] == wanted["input_ids"]
    assert [row["labels"] for row in made] == [1, 0]
    # The student's tokenizer writes no token types: only the separator marks the pair's second text.
    first = made[0]["input_ids"].index(fast.sep_token_id) + 1
    assert made[0]["token_type_ids"] == [0] * first + [1] * (len(made[0]["input_ids"]) - first)
    assert (
        "token_type_ids"
        not in coder("pairs", teachers["en"], segments=False).encode([LabelledText(("a", "b"), "x")])[0]
    )
    config = AutoConfig.from_pretrained(teachers["en"])
    assert takes_segments(config, ["input_ids", "token_type_ids"])
    assert not takes_segments(config, ["input_ids", "attention_mask"])
    config.type_vocab_size = 1
    assert not takes_segments(config, ["token_type_ids"])
    both = coder("choice", teachers["en"]).encode([Choice("the house", ("of", "that was"), 1)])[0]
    assert both["input_ids"] == fast([["the house", "of"], ["the house", "that was"]])["input_ids"]
    assert both["labels"] == 1


def test_a_tag_is_learned_at_a_word_s_first_token_and_every_word_gets_one(teachers) -> None:
    reader = coder("pos", teachers["en"], ["ADJ", "NOUN"], max_length=12)
    sentence = TaggedSentence(("extraordinarily",) * 2 + ("the",) * 14, ("ADJ",) * 2 + ("NOUN",) * 14)
    made = reader.encode([sentence])
    assert len(made) > 1
    assert all(len(row["input_ids"]) <= 12 for row in made)
    targets = [label for row in made for label in row["labels"] if label != NO_LABEL]
    assert targets == [0] * 2 + [1] * 14
    assert made[0]["labels"][1] == 0
    assert made[0]["labels"][2] == NO_LABEL
    # Logits of each place's own target give the sentence's own tags.
    logits = [np.eye(2, dtype=np.float32)[np.maximum(0, row["labels"])] for row in made]
    assert reader.decode([sentence], made, ((i, (rows,)) for i, rows in enumerate(logits))) == [
        list(sentence.tags)
    ]


CONTEXT = "the first of the men was in the house and the last of them was in the garden with his dog"


@pytest.mark.parametrize("answer", ["the first", "garden", "dog", "men was in"])
def test_an_answer_is_where_its_tokens_are_in_each_window(teachers, answer) -> None:
    question = Question("q", "who was it", CONTEXT, (Answer(CONTEXT.index(answer), answer),))
    reader = coder("qa", teachers["en"], max_length=18, stride_tokens=4)
    made = reader.encode([question], training=True)
    assert len(made) > 2
    held = []
    for feature in made:
        assert len(feature["input_ids"]) <= 18
        first, last = feature["start_positions"], feature["end_positions"]
        if first:
            text = CONTEXT[feature["offsets"][first][0] : feature["offsets"][last][1]]
            assert text == answer
            held.append(feature)
        else:
            assert last == 0
            inside = [offset for offset in feature["offsets"] if offset is not None]
            start = CONTEXT.index(answer)
            assert inside[0][0] > start or inside[-1][1] < start + len(answer)
    assert held
    # Predictions use the same windows; logits that point at the answer return it, whichever window has it.
    plain = reader.encode([question])
    assert [row["input_ids"] for row in plain] == [row["input_ids"] for row in made]
    outputs = []
    for index, feature in enumerate(made):
        starts, ends = np.zeros((2, len(feature["input_ids"])), dtype=np.float32)
        if feature["start_positions"]:
            starts[feature["start_positions"]] = ends[feature["end_positions"]] = 5.0
        outputs.append((index, (starts, ends)))
    assert reader.decode([question], plain, outputs) == [answer]
    absent = Question("q", "who was it", CONTEXT, (Answer(0, "nobody"),))
    assert reader.encode([absent], training=True) == []
    assert len(reader.encode([absent])) == len(plain)


def test_the_best_span_is_that_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        size = int(draw.integers(4, 18))
        starts, ends = draw.normal(size=(2, size)).astype(np.float32)
        inside = draw.random(size) < 0.7
        offsets = [(10 * i, 10 * i + 7) if inside[i] else None for i in range(size)]
        pairs = [
            (float(starts[i]) + float(ends[j]), i, j)
            for i in range(size)
            for j in range(i, min(size, i + 4))
            if inside[i] and inside[j]
        ]
        span = best_span(starts, ends, offsets, 4)
        if not pairs:
            assert span is None
            continue
        score, i, j = max(pairs)
        assert span == (pytest.approx(score, abs=1e-5), 10 * i, 10 * j + 7)


def test_a_job_is_what_its_tokenizer_lets_the_model_read(tmp_path, teachers) -> None:
    """A limit in the tokenizer's settings is reported, and is part of a finished job's fingerprint."""
    shutil.copytree(teachers["en"], tmp_path / "one")
    path = tmp_path / "one" / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    jobs = []
    for limit in (16, 24):
        path.write_text(json.dumps(settings | {"model_max_length": limit}), "utf-8")
        recipe = parse_recipe(
            recipe_values(tmp_path, {"one": tmp_path / "one"}, {"tags": task(tmp_path, "pos")})
        )
        jobs.append(all_jobs(recipe, read_tasks(recipe)))
    assert [job[0].coder("en").max_length for job in jobs] == [16, 24]
    assert jobs[0][0].inputs != jobs[1][0].inputs
    assert notes_of(jobs[0]) == [
        "models.one: reads en in sequences of 16 tokens at most, not 32 (tags): it takes no more"
    ]
    shorter = recipe_values(
        tmp_path, {"one": tmp_path / "one"}, {"tags": task(tmp_path, "pos", max_length=24)}
    )
    assert notes_of(all_jobs(parse_recipe(shorter), read_tasks(parse_recipe(shorter)))) == []
