"""A grid's summary, from ranks written by hand."""

import numpy as np
import pytest
from tests.end_to_end.test_grid import grid

from polydistill.evaluation.uncertainty import paired_difference
from polydistill.evaluation.words import Words
from polydistill.pipelines.grid import words as grid_words
from polydistill.pipelines.grid.children import children_of, places_of
from polydistill.pipelines.grid.summary import summary

COUNTS = np.array([2, 1, 3, 2, 4] * 20)
PLACE = "ko/held_out/own/a"


def reciprocal(seed: int) -> np.ndarray:
    return 1.0 / np.random.default_rng(seed).integers(1, 9, COUNTS.sum()).astype(np.float64)


def row(run: str, model: str, value: float, place: str = "held_out", examples: int = len(COUNTS)) -> dict:
    return {
        "run": run,
        "place": f"ko, {place}",
        "language": "ko",
        "text": place,
        "model": model,
        "tokenizer": "own",
        "teacher": "a",
        "measure": "MRR",
        "value": value,
        "error": 0.0,
        "examples": examples,
    }


def summarised(tmp_path, arrays: dict[str, dict[str, np.ndarray]], rows: list[dict], **more) -> list[dict]:
    """arrays  run → its ranks.npz."""
    recipe = grid(output=str(tmp_path), **more)
    children = children_of(recipe)
    places = places_of(recipe)
    for name, of_run in arrays.items():
        (tmp_path / name / "evaluation").mkdir(parents=True)
        np.savez(tmp_path / name / "evaluation" / "ranks.npz", **of_run)
    return summary(recipe, children, [{**each, **places[each["run"]]._asdict()} for each in rows])["rows"]


def ranks(values: np.ndarray, model: str = "student", counts: np.ndarray = COUNTS) -> dict:
    return {f"{PLACE}/{model}": 1.0 / values, f"{PLACE}/counts": counts}


def test_one_seed_gives_the_paired_bootstrap_s_interval(tmp_path) -> None:
    """The one that `compare` prints for two runs."""
    first = reciprocal(0)
    other = np.clip(first + np.random.default_rng(1).normal(0.01, 0.1, len(first)), 0.01, 1)
    found = summarised(
        tmp_path,
        {"one": ranks(first), "two": ranks(other)},
        [row("one", "student", first.mean()), row("two", "student", other.mean())],
        runs={"one": {}, "two": {}},
    )[0]
    cell = found["differences"]["two"]
    wanted = paired_difference(other, first, COUNTS)
    assert cell["value"] == pytest.approx(wanted.value)
    assert (cell["low"], cell["high"]) == pytest.approx(
        (wanted.low, wanted.high), abs=0.15 * (wanted.high - wanted.low)
    )
    assert cell["knows"] == "items"
    assert cell["settled"] == wanted.settled is (cell["verdict"] != "not settled")


def test_other_tokens_and_teachers_have_no_difference(tmp_path) -> None:
    """Runs that hide other tokens cannot be compared, and teachers are nothing that a run makes."""
    values = reciprocal(0)
    moved = COUNTS[::-1].copy()
    rows = summarised(
        tmp_path,
        {
            "one": ranks(values) | ranks(values, "a"),
            "two": ranks(values, counts=moved) | ranks(values, "a", counts=moved),
            "three": ranks(values) | ranks(values, "a"),
        },
        [row(run, model, values.mean()) for run in ("one", "two", "three") for model in ("student", "a")],
        runs={"one": {}, "two": {}, "three": {}},
    )
    student, teacher = rows
    assert set(student["cells"]) == {"one", "two", "three"}
    assert set(student["differences"]) == {"three"}
    assert student["differences"]["three"]["value"] == 0
    assert teacher["differences"] == {}


def test_many_differences_are_corrected_together(tmp_path) -> None:
    """Holm over the four differences of the measure, not over each place's own."""
    first = reciprocal(0)
    draw = np.random.default_rng(5)
    names = ["one", "two", "three", "four", "five"]
    made = {"one": first}
    for name, shift in zip(names[1:], (0.0, 0.0135, 0.0135, 0.06), strict=True):
        noise = draw.normal(0, 0.1, len(first))
        made[name] = np.maximum(first + shift + noise - noise.mean(), 0.001)
    found = summarised(
        tmp_path,
        {name: ranks(values) for name, values in made.items()},
        [row(name, "student", values.mean()) for name, values in made.items()],
        runs=dict.fromkeys(names),
    )[0]["differences"]
    raw = sorted(cell["p"] for cell in found.values())
    steps = np.maximum.accumulate([min(1.0, (4 - place) * p) for place, p in enumerate(raw)])
    assert sorted(cell["adjusted"] for cell in found.values()) == pytest.approx(steps)
    for cell in found.values():
        assert cell["settled"] == (cell["adjusted"] <= 0.05)
        assert (cell["verdict"] == "better") == cell["settled"]
    # Some would be starred without it.
    assert sum(p <= 0.05 for p in raw) > sum(cell["settled"] for cell in found.values())


