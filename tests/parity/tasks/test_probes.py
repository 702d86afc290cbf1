"""Probes against scikit-learn on the same features, word features against the plain model, scores by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.errors import CorpusError, RecipeError
from polydistill.models.load import load_masked_lm
from polydistill.pipelines.run import run_recipe
from polydistill.tasks.probes import fit_probe, score_tags, summarise
from polydistill.tasks.words import split_into_windows, word_features
from polydistill.tokenization.load import load_tokenizer


def made_words(number: int, seed: int):
    """Features of 40 numbers, some large or constant, and classes that depend on them linearly with noise."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(number, 40)) * np.geomspace(0.01, 30, 40) + np.linspace(-5, 50, 40)
    weight = np.random.default_rng(99).normal(size=(40, 5)) / np.geomspace(0.01, 30, 40)[:, None]
    scores = (features - np.linspace(-5, 50, 40)) @ weight + draw.gumbel(size=(number, 5)) * 2
    # A feature that is the same for every word.
    features[:, 7] = 3.0
    return features.astype(np.float16), scores.argmax(-1)


def test_a_probe_is_as_good_as_scikit_learn_s() -> None:
    features, classes = made_words(6000, 1)
    unseen, expected = made_words(4000, 2)
    scaler = StandardScaler().fit(features.astype(np.float64))
    oracle = LogisticRegression(C=1e4, max_iter=2000).fit(
        scaler.transform(features.astype(np.float64)), classes
    )
    known = float((oracle.predict(scaler.transform(unseen.astype(np.float64))) == expected).mean())
    assert known > 0.6
    for seed in range(3):
        probe = fit_probe(features, classes, 5, seed=seed)
        assert float((probe.predict(unseen) == expected).mean()) == pytest.approx(known, abs=0.01)
        agree = probe.predict(unseen) == oracle.predict(scaler.transform(unseen.astype(np.float64)))
        assert agree.mean() > 0.96
    again = fit_probe(features, classes, 5, seed=2)
    assert np.array_equal(again.weight, probe.weight)
    assert not np.array_equal(again.weight, fit_probe(features, classes, 5, seed=1).weight)


def test_features_are_the_model_s_at_first_tokens(teachers) -> None:
    path = str(teachers["en"])
    sentences = [["The", "extraordinarily", "long", "word", "."], ["No"], ["a", "\u200b", "b"], ["in"] * 100]
    tokenizer = load_tokenizer(path)
    windows = split_into_windows(sentences, tokenizer, 24)
    assert [word for w in windows for word in ((w.sentence, i) for i in w.words)] == [
        (index, place) for index, words in enumerate(sentences) for place in range(len(words))
    ]
    assert max(len(window.ids) for window in windows) <= 24
    assert sum(window.sentence == 3 for window in windows) > 4
    model = load_masked_lm(path)
    features = dict(word_features(model.base_model, windows, 0, batch_tokens=64, dtype=torch.float32))
    plain, fast = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    for index in range(2):
        encoded = fast(sentences[index], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            hidden = plain(**encoded).last_hidden_state[0].numpy()
        words = encoded.word_ids()
        firsts = [words.index(place) for place in range(len(sentences[index]))]
        np.testing.assert_allclose(features[index], hidden[firsts], atol=1e-5)
    assert len(fast("extraordinarily", add_special_tokens=False)["input_ids"]) > 1
    # The zero-width space gives no token: it is read as unknown, between its neighbours.
    strange = windows[2]
    assert strange.ids[strange.firsts[1]] == tokenizer.special_ids["unk"]
    assert strange.firsts == [1, 2, 3]


def test_scores_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "O"]]
    predicted = [["B-PER", "O", "O", "O"], ["B-LOC", "O"]]
    scores = score_tags(gold, predicted, "ner")
    assert scores["accuracy"] == pytest.approx(5 / 6)
    # O: 3 of 4 predicted, 3 of 3 found: 6/7; B-PER 1, B-LOC 1, I-PER 0.
    assert scores["macro_f1"] == pytest.approx((6 / 7 + 1 + 1 + 0) / 4)
    # Of the entities (PER 0-1, LOC 0), one of two is found, and one of two predictions is right.
    assert scores["entity_f1"] == pytest.approx(0.5)
    assert score_tags(gold, predicted, "pos") == {"accuracy": pytest.approx(5 / 6)}


