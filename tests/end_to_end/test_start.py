"""Weights before training: runs with a learning rate of 0 end where they start."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.end_to_end.test_balance import balance_values
from tests.end_to_end.test_pretrain import pretrain_recipe
from transformers import AutoModelForMaskedLM, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.models.features import output_layer
from polydistill.models.teacher_start import principal_rows
from polydistill.pipelines.run import run_recipe
from polydistill.tokenization.load import load_tokenizer
from polydistill.tokenization.union import unite

RANDOM = {"bias": "zero", "rows": "random", "attention": "random"}


def started(values, until="train", **changes):
    """The run of a recipe with changes, whose models stay as they start."""
    values = values | {"training": values["training"] | {"max_steps": 2, "learning_rate": 0.0}}
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return run_recipe(parse_recipe(values, overrides), until=until, update=True, show=lambda line: None)


def expected_bias(ids_of, size):
    """Log of frequencies, add-one-smoothed, where languages are drawn by probability.

    ids_of  language → the ids of its texts
    """
    counts = {name: np.bincount(np.concatenate(ids), minlength=size) for name, ids in ids_of.items()}
    shares = smoothed_probabilities({name: len(ids) for name, ids in ids_of.items()}, 0.7)
    total = sum(count.sum() for count in counts.values())
    mixed = sum(shares[name] * total * count / count.sum() for name, count in counts.items())
    return np.log((mixed + 1) / (mixed + 1).sum())


def read(run, language, tokenizer):
    """The ids of a language's training texts."""
    texts = Examples(run / "corpora" / language / "train.arrow").texts(slice(None))
    return [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=int) for text in texts]


def test_a_pretraining_starts_from_its_text(tmp_path, texts) -> None:
    values = pretrain_recipe(texts, tmp_path / "run")
    run = started(values)
    final = run / "student" / "final"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    ids = {language: read(run, language, tokenizer) for language in ("en", "ru")}
    bias = output_layer(model)[1].detach().numpy()
    np.testing.assert_allclose(bias, expected_bias(ids, len(bias)), atol=1e-4)
    mixed = model.model.layers[0].attn.Wo.weight @ model.model.layers[0].attn.Wqkv.weight[-32:]
    torch.testing.assert_close(mixed, torch.eye(32), atol=1e-5, rtol=0)
    rows = model.get_input_embeddings().weight.detach()
    plain = AutoModelForMaskedLM.from_pretrained(
        started(values | {"model": values["model"] | {"start": RANDOM}}) / "student" / "final"
    )
    assert not output_layer(plain)[1].any()
    assert float(rows.std()) > 2 * float(plain.get_input_embeddings().weight.std())
    mixed = plain.model.layers[0].attn.Wo.weight @ plain.model.layers[0].attn.Wqkv.weight[-32:]
    assert float(mixed.diagonal().mean()) < 0.1


def test_a_merge_of_random_weights_starts_from_the_copies_that_it_reads(tmp_path, recipe_values) -> None:
    """English has two teachers: pieces of both tokenizers count, or those of one where `use` names it."""
    run = started(recipe_values)
    record = json.loads((run / "student" / "final" / "initialisation.json").read_text("utf-8"))
    assert record["bias"]
    assert record["attentions"] == 1
    bias = output_layer(AutoModelForMaskedLM.from_pretrained(run / "student" / "final"))[1].detach()
    values = recipe_values | {
        "languages": {
            "en": recipe_values["languages"]["en"] | {"use": "en2"},
            "ru": recipe_values["languages"]["ru"],
        }
    }
    narrowed = output_layer(AutoModelForMaskedLM.from_pretrained(started(values) / "student" / "final"))[1]
    lowest = bias.min()
    # Pieces of `en` alone are never read in the second.
    assert int((narrowed == narrowed.min()).sum()) > int((bias == lowest).sum())
    final = started(values, **{"student.start": RANDOM}) / "student" / "final"
    assert not output_layer(AutoModelForMaskedLM.from_pretrained(final))[1].any()


def test_teachers_and_students_of_a_balance_start_from_their_own_text(tmp_path, texts) -> None:
    run = started(balance_values(texts, tmp_path / "run"))
    teachers = {
        name: AutoModelForMaskedLM.from_pretrained(run / "teachers" / name / "final") for name in ("en", "ru")
    }
    tokenizer = AutoTokenizer.from_pretrained(run / "teachers" / "ru" / "final")
    cyrillic = torch.tensor(
        [any("а" <= letter <= "я" for letter in tokenizer.decode([row])) for row in range(len(tokenizer))]
    )
    means = {name: output_layer(model)[1].detach()[: len(cyrillic)] for name, model in teachers.items()}
    assert float(means["ru"][cyrillic].mean()) > float(means["en"][cyrillic].mean()) + 1
    student = AutoModelForMaskedLM.from_pretrained(run / "students" / "HL" / "final")
    both = output_layer(student)[1].detach()[: len(cyrillic)]
    assert (
        float(means["en"][cyrillic].mean())
        < float(both[cyrillic].mean())
        < float(means["ru"][cyrillic].mean())
    )


