"""Labelled examples in every format, and messages for damaged files: field, file and line, remedy."""

import gzip
import json
import lzma

import pytest

from polydistill.config.finetune import Columns, LabelledSource
from polydistill.errors import CorpusError
from polydistill.tasks.labelled import Choice, LabelledText, read_labelled
from polydistill.tasks.questions import Answer, Question, answer_faults, locate


def read(path, kind="classification", **columns):
    return read_labelled(
        LabelledSource(path=str(path)), kind, Columns(**columns), field="tasks.t.data.xx.train"
    )


def refused(path, kind="classification", **columns) -> str:
    with pytest.raises(CorpusError) as caught:
        read(path, kind, **columns)
    assert str(caught.value).startswith("tasks.t.data.xx.train")
    return str(caught.value)


def test_tables_by_tabs_commas_and_json(tmp_path) -> None:
    tabs = tmp_path / "a.tsv.xz"
    # With tabs a quotation mark is a character of the text.
    tabs.write_bytes(lzma.compress(b'label\ttext\n1\t"so he said\n0\tand "went"\n'))
    assert read(tabs) == [LabelledText(('"so he said',), "1"), LabelledText(('and "went"',), "0")]
    quoted = tmp_path / "b.tsv"
    quoted.write_text('label\ttext\n1\t"a ""small"" room"\n', "utf-8")
    assert read(quoted, quotes=True) == [LabelledText(('a "small" room',), "1")]
    # A single file of a task may have another format.
    raw = LabelledSource(path=str(quoted), quotes=False)
    examples = read_labelled(raw, "classification", Columns(quotes=True), field="f")
    assert examples == [LabelledText(('"a ""small"" room"',), "1")]
    commas = tmp_path / "c.csv.gz"
    commas.write_bytes(gzip.compress(b'text,pair,label\n"one, two","over\nlines",yes\n'))
    assert read(commas, "pairs") == [LabelledText(("one, two", "over\nlines"), "yes")]
    lines = tmp_path / "d.jsonl"
    lines.write_text('{"s1": "x", "s2": "y", "gold": 2}\n\n{"s1": "z", "s2": "", "gold": 0}\n', "utf-8")
    examples = read(lines, "pairs", text="s1", pair="s2", label="gold")
    assert examples == [LabelledText(("x", "y"), "2"), LabelledText(("z", ""), "0")]
    bare = tmp_path / "e.tsv"
    bare.write_text("good\tit is\n", "utf-8")
    assert read(bare, header=["label", "text"]) == [LabelledText(("it is",), "good")]


def test_a_part_of_a_file(tmp_path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n" + "".join(f"{n}\tx\n" for n in range(6)), "utf-8")
    tags = tmp_path / "a.bio"
    tags.write_text("".join(f"w\t{n}\n\n" for n in range(6)), "utf-8")

    def part(name, kind, first, number):
        source = LabelledSource(path=str(name), first_example=first, num_examples=number)
        examples = read_labelled(source, kind, Columns(), field="f")
        return "".join(example.label if kind == "classification" else example.tags[0] for example in examples)

    for name, kind in ((path, "classification"), (tags, "ner")):
        assert part(name, kind, 1, 4) == "0123"
        assert part(name, kind, 5, None) == "45"
        assert part(name, kind, 3, 2) == "23"
        with pytest.raises(CorpusError, match="holds no example from 7 on"):
            part(name, kind, 7, None)


def test_choices_are_counted_from_the_number_that_the_recipe_says(tmp_path) -> None:
    path = tmp_path / "copa.jsonl"
    row = {"premise": "It rained.", "choice1": "wet", "choice2": "dry", "question": "effect", "label": 1}
    path.write_text(json.dumps(row) + "\n", "utf-8")
    assert read(path, "choice") == [Choice("It rained.", ("wet", "dry"), 1)]
    assert read(path, "choice", question="question")[0].premise == "It rained. effect"
    assert read(path, "choice", first_choice=1)[0].right == 0
    path.write_text(json.dumps(row | {"label": 2}) + "\n", "utf-8")
    assert "line 1': label '2' is not in 0 to 1" in refused(path, "choice")


def test_what_is_said_of_damaged_tables(tmp_path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\n1\tgood\n0\tone\ttoo many\n", "utf-8")
    said = refused(path)
    assert "a.tsv, line 3" in said
    assert "has 3 fields and the header 2" in said
    assert "columns.quotes" in said
    path.write_text("label\tbody\n1\tgood\n", "utf-8")
    said = refused(path)
    assert "has no column 'text' (it has label, body)" in said
    assert "`columns.text`" in said
    path.write_text("label\ttext\n1\tgood\n \tnone\n", "utf-8")
    assert "line 3': column 'label' holds no label" in refused(path)
    path.write_text('label\ttext\n1\t"open\n', "utf-8")
    assert "cannot be split into fields" in refused(path, quotes=True)
    path.write_text("label\ttext\n", "utf-8")
    assert "holds no example" in refused(path)
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "x", "label": 1}\n{"text": \n', "utf-8")
    assert "b.jsonl, line 2': is not JSON" in refused(other)
    other.write_text('["x"]\n', "utf-8")
    assert "line 1': is a list instead of an object" in refused(other)
    other.write_text('{"text": 7, "label": 1}\n', "utf-8")
    assert "holds 7 instead of text" in refused(other)
    assert "has no ending that this task reads" in refused(_file(tmp_path / "c.xlsx"))
    assert "no such file" in refused(tmp_path / "none.tsv")


def _file(path):
    path.write_text("x", "utf-8")
    return path


def squad(tmp_path, *qas, context="He met Anna in Rome. Anna left."):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(qas)}]}]}), "utf-8")
    return path


