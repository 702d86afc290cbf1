"""A merge whose student has a vocabulary of its own, from the same stores."""

import io
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from polydistill.cli import app
from polydistill.config.load import parse_recipe
from polydistill.config.shared import Evaluation, Masking
from polydistill.corpora.examples import Examples
from polydistill.errors import PolydistillError, RunFolderError, TokenizerError
from polydistill.evaluation.words import difference, measure_words
from polydistill.masking import mask_texts
from polydistill.pipelines.grid import words as grid_words
from polydistill.pipelines.merge import student
from polydistill.pipelines.run import run_recipe
from polydistill.reports.grid_page import NATS, gather_grid
from polydistill.reports.merge_page import gather_merge
from polydistill.reports.tables import results_table
from polydistill.store.reader import Store
from polydistill.tokenization.load import load_tokenizer
from polydistill.tools.compare_words import compare_words
from polydistill.tools.verify import verify_run


def run(values, output, *changes, until="report"):
    lines = []
    recipe = parse_recipe(values | {"output": str(output)}, list(changes))
    return run_recipe(recipe, until=until, show=lines.append), lines


LEARNED = ("student.vocabulary=learned", "student.tokenizer.size=500")


def test_a_vocabulary_and_its_labels_are_made_once_for_related_runs(recipe_values, tmp_path) -> None:
    """Seeds and kinds of labels change neither: the tokenizer is copied, the labels are named."""
    first, _ = run(recipe_values, tmp_path / "first", *LEARNED, "seed=3")
    values = recipe_values | {"reuse": [str(first)]}
    gold, lines = run(values, tmp_path / "gold", *LEARNED, "seed=3", "distillation.labels=gold")
    timing = json.loads((gold / "timing.json").read_text("utf-8"))
    assert "train" in timing
    assert not {"tokenizer", "labels/en"} & timing.keys()
    assert not any(line.startswith(("tokenizer:", "labels/")) for line in lines)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocabulary.json"):
        assert (gold / "tokenizer" / name).read_bytes() == (first / "tokenizer" / name).read_bytes()
    assert not (gold / "labels").exists()
    assert gather_merge(gold)["labels"] == gather_merge(first)["labels"] != {}
    # It is the run's own copy: another vocabulary is not taken for it.
    other, _ = run(values, tmp_path / "other", LEARNED[0], "student.tokenizer.size=450", until="tokenizer")
    assert "tokenizer" in json.loads((other / "timing.json").read_text("utf-8"))
    assert (other / "tokenizer" / "tokenizer.json").read_bytes() != (
        first / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_one_store_serves_every_vocabulary(tmp_path, recipe_values, monkeypatch) -> None:
    """A learned WordPiece, a trimmed union and a tokenizer's folder, without scoring again."""
    union, _ = run(recipe_values, tmp_path / "union", until="score")
    values = recipe_values | {"reuse": [str(union)]}
    learned, lines = run(values, tmp_path / "learned", *LEARNED)
    assert not list((learned / "store").glob("*/*/manifest.json")), "nothing is scored again"
    assert any("candidates" in line for line in lines)
    final = learned / "student" / "final"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    assert model.config.vocab_size == len(tokenizer) == 500
    assert not (final / "tokenizer").exists()
    with torch.no_grad():
        logits = model(**tokenizer("the [MASK] of", return_tensors="pt")).logits
    assert logits.shape[-1] == 500
    rows = json.loads((learned / "evaluation" / "mlm.json").read_text("utf-8"))["languages"]["en"]
    held_out = [row for row in rows if row["text"] == "held_out"]
    assert [(row["model"], row["tokenizer"]) for row in held_out] == [
        ("student", "student"),
        ("en", "own"),
        ("en2", "own"),
    ]
    # The same words are hidden from all.
    assert len({row["characters"] for row in held_out}) == 1
    for row in held_out:
        expected = row["loss"] * row["num_masked"] / row["characters"]
        assert row["nats_per_character"] == pytest.approx(expected)
    page = (learned / "report" / "index.html").read_text("utf-8")
    assert "nats per character" in page
    assert "with candidates" in page
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(results_table(learned))
    # Where a caption breaks depends on the table's width.
    printed = " ".join(console.export_text().split())
    assert "they compare no models" in printed
    assert "MRR*" not in printed
    for row in held_out:
        assert f"{row['nats_per_character']:.3f}" in printed
    for name in ("en/en", "en/en2", "ru/ru"):
        labels, stored = Store(learned / "labels" / name), Store(union / "store" / name)
        assert 0.95 * len(stored) <= len(labels) <= len(stored)
        assert labels.identity["vocabulary_size"] == 500

    # Labels of the student's own are read with the run's tokenizer, and are no teacher's store.
    shown = CliRunner().invoke(app, ["store", "inspect", str(learned / "labels" / "en" / "en")])
    assert shown.exit_code == 0, shown.output
    assert "[MASK]" in shown.output
    refused = CliRunner().invoke(
        app, ["store", "inspect", str(learned), "--vocabulary", str(learned / "tokenizer")]
    )
    assert "holds no store" in str(refused.exception)

    trimmed, _ = run(values, tmp_path / "trimmed", "student.tokenizer.min_document_share=0.05", until="train")
    vocabulary = json.loads((trimmed / "tokenizer" / "vocabulary.json").read_text("utf-8"))
    whole = json.loads((union / "tokenizer" / "vocabulary.json").read_text("utf-8"))
    assert vocabulary["size"] < 0.8 * whole["size"]
    assert all(row["unknown_share"] < 0.02 for row in vocabulary["segmentation"].values())

    named, _ = run(values, tmp_path / "named", f"student.vocabulary={learned / 'tokenizer'}", until="score")
    first = Store(learned / "labels" / "ru" / "ru").row(0)
    second = Store(named / "labels" / "ru" / "ru").row(0)
    assert asdict(first).keys() == asdict(second).keys()
    assert np.array_equal(first.top_ids, second.top_ids)


def test_students_of_different_vocabularies_are_compared_by_hidden_words(tmp_path, recipe_values) -> None:
    """The same words for all, so that a student is no better than itself."""
    union, _ = run(recipe_values, tmp_path / "union", until="train")
    values = recipe_values | {"reuse": [str(union)]}
    learned, _ = run(values, tmp_path / "learned", *LEARNED, until="train")
    shown = CliRunner().invoke(app, ["compare", "--words", str(union), str(learned)])
    assert shown.exit_code == 0, shown.output
    assert "en, held_out:" in shown.output
    corpus = Examples(union / "corpora" / "en" / "held_out.arrow")
    first, second, again = measure_words(
        [union, learned, union], "en", corpus, Evaluation(max_examples=30, precision="float32")
    )
    assert first.characters.tolist() == second.characters.tolist()
    np.testing.assert_allclose(first.nats, again.nats, rtol=1e-4)
    value = difference(second, first)
    assert value.value == pytest.approx(second.per_character - first.per_character)
    assert value.low < value.value < value.high
    assert difference(again, first).value == pytest.approx(0, abs=1e-4)
    wrong, _ = run(recipe_values, tmp_path / "wrong", "corpora.held_out_share=0.2", until="train")
    with pytest.raises(RunFolderError, match="other corpora"):
        compare_words([union, wrong], None)
    with pytest.raises(RunFolderError, match="has no student"):
        compare_words([tmp_path], None)


def test_hidden_words_are_those_that_every_vocabulary_knows(tmp_path, recipe_values) -> None:
    """A word that one tokenizer reads as unknown is hidden from no student, and its example stays."""
    learned, _ = run(recipe_values, tmp_path / "learned", *LEARNED, until="train")
    other = tmp_path / "other"
    shutil.copytree(learned, other)
    path = other / "student" / "final" / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        f"[unused{index}]" if "h" in piece else piece: index for piece, index in vocabulary.items()
    }
    path.write_text(json.dumps(tokenizer), "utf-8")
    corpus = Examples(learned / "corpora" / "en" / "held_out.arrow")
    settings = Evaluation(max_examples=30, precision="float32")
    (alone,) = measure_words([learned], "en", corpus, settings)
    first, second = measure_words([learned, other], "en", corpus, settings)
    assert len(first.nats) == len(alone.nats)
    assert first.characters.tolist() == second.characters.tolist()
    assert first.characters.sum() < alone.characters.sum()