def test_averages_by_hand() -> None:
    scores = {
        "a": {"a": {"f": [1.0, 0.8]}, "b": {"f": [0.4, 0.2]}, "c": {"f": [0.1, 0.1]}},
        "b": {"a": {"f": [0.6, 0.6]}, "b": {"f": [0.5, 0.5]}, "c": {"f": [0.3, 0.3]}},
        "c": {"a": {"f": [0.2, 0.0]}, "b": {"f": [0.0, 0.0]}, "c": {"f": [0.9, 0.8]}},
    }
    averages = summarise(scores, "f", {"low": ["b", "c"]})
    assert averages["all"]["in_language"]["mean"] == pytest.approx((0.9 + 0.5 + 0.85) / 3)
    assert averages["all"]["in_language"]["deviation"] == pytest.approx(np.std([0.8, 0.7], ddof=1))
    assert averages["low"]["in_language"]["mean"] == pytest.approx((0.5 + 0.85) / 2)
    # To b from a and c, to c from a and b.
    assert averages["low"]["zero_shot"]["mean"] == pytest.approx((0.3 + 0.0 + 0.1 + 0.3) / 4)
    assert summarise({"a": scores["a"]}, "f", {})["all"]["zero_shot"] == {}


@pytest.fixture
def probe_values(teachers, tmp_path) -> dict:
    """Words tagged by their first letter, in two languages that share tags."""
    tasks: dict = {"pos": {}, "ner": {}}
    for language, text in (("en", "apple bear about cat can bed"), ("ru", "арбуз бык ах кот он бег")):
        for task in tasks:
            data = {}
            for split, number in (("train", 40), ("test", 10)):
                draw = np.random.default_rng(number)
                lines = []
                for _ in range(number):
                    for word in draw.choice(text.split(), 6):
                        tag = {"a": "B-A", "а": "B-A", "b": "B-B", "б": "B-B"}.get(word[0], "O")
                        lines.append(f"{word}\t{tag}")
                    lines.append("")
                path = tmp_path / f"{task}-{language}-{split}.bio"
                path.write_text("\n".join(lines) + "\n", "utf-8")
                data[split] = str(path)
            tasks[task][language] = data
    return {
        "recipe": "probe",
        "name": "p",
        "output": str(tmp_path / "run"),
        "tasks": tasks,
        "groups": {"low": ["ru"]},
        "models": {"english": str(teachers["en"]), "russian": str(teachers["ru"])},
        "probing": {"num_seeds": 2, "batch_size": 32, "precision": "float32"},
    }