def test_a_teacher_depends_on_the_masks_that_stop_it(tmp_path, texts) -> None:
    """Its best step is chosen at the evaluation's share of masked units."""
    values = balance_values(texts, tmp_path / "run")
    stamp = tmp_path / "run" / "teachers" / "ru" / "final" / "stamp.json"
    stamps = {}
    for probability in (0.15, 0.3):
        started(values | {"evaluation": values["evaluation"] | {"mask_probability": probability}})
        stamps[probability] = stamp.read_bytes()
    assert stamps[0.15] != stamps[0.3]


def test_an_extraction_of_random_weights_starts_from_its_text(extract_values) -> None:
    """One that copies layers keeps the teacher's bias, and does not depend on the start."""
    stride = started(extract_values) / "student" / "final"
    stamp = (stride / "stamp.json").read_bytes()
    started(extract_values | {"student": {"start": RANDOM}})
    assert (stride / "stamp.json").read_bytes() == stamp
    run = started(extract_values | {"student": {"init": "random"}})
    final = run / "student" / "final"
    bias = output_layer(AutoModelForMaskedLM.from_pretrained(final))[1].detach().numpy()
    ids = {"ru": read(run, "ru", AutoTokenizer.from_pretrained(final))}
    np.testing.assert_allclose(bias, expected_bias(ids, len(bias)), atol=1e-4)


def same_shape(final, teacher, ids, own):
    """Whether a student's rows have the angles of its teacher's, in the teacher's largest directions.

    ids  [size] the teacher's ids → the student's; own  [size] the pieces to compare
    """
    student = AutoModelForMaskedLM.from_pretrained(final).get_input_embeddings().weight.detach().numpy()
    ordinary = load_tokenizer(str(teacher)).ordinary_ids
    rows = AutoModelForMaskedLM.from_pretrained(teacher).get_input_embeddings().weight.detach().numpy()
    chosen = own[ordinary]
    made = student[ids[ordinary[chosen]]]
    made = made / np.linalg.norm(made, axis=1, keepdims=True)
    wanted = principal_rows(rows[ordinary], student.shape[1])[chosen]
    return np.allclose(made @ made.T, wanted @ wanted.T, atol=1e-3)


def test_a_narrow_student_of_a_merge_has_its_teachers_rows(tmp_path, recipe_values) -> None:
    """At half of their width; pieces of one teacher alone keep their angles."""
    narrow = {"student.config.hidden_size": 16}
    names = list(recipe_values["teachers"])
    paths = recipe_values["teachers"]
    maps = dict(zip(names, unite([load_tokenizer(paths[name]) for name in names]).maps, strict=True))
    own = ~np.isin(maps["ru"], np.concatenate([maps[name] for name in names if name != "ru"]))
    final = started(recipe_values, **narrow, **{"student.start.rows": "teachers"}) / "student" / "final"
    assert own.sum() > 100
    assert same_shape(final, paths["ru"], maps["ru"], own)
    stamp = (final / "stamp.json").read_bytes()
    started(recipe_values, **narrow)
    assert (final / "stamp.json").read_bytes() != stamp
    assert not same_shape(final, paths["ru"], maps["ru"], own), "`both` adds rows from the text"


def test_an_extraction_of_random_weights_has_its_teachers_rows(extract_values) -> None:
    values = extract_values | {"student": {"init": "random", "start": {"rows": "teachers"}}}
    run = started(values, **{"trim.when": "none"})
    everything = np.arange(load_tokenizer(extract_values["teacher"]).size)
    assert same_shape(run / "student" / "final", extract_values["teacher"], everything, everything >= 0)


@pytest.mark.parametrize("change", [{"rows": "random"}, {"bias": "zero"}, {"attention": "random"}])
def test_another_start_is_another_model(tmp_path, texts, change) -> None:
    values = pretrain_recipe(texts, Path(tmp_path / "run"))
    stamp = started(values) / "student" / "final" / "stamp.json"
    before = stamp.read_bytes()
    started(values)
    assert stamp.read_bytes() == before
    started(values | {"model": values["model"] | {"start": change}})
    assert stamp.read_bytes() != before