def test_a_baseline_and_a_margin_in_percent_of_its_figure(tmp_path) -> None:
    first = reciprocal(0)
    close = first + np.where(np.arange(len(first)) % 2, 0.001, -0.001)
    for margin, wanted in ((1.0, "level"), (0.001, "not settled")):
        found = summarised(
            tmp_path / str(margin),
            {"one": ranks(close), "two": ranks(first)},
            [row("one", "student", close.mean()), row("two", "student", first.mean())],
            runs={"one": {}, "two": {}},
            baseline="two",
            equivalence_margin=margin,
        )[0]
        assert set(found["differences"]) == {"one"}
        assert found["differences"]["one"]["verdict"] == wanted


def test_seeds_are_paired(tmp_path) -> None:
    """What a seed does to both runs alike costs nothing."""
    arrays, rows = {}, []
    for seed, shift in ((0, 0.0), (1, 0.2), (2, 0.4)):
        base = 0.3 + shift + 0.05 * reciprocal(seed)
        for name, more in (("one", 0.0), ("two", 0.02 + 0.001 * seed)):
            arrays[f"{name}-seed{seed}"] = ranks(base + more)
            rows.append(row(f"{name}-seed{seed}", "student", (base + more).mean()))
    found = summarised(tmp_path, arrays, rows, runs={"one": {}, "two": {}}, seeds=[0, 1, 2])[0]
    assert found["cells"]["one"]["high"] - found["cells"]["one"]["low"] > 0.2
    cell = found["differences"]["two"]
    assert cell["value"] == pytest.approx(0.021)
    # Paired: differences 0.020, 0.021, 0.022 of three seeds, and none of items.
    assert cell["high"] - 0.021 == pytest.approx(4.303 * 0.001 / np.sqrt(3), rel=0.01)
    assert (cell["verdict"], cell["knows"]) == ("better", "seeds and items")


def test_seeds_whose_examples_cannot_be_aligned_count_as_one_text(tmp_path) -> None:
    """Fewer rows than examples: some had no masked token, and which is not kept. Intervals are wider."""
    widths = []
    for examples in (len(COUNTS), len(COUNTS) + 3):
        arrays, rows = {}, []
        for seed in (0, 1):
            for name, values in (("one", reciprocal(10 * seed)), ("two", reciprocal(10 * seed + 1))):
                arrays[f"{name}-seed{seed}"] = ranks(values)
                rows.append(row(f"{name}-seed{seed}", "student", 0.3, examples=examples))
        folder = tmp_path / str(examples)
        cell = summarised(folder, arrays, rows, runs={"one": {}, "two": {}}, seeds=[0, 1])[0]
        difference = cell["differences"]["two"]
        widths.append(difference["high"] - difference["low"])
    # Independent ranks: aligned, their mean varies by the square root of two less.
    assert widths[1] == pytest.approx(np.sqrt(2) * widths[0], rel=0.1)


def test_fewer_nats_are_better(tmp_path) -> None:
    characters = np.array([20.0, 30.0, 10.0, 40.0] * 25)
    noise = np.random.default_rng(0).normal(0, 0.01, len(characters))
    nats = {"one": 2.0 * characters, "two": (1.5 + noise) * characters, "three": (2.5 + noise) * characters}
    counts = {run: np.stack([each, characters], 1) for run, each in nats.items()}
    (tmp_path / "words").mkdir()
    np.savez(
        tmp_path / "words" / "arrays.npz",
        **{grid_words.array_of(run, "ko", "held_out"): each for run, each in counts.items()},
    )
    words = {"tokenizer": "same words", "teacher": None, "measure": "nats/char"}
    rows = [row(run, "student", each[:, 0].sum() / characters.sum()) | words for run, each in counts.items()]
    found = summarised(tmp_path, {}, rows, runs={run: {} for run in nats})[0]
    assert {run: cell["verdict"] for run, cell in found["differences"].items()} == {
        "two": "better",
        "three": "worse",
    }
    two = found["differences"]["two"]
    assert two["value"] == pytest.approx(-0.5, abs=0.01)
    assert two["low"] < two["value"] < two["high"] < 0
    assert two["knows"] == "items"


def test_a_text_without_a_word_to_hide_has_no_row(tmp_path, monkeypatch) -> None:
    """Its nats per character would be 0 / 0; what the others have together leaves it out."""
    measured = {
        "ko": Words(np.array([3.0, 5.0]), np.array([2, 4])),
        "zh": Words(np.array([0.0]), np.array([0])),
        "en": Words(np.array([4.0]), np.array([4])),
    }
    monkeypatch.setattr(grid_words, "student_corpora", lambda _: dict.fromkeys(measured, tmp_path))
    monkeypatch.setattr(grid_words, "text_files", lambda _: {"held_out": None, "news": None})
    monkeypatch.setattr(grid_words, "measure_words", lambda _, language, *__: [measured[language]])
    recipe = grid(output=str(tmp_path), runs={"one": {}})
    arrays = grid_words._measure(["one"], children_of(recipe), None)
    assert list(arrays) == [
        "one/ko/held_out",
        "one/ko/news",
        "one/en/held_out",
        "one/en/news",
        "one/all languages/held_out",
    ]
    made = {name: grid_words._row(name, counts) for name, counts in arrays.items()}
    assert made["one/ko/news"]["value"] == pytest.approx(8 / 6)
    together = made["one/all languages/held_out"]
    assert together["value"] == pytest.approx(12 / 10)
    assert (together["run"], together["place"], together["examples"]) == ("one", "all languages, held_out", 3)
