"""A store's labels in another vocabulary."""

import math

import numpy as np
import pytest
from tests.conftest import bundled_lines
from typer.testing import CliRunner

from polydistill.cli import app
from polydistill.config.load import parse_recipe
from polydistill.errors import StoreError
from polydistill.pipelines.run import run_recipe
from polydistill.scoring.crossing import Crossing, cross
from polydistill.store.reader import Store, StoreRow
from polydistill.tokenization.load import load_tokenizer, load_vocabulary
from polydistill.tools.crossing import corpus_of, learn_vocabulary


@pytest.fixture
def scored(recipe_values):
    """A run with stores of three teachers."""
    return run_recipe(
        parse_recipe(recipe_values, ["masking.probability=0.3"]), until="score", show=lambda line: None
    )


def rows_of(store, limit=200):
    examples = corpus_of(store)
    rows = [store.row(index) for index in range(min(limit, len(store)))]
    return rows, examples.texts(examples.rows_of([row.example for row in rows]))


def test_labels_in_the_teachers_own_vocabulary_are_unchanged(scored, teachers) -> None:
    """Pieces that no text reaches aside: `##.` is read as `.`."""
    tokenizer = load_tokenizer(str(teachers["en"]), name="en")
    crossing = Crossing.prepare(tokenizer, tokenizer, (32, 32))
    store = Store(scored / "store" / "en" / "en")
    rows, texts = rows_of(store)
    made, coverage = cross(rows, texts, crossing, seed=0)
    itself = crossing.spellings.ids[:, 0] == np.arange(tokenizer.size)
    assert np.mean(itself[tokenizer.ordinary_ids]) > 0.9
    assert len(made) == len(rows)
    for row, example in zip(rows, made, strict=True):
        assert example.example == row.example
        assert example.positions.tolist() == row.positions.tolist()
        assert example.gold.tolist() == row.gold.tolist()
        np.testing.assert_allclose(example.gold_logprobs, row.gold_logprobs.astype(np.float32), rtol=1e-6)
        kept = itself[row.top_ids]
        assert np.array_equal(example.top_ids[kept], row.top_ids[kept])
        assert np.array_equal(example.top_logprobs[kept], row.top_logprobs[kept].astype(np.float32))
        shown = row.input_ids[row.positions]
        alike = (shown == tokenizer.special_ids["mask"]) | (shown == row.gold)
        assert np.array_equal(example.input_ids[row.positions][alike], shown[alike])
    assert coverage.candidates == coverage.positions == sum(len(row.positions) for row in rows)
    assert 0.97 < coverage.expressible / coverage.stored <= 1.0 + 1e-6
    assert coverage.teacher_tokens == coverage.student_tokens


def written(text, tokenizer, hidden, candidates, probability=0.5):
    """A store's row: the words at `hidden` of a text masked, with candidates as strings."""
    ids = np.array(tokenizer.backend.encode(text).ids)
    gold = ids[hidden]
    shown = ids.copy()
    shown[hidden] = tokenizer.special_ids["mask"]
    top = np.array([[tokenizer.backend.token_to_id(c) for c in row] for row in candidates])
    return StoreRow(
        7,
        0.0,
        shown.astype(np.uint16),
        np.array(hidden, dtype=np.uint8),
        gold.astype(np.uint16),
        np.full(len(hidden), math.log(probability), dtype=np.float16),
        top.astype(np.uint16),
        np.log(np.array([[0.4, 0.3, 0.2]] * len(hidden))).astype(np.float16),
    )