def test_a_grid_compares_vocabularies_by_hidden_words(tmp_path, recipe_values, monkeypatch) -> None:
    base = {key: value for key, value in recipe_values.items() if key not in ("name", "output")}
    grid = {
        "recipe": "grid",
        "name": "vocabularies",
        "output": str(tmp_path / "grid"),
        "seeds": [0, 1],
        "base": base | {"evaluation": {"max_examples": 30, "num_samples": 1, "precision": "float32"}},
        "runs": {"union": {}, "learned": {"student": {"vocabulary": "learned", "tokenizer": {"size": 500}}}},
    }
    folder, _ = run(grid, tmp_path / "grid")
    table = json.loads((folder / "evaluation" / "grid.json").read_text("utf-8"))
    entries = {entry["place"]: entry for entry in table["summary"]["rows"] if entry["measure"] == NATS}
    assert set(entries) == {"en, held_out", "ru, held_out", "all languages, held_out"}
    settings, seeds = Evaluation(max_examples=30, precision="float32"), (0, 1)
    # All runs together hide the words that none of their pieces cut across.
    names = [f"{name}-seed{seed}" for seed in seeds for name in ("union", "learned")]
    by_hand = {}
    for language in ("en", "ru"):
        corpus = Examples(folder / "union-seed0" / "corpora" / language / "held_out.arrow")
        words = measure_words([folder / name for name in names], language, corpus, settings)
        by_hand[language] = dict(zip(names, words, strict=True))
        for name in ("union", "learned"):
            mean = np.mean([by_hand[language][f"{name}-seed{seed}"].per_character for seed in seeds])
            assert entries[f"{language}, held_out"]["cells"][name]["value"] == pytest.approx(mean, rel=1e-4)
    both = entries["all languages, held_out"]
    for name in ("union", "learned"):
        sums = [
            sum(by_hand[language][f"{name}-seed{seed}"].nats.sum() for language in by_hand)
            / sum(by_hand[language][f"{name}-seed{seed}"].characters.sum() for language in by_hand)
            for seed in seeds
        ]
        assert both["cells"][name]["value"] == pytest.approx(np.mean(sums), rel=1e-4)
    cell = both["differences"]["learned"]
    assert cell["value"] == pytest.approx(both["cells"]["learned"]["value"] - both["cells"]["union"]["value"])
    assert cell["knows"] == "seeds and items"
    # Fewer nats are better.
    assert cell["verdict"] in ({"better", "not settled"} if cell["value"] < 0 else {"worse", "not settled"})
    page = gather_grid(folder)
    (row,) = [row for row in page["places"] if row["place"] == both["place"] and row["measure"] == NATS]
    assert row["best"] == min(each["value"] for each in row["cells"].values())
    # What was measured is not measured again.
    monkeypatch.setattr(grid_words, "measure_words", None)
    _, said = run(grid, tmp_path / "grid")
    assert not any("hidden words" in line for line in said)
    assert any(line.endswith("words: 1 files, whole") for line in verify_run(folder))
    (folder / "words" / "stamp.json").unlink()
    with pytest.raises(RunFolderError, match="words"):
        verify_run(folder)


