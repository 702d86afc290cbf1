"""A fine-tuning task's examples: splitting off a dev set, and overlap with test sets."""

import json

import pytest

from polydistill.config.finetune import Task
from polydistill.errors import CorpusError
from polydistill.tasks.splits import TaskTexts


def test_questions_on_one_text_are_set_apart_together(tmp_path) -> None:
    path = tmp_path / "train.json"
    paragraphs = [
        {
            "context": f"text {text} says {text}",
            "qas": [
                {
                    "id": f"{text}-{q}",
                    "question": f"{q}?",
                    "answers": [{"text": str(text), "answer_start": 5}],
                }
                for q in range(4)
            ],
        }
        for text in range(10)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), "utf-8")
    # Other questions on the same texts.
    test = tmp_path / "test.json"
    test.write_text(path.read_text("utf-8").replace("?", "!"), "utf-8")
    data = {"en": {"train": str(path), "test": str(test)}}
    texts = TaskTexts("q", Task.model_validate({"kind": "qa", "data": data, "dev_share": 0.2}), seed=3)
    contexts = {
        split: [question.context for question in texts.splits["en"][split]] for split in ("train", "dev")
    }
    assert {split: len(seen) for split, seen in contexts.items()} == {"train": 32, "dev": 8}
    assert not {*contexts["train"]} & {*contexts["dev"]}
    assert texts.notes() == [
        "tasks.q.data.en.test: 32 of 40 questions are on texts that stand in en's training set too "
        "(overlap: drop leaves them out of it)"
    ]


def test_what_a_test_set_has_is_left_out_of_training_and_dev_where_that_is_asked_for(tmp_path) -> None:
    def table(name: str, rows: list[str]) -> str:
        (tmp_path / name).write_text(
            "\n".join(["text\tlabel", *(f"{row}\t{row[0]}" for row in rows)]), "utf-8"
        )
        return str(tmp_path / name)

    train = [f"{'ab'[n % 2]} {n}" for n in range(20)]
    data = {
        "en": {
            "train": table("train.tsv", train),
            "dev": table("dev.tsv", ["a dev", "b dev", train[0]]),
            "test": table("test.tsv", ["a test", train[0], train[1]]),
        },
        # Only the test sets of its own model matter.
        "de": {"train": table("de.tsv", train), "test": table("de-test.tsv", ["a de", train[5]])},
    }

    def texts(overlap: str, **values) -> TaskTexts:
        task = {"kind": "classification", "data": data, "overlap": overlap} | values
        return TaskTexts("c", Task.model_validate(task), seed=1)

    def read(task_texts: TaskTexts, language: str) -> set[str]:
        return {example.texts for split in ("train", "dev") for example in task_texts.splits[language][split]}

    dropped, kept = texts("drop"), texts("count")
    assert read(kept, "en") == {(row,) for row in [*train, "a dev", "b dev"]}
    assert read(dropped, "en") == {(row,) for row in [*train[2:], "a dev", "b dev"]}
    assert read(dropped, "de") == {(row,) for row in train if row != train[5]}
    assert [len(task_texts.splits["en"]["test"]) for task_texts in (dropped, kept)] == [3, 3]
    assert dropped.notes() == [
        "tasks.c.data.en.train: 2 of 20 examples are some that a test set has: they are left out",
        "tasks.c.data.en.dev: 1 of 3 examples are some that a test set has: they are left out",
        "tasks.c.data.de.train: 1 of 20 examples are some that a test set has: they are left out",
    ]
    # In zero-shot one model is tested on all.
    shot = texts("drop", setting="zero_shot", source="en")
    assert read(shot, "en") == {(row,) for row in [*train[2:5], *train[6:], "a dev", "b dev"]}
    data["de"]["test"] = data["de"]["train"]
    with pytest.raises(
        CorpusError, match=r"tasks\.c\.data\.de\.train: all of its examples are also in the test set"
    ):
        _ = texts("drop").splits


def test_questions_on_a_text_that_is_tested_are_left_out(tmp_path) -> None:
    def questions(name: str, numbers: range) -> str:
        paragraphs = [
            {
                "context": f"text {n}",
                "qas": [
                    {"id": f"{name}{n}", "question": name, "answers": [{"text": str(n), "answer_start": 5}]}
                ],
            }
            for n in numbers
        ]
        (tmp_path / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), "utf-8")
        return str(tmp_path / name)

    data = {
        "en": {"train": questions("train.json", range(20)), "test": questions("test.json", range(15, 30))}
    }
    texts = TaskTexts("q", Task.model_validate({"kind": "qa", "data": data, "overlap": "drop"}), seed=1)
    seen = {question.context for split in ("train", "dev") for question in texts.splits["en"][split]}
    assert seen == {f"text {n}" for n in range(15)}
    assert texts.notes() == [
        "tasks.q.data.en.train: 5 of 20 questions are on texts that a test set has: they are left out"
    ]