def test_a_probe_run_finds_what_can_be_found_and_does_nothing_twice(probe_values) -> None:
    said: list[str] = []
    folder = run_recipe(parse_recipe(probe_values), show=said.append)
    results = json.loads((folder / "evaluation" / "probes.json").read_text("utf-8"))
    scores = results["scores"]["ner"]
    # A tag depends on the word alone; a model's features know the word if its vocabulary does.
    assert min(scores["english"]["en"]["en"]["macro_f1"]) > 0.95
    assert min(scores["russian"]["ru"]["ru"]["entity_f1"]) > 0.95
    assert max(scores["english"]["ru"]["ru"]["macro_f1"]) < min(scores["russian"]["ru"]["ru"]["macro_f1"])
    assert len(said) == 9
    across = [
        seeds
        for sources in scores.values()
        for row in sources.values()
        for m in row.values()
        for seeds in m.values()
    ]
    assert any(len(set(seeds)) > 1 for seeds in across), "each probe has a seed of its own"
    assert set(results["summary"]["pos"]["accuracy"]["english"]) == {"all", "low"}
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert page.count("<svg") == 3 * 2
    assert f"{results['summary']['ner']['entity_f1']['russian']['low']['zero_shot']['mean']:.3f} ±" in page
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".npy",)}
    assert len(before) == 16
    said.clear()
    run_recipe(parse_recipe(probe_values), show=said.append)
    assert said == [f"report: {folder}/report/index.html"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # Another run reuses them if its recipe names this one.
    other = probe_values | {"output": str(folder.with_name("other")), "reuse": [str(folder)]}
    assert not list(run_recipe(parse_recipe(other), show=said.append).rglob("*.npy"))
    said.clear()
    # More probes need no new features.
    more = probe_values | {"probing": probe_values["probing"] | {"num_seeds": 3}}
    run_recipe(parse_recipe(more), show=said.append, update=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    results = json.loads((folder / "evaluation" / "probes.json").read_text("utf-8"))
    assert len(results["scores"]["pos"]["english"]["en"]["ru"]["accuracy"]) == 3
    # With other text, what depends on it is repeated, and nothing else.
    said.clear()
    path = Path(probe_values["tasks"]["pos"]["ru"]["test"])
    path.write_text(path.read_text("utf-8") + "арбуз\tO\n", "utf-8")
    run_recipe(parse_recipe(more), show=said.append, update=True)
    assert [line.split(":")[0] for line in said] == ["pos/english"] * 2 + ["pos/russian"] * 2 + ["report"]


def test_bad_probes_are_refused_before_anything_is_written(probe_values, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"groups.low.*'xx'"):
        parse_recipe(probe_values | {"groups": {"low": ["xx"]}})
    with pytest.raises(RecipeError, match="all"):
        parse_recipe(probe_values | {"groups": {"all": ["ru"]}})
    missing = {"pos": {"en": {"train": "nowhere.conllu", "test": "nowhere.conllu"}}}
    with pytest.raises(CorpusError, match=r"tasks.pos.en.train 'nowhere.conllu'"):
        run_recipe(parse_recipe(probe_values | {"tasks": missing, "groups": {}}))
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    with pytest.raises(RecipeError, match="stage"):
        run_recipe(parse_recipe(probe_values), until="train")


def test_a_plan_says_what_probes_cannot_tell(probe_values, teachers, tmp_path) -> None:
    """An English vocabulary has no Russian word; a test tag that training lacks cannot be predicted."""
    from rich.console import Console

    from polydistill.pipelines.plan import plan_recipe

    path = tmp_path / "odd.bio"
    path.write_text("apple\tB-A\nbear\tB-C\n", "utf-8")
    probe_values["tasks"]["pos"]["en"]["test"] = str(path)
    console = Console(record=True, width=120)
    conflicts = plan_recipe(parse_recipe(probe_values), [], console)
    said = [conflict.what for conflict in conflicts]
    assert any("B-C are in the test file only" in what and "(1 words)" in what for what in said)
    assert any("english reads" in what and "of the words of ru as unknown" in what for what in said)
    assert not any("russian reads" in what and "of ru" in what for what in said)
    assert f"{len(conflicts)} conflicts" in console.export_text()
    assert not (tmp_path / "run").exists()


def test_words_of_a_byte_level_tokenizer_are_those_of_the_text(tmp_path) -> None:
    """A word within a sentence has its space: the tokens are those of the sentence as written."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from polydistill.tokenization.load import LoadedTokenizer

    sentence = ["the", "cat", "then", "the", "caterpillar"]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roles = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    backend.train_from_iterator(
        [" ".join(sentence)] * 9,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "<unk>", "<s>", "</s>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = LoadedTokenizer("t", backend, roles, 64)
    assert tokenizer.kind == "byte_level"
    window = split_into_windows([sentence], tokenizer, 64)[0]
    assert window.ids == backend.encode(" ".join(sentence)).ids
    assert [backend.id_to_token(window.ids[place])[0] for place in window.firsts] == ["t", "Ġ", "Ġ", "Ġ", "Ġ"]