def test_nats_of_hidden_words_are_those_of_a_plain_forward_pass(tmp_path, recipe_values) -> None:
    """Word by word: every piece of a hidden word is masked, and its characters are counted once."""
    learned, _ = run(recipe_values, tmp_path / "learned", *LEARNED, until="train")
    corpus = Examples(learned / "corpora" / "ru" / "held_out.arrow")
    (words,) = measure_words([learned], "ru", corpus, Evaluation(max_examples=20, precision="float32"))
    final = learned / "student" / "final"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    own = load_tokenizer(str(final))
    rows = corpus.first(20)
    texts, ids = corpus.texts(rows), [int(corpus.ids[row]) for row in rows]
    masked = mask_texts(
        texts,
        ids,
        own,
        max_length=64,
        masking=Masking(probability=0.15, mask_share=1, random_share=0),
        seed=1_000_003,
    )
    for text, each, nats, characters in zip(texts, masked, words.nats, words.characters, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor(each.input_ids)[None]).logits[0].log_softmax(-1)
        assert -float(logits[each.positions, each.gold].sum()) == pytest.approx(nats, rel=1e-4, abs=1e-4)
        assert all(each.input_ids[place] == tokenizer.mask_token_id for place in each.positions)
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        covered = {place for index in each.positions for place in range(*offsets[index])}
        assert len(covered) == characters