def test_candidates_go_where_the_student_writes_them(tmp_path) -> None:
    """One piece of the teacher's: candidates of as many pieces as the text has. Several: the text alone."""
    from tests.unit.tokenization.test_crossing import wordpiece

    teacher = wordpiece(["token", "parser", "cat", "dog", "the", "un", "##seen", "of"])
    student = wordpiece(["tok", "##en", "par", "##ser", "cat", "dog", "the", "unseen", "of"])
    for tokenizer in (teacher, student):
        tokenizer.backend.post_processor = None
    crossing = Crossing.prepare(teacher, student, (64, 64))
    id_of = student.backend.token_to_id

    def crossed(text, hidden, candidates):
        (example,), coverage = cross([written(text, teacher, hidden, candidates)], [text], crossing, seed=0)
        return example, coverage

    example, coverage = crossed("the token of", [1], [["parser", "cat", "token"]])
    assert example.positions.tolist() == [1, 2]
    assert example.gold.tolist() == [id_of("tok"), id_of("##en")]
    assert example.input_ids.tolist() == [id_of("the"), 4, 4, id_of("of")]
    probabilities = np.exp(example.top_logprobs)
    assert example.top_ids[:, [0, 2]].tolist() == [
        [id_of("par"), id_of("tok")],
        [id_of("##ser"), id_of("##en")],
    ]
    np.testing.assert_allclose(probabilities, [[0.4, 0, 0.2]] * 2, atol=1e-3)
    np.testing.assert_allclose(np.exp(example.gold_logprobs.sum()), 0.5, atol=1e-3)
    assert (coverage.candidates, coverage.likelihood, coverage.gold) == (2, 0, 0)
    np.testing.assert_allclose(coverage.expressible / coverage.stored, 0.6 / 0.9, atol=1e-3)

    example, coverage = crossed("the unseen cat", [1, 2], [["cat", "dog", "the"]] * 2)
    assert example.positions.tolist() == [1]
    assert example.top_ids[0, 0] == id_of("unseen")
    np.testing.assert_allclose(np.exp(example.top_logprobs[0]), [0.25, 0, 0], atol=1e-3)
    assert (coverage.candidates, coverage.likelihood, coverage.gold) == (0, 1, 0)
    assert coverage.expressible == 0

    # Half of the word is masked: the student hides all of it, and learns it from the text.
    example, coverage = crossed("the unseen cat", [2], [["cat", "dog", "the"]])
    assert example.positions.tolist() == [1]
    np.testing.assert_allclose(np.exp(example.top_logprobs[0]), [1, 0, 0], atol=1e-3)
    assert (coverage.candidates, coverage.likelihood, coverage.gold) == (0, 0, 1)

    # No candidate of one piece.
    example, coverage = crossed("the cat of", [1], [["token", "parser", "un"]])
    assert (coverage.candidates, coverage.gold) == (0, 1)
    np.testing.assert_allclose(np.exp(example.top_logprobs[0]), [1, 0, 0], atol=1e-3)


def test_what_the_teacher_saw_is_what_the_student_sees(scored, teachers) -> None:
    """Masked, kept or replaced; and a text of another tokenizer is refused."""
    teacher = load_tokenizer(str(teachers["en"]), name="en")
    student = load_tokenizer(str(teachers["en2"]), name="en2")
    store = Store(scored / "store" / "en" / "en")
    rows, texts = rows_of(store)
    made, _ = cross(rows, texts, Crossing.prepare(teacher, student, (32, 64)), seed=0)
    ids = {
        example.example: student.backend.encode(text).ids for example, text in zip(made, texts, strict=True)
    }
    counts = np.zeros(3)
    for example in made:
        whole = np.array(ids[example.example])[: len(example.input_ids)]
        others = np.setdiff1d(np.arange(len(example.input_ids)), example.positions)
        assert np.array_equal(example.input_ids[others], whole[others])
        assert np.array_equal(example.gold, whole[example.positions])
        shown = example.input_ids[example.positions]
        masked, kept = shown == student.special_ids["mask"], shown == example.gold
        counts += [masked.sum(), (kept & ~masked).sum(), (~masked & ~kept).sum()]
    np.testing.assert_allclose(counts / counts.sum(), [0.8, 0.1, 0.1], atol=0.05)
    wrong = Crossing.prepare(student, teacher, (32, 64))
    with pytest.raises(StoreError, match="other tokens"):
        cross(rows, texts, wrong, seed=0)


def test_the_command_shows_what_a_vocabulary_can_say(scored, texts, tmp_path) -> None:
    lines = tmp_path / "en.txt"
    lines.write_text("\n".join(bundled_lines("en", 800)), encoding="utf-8")
    runner = CliRunner()
    made = runner.invoke(
        app,
        [
            "vocab",
            "learn",
            "--text",
            f"en={lines}",
            "--text",
            f"ru={texts['ru']}",
            "--output",
            str(tmp_path / "v"),
            "--size",
            "500",
        ],
    )
    assert made.exit_code == 0, made.output
    assert "500 pieces" in made.output
    loaded = load_vocabulary(str(tmp_path / "v"), field="v")
    assert loaded.size == 500
    assert loaded.lowercases
    shown = runner.invoke(app, ["store", "inspect", str(scored), "--vocabulary", str(tmp_path / "v")])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("%") == 3 * 4
    assert "[MASK]" in shown.output
    with pytest.raises(Exception, match="fills"):
        learn_vocabulary({"en": [str(lines)]}, tmp_path / "w", None, size=90_000)
    (scored / "corpora" / "ru" / "train.arrow").unlink()
    with pytest.raises(StoreError, match="no text beside it"):
        runner.invoke(
            app,
            ["store", "inspect", str(scored), "--vocabulary", str(tmp_path / "v")],
            catch_exceptions=False,
        )