def question(*answers) -> Question:
    return Question(
        "q", "Who?", "He met Anna in Rome. Anna left.", tuple(Answer(*answer) for answer in answers)
    )


def test_questions_and_where_their_answers_stand(tmp_path) -> None:
    path = squad(tmp_path, {"id": "7", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 7}]})
    assert read(path, "qa") == [
        Question("7", "Who?", "He met Anna in Rome. Anna left.", (Answer(7, "Anna"),))
    ]
    assert locate(question((7, "Anna"))) == (7, 11)
    assert locate(question((21, "Anna"))) == (21, 25)
    # Not at its start: the nearest one. An answer that is nowhere is skipped for the next.
    assert locate(question((18, "Anna"))) == (21, 25)
    assert locate(question((0, "Otto"), (15, "Rome"))) == (15, 19)
    assert locate(question((0, "Otto"))) is None
    assert locate(question((0, ""))) is None
    faults = answer_faults(
        [question((7, "Anna")), question((8, "Anna")), question((0, "Otto")), question((0, "")), question()]
    )
    assert faults == {"absent": 1, "misplaced": 1, "without": 2}


def test_what_is_said_of_damaged_questions(tmp_path) -> None:
    assert "has no `answers`" in refused(squad(tmp_path, {"id": "1", "question": "?"}), "qa")
    said = refused(squad(tmp_path, {"question": "?", "answers": [{"text": "x"}]}), "qa")
    assert "data[0].paragraphs[0].qas[0].answers[0]': has no `answer_start`" in said
    path = tmp_path / "q.json"
    path.write_text('{"data": [\n{"paragraphs": }\n]}', "utf-8")
    assert "q.json, line 2': is not JSON" in refused(path, "qa")
    path.write_text('{"version": 1}', "utf-8")
    assert "has no `data`" in refused(path, "qa")
    path.write_text('{"data": []}', "utf-8")
    assert "holds no question" in refused(path, "qa")


def test_a_data_set_of_the_datasets_library(tmp_path) -> None:
    """Numbers of classes become their names; SQuAD's answers are a mapping of lists there."""
    import datasets

    tags = datasets.ClassLabel(names=["O", "B-PER"])
    datasets.Dataset.from_dict(
        {"tokens": [["Anna", "left"]], "ner_tags": [[1, 0]]},
        features=datasets.Features(
            {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(tags)}
        ),
    ).save_to_disk(str(tmp_path / "ner"))
    source = LabelledSource(dataset=str(tmp_path / "ner"))
    examples = read_labelled(source, "ner", Columns(), field="f")
    assert (examples[0].words, examples[0].tags) == (("Anna", "left"), ("B-PER", "O"))
    with pytest.raises(CorpusError, match="has no column 'upos'"):
        read_labelled(source, "pos", Columns(tags="upos"), field="f")
    datasets.Dataset.from_list(
        [{"id": "1", "question": "?", "context": "ab", "answers": {"text": ["b"], "answer_start": [1]}}]
    ).save_to_disk(str(tmp_path / "qa"))
    examples = read_labelled(LabelledSource(dataset=str(tmp_path / "qa")), "qa", Columns(), field="f")
    assert examples[0].answers == (Answer(1, "b"),)
    with pytest.raises(CorpusError, match="cannot be loaded"):
        read_labelled(LabelledSource(dataset=str(tmp_path / "none")), "qa", Columns(), field="f")