def test_a_students_rows_are_composed_of_its_teachers_pieces(tmp_path, recipe_values, teachers) -> None:
    """From the encoder of a teacher, with a learning rate of 0: whole pieces copied, others means."""
    values = recipe_values | {"student": {"init": "teachers", "encoder_from": "en"}}
    values |= {"training": values["training"] | {"max_steps": 1, "learning_rate": 0.0}}
    larger = ("student.vocabulary=learned", "student.tokenizer.size=1000")
    path, _ = run(values, tmp_path / "run", *larger, "student.start.bias=zero", until="train")
    final = path / "student" / "final"
    rows = AutoModelForMaskedLM.from_pretrained(final).get_input_embeddings().weight.detach()
    own = AutoTokenizer.from_pretrained(final)
    teacher = load_tokenizer(str(teachers["en"]), name="en")
    source = AutoModelForMaskedLM.from_pretrained(teachers["en"]).get_input_embeddings().weight.detach()
    other = load_tokenizer(str(teachers["en2"]), name="en2")
    checked = {1: 0, 2: 0}
    for piece, index in own.get_vocab().items():
        if piece.startswith("##") or not piece.isascii() or not piece.isalpha():
            continue
        theirs, others = (t.backend.encode(piece, add_special_tokens=False).ids for t in (teacher, other))
        # The teacher with the fewest pieces, the encoder's first.
        if len(theirs) <= min(2, len(others)) and teacher.special_ids["unk"] not in theirs:
            torch.testing.assert_close(rows[index], source[theirs].mean(0), msg=piece)
            checked[len(theirs)] += 1
    assert checked[1] > 20
    assert checked[2] > 0
    record = json.loads((final / "initialisation.json").read_text("utf-8"))
    assert record["rows"]["en"]["copied"] > 20
    assert set(record["rows"]) == {"en", "en2", "ru"}
    torch.testing.assert_close(rows[own.mask_token_id], source[teacher.special_ids["mask"]])


def test_text_after_the_teachers_is_read_by_the_students_tokenizer(
    tmp_path, recipe_values, monkeypatch
) -> None:
    seen = []
    kept = student.training_data

    def training_data(merge):
        seen.append(kept(merge)[0])
        return kept(merge)

    monkeypatch.setattr(student, "training_data", training_data)
    monkeypatch.setattr("polydistill.pipelines.stages.scoring.MIN_SCORED", 1)
    run(recipe_values, tmp_path / "run", *LEARNED, "distillation.annealing_share=0.5", until="train")
    stored, *texts = seen[0]["en"].parts
    assert len(texts) == 1, "two teachers, one tokenizer"
    assert texts[0].mapping is None
    assert texts[0].tokenizer.size == 500
    assert len(stored) > 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["student.vocabulary=learned", "student.tokenizer.size=90000"], TokenizerError, "the text fills"),
        (["student.vocabulary=nowhere"], TokenizerError, "student.vocabulary"),
        (
            ["student.vocabulary=learned", "student.tokenizer.min_document_share=0.1"],
            PolydistillError,
            "trims a union",
        ),
        (["student.tokenizer.strip_accents=[Latin]"], PolydistillError, "scripts are for"),
    ],
)
def test_vocabularies_that_cannot_be(tmp_path, recipe_values, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        run(recipe_values, tmp_path / "run", *changes, until="tokenizer")
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_a_vocabulary_that_cannot_spell_a_language_is_refused(tmp_path, recipe_values, teachers) -> None:
    """An English teacher's tokenizer, for Russian."""
    with pytest.raises(TokenizerError, match="language ru unknown"):
        run(recipe_values, tmp_path / "run", f"student.vocabulary={teachers['en']}", until="tokenizer")
