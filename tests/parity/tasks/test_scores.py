"""Scores of fine-tuned models against seqeval, scikit-learn and the scripts' definitions; RDT by hand and as
printed.
"""

import json
import random
import re
import string
import unicodedata
from collections import Counter
from importlib import resources

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score
from torchmetrics.functional.text.squad import squad

from polydistill.tasks.scores import (
    Sampled,
    chance_of_seeds,
    deviation,
    interval,
    items_of,
    label_items,
    relative_deviation,
    resample,
    sampled_deviation,
    seed_noise,
    tag_items,
)
from polydistill.tasks.squad import answer_scores, normalise, uses_mlqa

TAGS = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"]


def tagged(seed: int, number: int = 60) -> list[list[str]]:
    draw = random.Random(seed)
    sizes = random.Random(0)
    return [[draw.choice(TAGS) for _ in range(sizes.randint(1, 9))] for _ in range(number)]


def test_tags_score_as_seqeval_and_scikit_learn_say() -> None:
    gold, other = tagged(1), tagged(2)
    keep = random.Random(3)
    predicted = [
        [kept if keep.random() < 0.7 else drawn for kept, drawn in zip(a, b, strict=True)]
        for a, b in zip(gold, other, strict=True)
    ]
    scores = tag_items(gold, predicted, "ner").scores()
    flat_gold, flat = ([tag for tags in some for tag in tags] for some in (gold, predicted))
    assert scores["entity_f1"] == pytest.approx(entity_f1(gold, predicted), abs=1e-12)
    assert scores["macro_f1"] == pytest.approx(f1_score(flat_gold, flat, average="macro"), abs=1e-12)
    assert scores["accuracy"] == pytest.approx(accuracy_score(flat_gold, flat), abs=1e-12)
    assert list(tag_items(gold, predicted, "pos").scores()) == ["accuracy", "macro_f1"]


def test_classes_score_as_scikit_learn_says_also_in_a_sample() -> None:
    """A bootstrap sample's score is that of its items, written out."""
    draw = random.Random(5)
    gold = [draw.choice("aaab") for _ in range(80)] + ["c"]
    predicted = [label if draw.random() < 0.6 else draw.choice("abd") for label in gold]
    items = label_items(gold, predicted, "pairs")
    assert items.scores()["macro_f1"] == pytest.approx(
        f1_score(gold, predicted, average="macro", zero_division=0)
    )
    assert items.scores()["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    samples = resample([items], "macro_f1", samples=20, generator=np.random.default_rng(9))[:, 0]
    again = np.random.default_rng(9).multinomial(len(gold), np.full(len(gold), 1 / len(gold)), size=20)
    for value, counts in zip(samples, again, strict=True):
        rows = [index for index, count in enumerate(counts) for _ in range(count)]
        with_sklearn = f1_score(
            [gold[i] for i in rows], [predicted[i] for i in rows], average="macro", zero_division=0
        )
        assert value == pytest.approx(with_sklearn)
    assert list(label_items(["0"], ["1"], "choice").scores()) == ["accuracy"]


# SQuAD v1.1 and MLQA by definition: lower-case; remove punctuation and articles; join spaces.
MLQA_ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "vi": "của là cái chiếc những",
    "de": "ein eine einen einem eines einer der die das den dem des",
}


def oracle_words(text: str, language: str, mlqa: bool) -> list[str]:
    if not mlqa:
        bare = text.lower().translate(str.maketrans("", "", string.punctuation))
        return [word for word in re.split(r"\s+", re.sub(r"\b(a|an|the)\b", " ", bare)) if word]
    bare = "".join(
        c for c in text.lower() if not unicodedata.category(c).startswith("P") and c not in string.punctuation
    )
    if language == "zh":
        words, held = [], ""
        for c in bare:
            if "\u4e00" <= c <= "\u9fa5":
                words += [*held.split(), c]
                held = ""
            else:
                held += c
        return words + held.split()
    if language == "ar":
        bare = re.sub("\\sال^|ال", " ", bare)
    elif language in MLQA_ARTICLES:
        bare = re.sub(r"\b(" + "|".join(MLQA_ARTICLES[language].split()) + r")\b", " ", bare)
    return bare.split()


def oracle(predicted: str, answers: list[str], language: str, mlqa: bool) -> tuple[float, float]:
    best = []
    mine = oracle_words(predicted, language, mlqa)
    for answer in answers:
        theirs = oracle_words(answer, language, mlqa)
        same = sum((Counter(mine) & Counter(theirs)).values())
        precision, recall = (same / len(words) if words else 0.0 for words in (mine, theirs))
        f1 = 2 * precision * recall / (precision + recall) if same else 0.0
        best.append((f1, float(" ".join(mine) == " ".join(theirs))))
    return max(f1 for f1, _ in best), max(exact for _, exact in best)


TEXTS = {
    "en": ["The cat's  hat, an apple", "cat hat", "a", "Theatre (an old one)", "1,000.5 % of the—whole"],
    "de": ["Der alte Mann, das Meer", "alte mann meer", "die", "des Kaisers «Kleider»"],
    "es": ["¿El perro? ¡La casa!", "perro casa", "unas casas"],
    "vi": ["Những chiếc xe của anh", "xe anh", "là"],
    "ar": ["في القاهرة والإسكندرية؟", "القاهرة", "قاهرة"],
    "hi": ["दिल्ली, भारत।", "दिल्ली भारत"],
    "zh": ["北京、Beijing city 2008年", "北京 beijing", "《史記》", "东京ひらがな", "\u9fa6\u4e00"],
    "ko": ["서울특별시 종로구.", "서울특별시", "the 서울"],
}


@pytest.mark.parametrize("mlqa", [False, True])
def test_answers_score_as_the_scripts_define(mlqa) -> None:
    for language, texts in TEXTS.items():
        if mlqa and language == "ko":
            continue
        for text in texts:
            assert normalise(text, language, mlqa=mlqa) == oracle_words(text, language, mlqa), (
                language,
                text,
            )
            for other in texts:
                expected = oracle(text, [other, texts[0]], language, mlqa)
                assert answer_scores(text, [other, texts[0]], language, mlqa=mlqa) == pytest.approx(expected)


def test_answers_score_as_the_official_script_that_torchmetrics_carries() -> None:
    compared = 0
    for language, texts in TEXTS.items():
        for text in texts:
            if not normalise(text, language, mlqa=False):
                # An article alone: torchmetrics has the later script's rule, in which nothing equals nothing.
                continue
            for answers in ([other, texts[0]] for other in texts):
                theirs = squad(
                    [{"id": "1", "prediction_text": text}],
                    [{"id": "1", "answers": {"text": answers, "answer_start": [0] * len(answers)}}],
                )
                ours = answer_scores(text, answers, language, mlqa=False)
                assert [100 * score for score in ours] == pytest.approx(
                    [float(theirs["f1"]), float(theirs["exact_match"])]
                ), (text, answers)
                compared += 1
    assert compared > 80


def test_answers_by_hand() -> None:
    assert answer_scores("The old man", ["old man"], "en", mlqa=False) == (1.0, 1.0)
    # 1 of 3 predicted words, 1 of 2 gold words: 2 (1/3)(1/2) / (1/3 + 1/2).
    assert answer_scores("the big old house", ["old man"], "en", mlqa=False) == pytest.approx((0.4, 0.0))
    # The best of several answers, for each measure separately.
    assert answer_scores("Rome", ["in Rome", "Paris", "rome."], "en", mlqa=False) == (1.0, 1.0)
    assert answer_scores("北京市", ["北京"], "zh", mlqa=True) == pytest.approx((0.8, 0.0))
    # SQuAD's script sees one word in it.
    assert answer_scores("北京市", ["北京"], "zh", mlqa=False) == (0.0, 0.0)
    # Scripts without spaces that MLQA lacks, and full-width punctuation.
    assert normalise("ひらがな、東", "ja", mlqa=True) == ["ひ", "ら", "が", "な", "東"]
    assert normalise("ไทย", "th", mlqa=True) == ["ไ", "ท", "ย"]
    assert answer_scores("", ["x"], "en", mlqa=False) == (0.0, 0.0)
    assert [uses_mlqa(code, "auto") for code in ("zh", "zh-Hant", "ja", "ko", "en", "de")] == [True] * 3 + [
        False
    ] * 3
    assert uses_mlqa("de", "mlqa")
    assert not uses_mlqa("zh", "squad")


def test_rdt_has_the_sign_of_the_tables_and_their_numbers() -> None:
    """Table 2's averages follow from its rows: positive where the student is better."""
    assert relative_deviation(55, 50) == pytest.approx(10)
    tables = json.loads((resources.files("polydistill.reports") / "published.json").read_text("utf-8"))
    printed = {
        "table 2, similar languages": [0.6, -0.1, 2.8, 3.7],
        "table 2, dissimilar languages": [-0.2, -1.1, -1.3, -1.4],
    }
    for table in tables:
        for row in (row for group in table["groups"] for row in group["rows"]):
            assert len(row["scores"]) == len(table["columns"])
        if table["table"] not in printed:
            continue
        for place, expected in enumerate(printed[table["table"]]):
            each = [
                relative_deviation(student["scores"][place], teacher["scores"][place])
                for teacher, student in (group["rows"] for group in table["groups"])
                if teacher["scores"][place] is not None
            ]
            # Scores are printed to a tenth.
            assert np.mean(each) == pytest.approx(expected, abs=0.16), (table["table"], place)
    rows = {row["model"]: row for row in tables[2]["groups"][0]["rows"]}
    against = [
        relative_deviation(s, t)
        for s, t in zip(rows["Student MuRIL"]["scores"], rows["mBERT"]["scores"], strict=True)
    ]
    assert against[0] == pytest.approx(17.9, abs=0.1)
    assert against[1] == pytest.approx(5.6, abs=0.1)


def test_table_4_s_averages_and_rdt_follow_from_its_rows() -> None:
    """The average column is the mean of F1 and accuracy, without exact matches; RDT is that of averages."""
    tables = json.loads((resources.files("polydistill.reports") / "published.json").read_text("utf-8"))
    table = next(table for table in tables if table["table"] == "table 4")
    firsts = [
        place
        for place, column in enumerate(table["columns"])
        if column["kind"] != "average" and not column["name"].endswith("EM")
    ]
    assert len(firsts) == 7
    for group in table["groups"]:
        for row in group["rows"]:
            mean = np.mean([row["scores"][place] for place in firsts])
            # One of the paper's averages (other languages, Student MuRIL) is 0.1 above its rows' 68.57.
            assert row["scores"][-1] == pytest.approx(mean, abs=0.06), row["model"]
            assert all(
                teacher in {other["model"] for other in group["rows"]} for teacher in row.get("teachers", [])
            )
    covered, other = ({row["model"]: row for row in group["rows"]} for group in table["groups"])
    printed = {
        "mBERT": [17.9, 5.6, 2.1, 8.6, 7.7, 8.0, 10.8, 10.8, 13.1, 12.3, 8.8],
        "MuRIL": [-9.9, -3.0, 0.4, -3.4, -2.6, -3.3, -2.2, -3.9, -7.1, -1.7, -3.8],
    }
    for teacher, expected in printed.items():
        ours = [
            relative_deviation(student, base)
            for student, base in zip(
                covered["Student MuRIL"]["scores"], covered[teacher]["scores"], strict=True
            )
        ]
        assert ours == pytest.approx(expected, abs=0.1), teacher
    ours = [
        relative_deviation(student, base)
        for student, base in zip(other["Student MuRIL"]["scores"], other["mBERT"]["scores"], strict=True)
    ]
    assert ours == pytest.approx([0.6, 2.4, 3.9, 4.3, 6.9, 8.7, 5.7, 7.2, 2.2, -2.4, 3.8], abs=0.1)


def test_samples_are_of_the_same_items_for_both_models_and_of_seeds() -> None:
    draw = random.Random(1)
    gold = [draw.choice("ab") for _ in range(200)]
    weak = [label if draw.random() < 0.6 else "a" for label in gold]
    # Right wherever the weak one is, and on every tenth item too: paired, the difference hardly varies.
    strong = [
        g if w == g or index % 10 == 0 else w for index, (g, w) in enumerate(zip(gold, weak, strict=True))
    ]
    items = [label_items(gold, predicted, "classification") for predicted in (weak, strong)]
    samples = resample(items, "accuracy", samples=500, generator=np.random.default_rng(0))
    assert samples.shape == (500, 2)
    assert (samples[:, 1] >= samples[:, 0]).all()
    assert np.std(samples[:, 1] - samples[:, 0]) < 0.6 * np.std(samples[:, 0])
    # The standard error of a share.
    share = items[0].scores()["accuracy"]
    assert np.std(samples[:, 0]) == pytest.approx(np.sqrt(share * (1 - share) / 200), rel=0.1)
    with pytest.raises(ValueError, match="same items"):
        resample(
            [items[0], label_items(["a"], ["a"], "choice")],
            "accuracy",
            samples=100,
            generator=np.random.default_rng(0),
        )


def test_few_seeds_give_the_interval_of_student_s_t() -> None:
    """One group: scipy's interval of a mean. Groups together: the analysis of variance's deviation within
    groups.
    """
    seeds = [0.0, 0.2, 0.4]
    noise = seed_noise([seeds], trainings=1)
    assert noise == (pytest.approx(np.std(seeds, ddof=1)), 2)
    draws = 0.2 + chance_of_seeds(200_000, 3, noise, np.random.default_rng(0), np.random.default_rng(1))
    expected = stats.t.interval(0.95, 2, 0.2, stats.sem(seeds))
    assert interval(draws, 0.95) == pytest.approx(expected, rel=0.03)
    groups = [[1.0, 3.0], [10.0, 11.0, 12.0], [5.0]]
    noise = seed_noise(groups, trainings=3)
    within = sum(((np.array(group) - np.mean(group)) ** 2).sum() for group in groups)
    assert noise == (pytest.approx(np.sqrt(within / 3)), 3)
    # A single training on all three languages has a third of the degrees of freedom.
    assert seed_noise(groups, trainings=1).freedom == 1
    none = seed_noise([[1.0], [2.0]], trainings=2)
    assert none.freedom == 0
    assert not chance_of_seeds(5, 1, none, np.random.default_rng(0), np.random.default_rng(1)).any()


def test_an_interval_of_two_seeds_holds_the_truth_as_often_as_it_says() -> None:
    """Four languages, teacher and student equal, two seeds whose scores scatter by 2: 95 of 100 intervals
    contain 0.
    """
    held = 0
    for trial in range(300):
        scores = 60 + 2 * np.random.default_rng(trial).standard_normal((8, 2))
        noise = seed_noise(scores.tolist(), trainings=8)
        means = scores.mean(1)
        student, teacher = (
            Sampled(
                np.full(500, means[place]),
                chance_of_seeds(
                    500, 2, noise, np.random.default_rng([trial, place]), np.random.default_rng([trial, 9])
                ),
            )
            for place in (0, 4)
        )
        low, high = interval(sampled_deviation(student, teacher, mean=means[0], base=means[4]), 0.95)
        held += low <= 0 <= high
    assert 0.92 * 300 < held < 0.98 * 300


def test_a_teacher_whose_score_is_small_has_no_negative_samples() -> None:
    """The ratio's derivatives, by finite differences; noise as large as the score itself leaves only the
    sign.
    """
    student, teacher = np.array([0.08, 0.05]), np.array([0.07, 0.06])
    step = 1e-6
    for of_student, of_teacher in ((step, 0.0), (0.0, step)):
        moved = sampled_deviation(
            Sampled(student, np.full(2, of_student)),
            Sampled(teacher, np.full(2, of_teacher)),
            mean=0.06,
            base=0.065,
        )
        expected = relative_deviation(0.06 + of_student, 0.065 + of_teacher) - relative_deviation(0.06, 0.065)
        items = 100 * (student / teacher - 1)
        assert (moved - items) / step == pytest.approx(np.full(2, expected / step), rel=1e-3)
    equal = Sampled(np.full(2, 0.06), np.array([0.07, -0.07]))
    assert equal.scores == pytest.approx([0.13, 0.0])
    low, high = sampled_deviation(Sampled(equal.items, np.zeros(2)), equal, mean=0.06, base=0.06)
    assert (low, high) == pytest.approx((-116.67, 116.67), abs=0.01)


def test_what_an_interval_says() -> None:
    around = np.linspace(-1, 1, 201)
    assert deviation(-2, around - 2, level=0.95, within=5).verdict == "within"
    assert deviation(-8, around - 8, level=0.95, within=5).verdict == "below"
    cell = deviation(-5, around - 5, level=0.9, within=5)
    assert cell.verdict == "open"
    assert (cell.low, cell.high) == pytest.approx((-5.9, -4.1))
    assert deviation(1, np.array([1.0, np.inf]), level=0.95, within=5) is None


def test_stored_predictions_give_the_same_scores() -> None:
    rows = [{"gold": ["in Rome"], "predicted": "Rome"}, {"gold": ["x"], "predicted": "x"}]
    assert items_of("qa", rows, "en").scores() == pytest.approx({"f1": (2 / 3 + 1) / 2, "exact": 0.5})
    assert items_of("choice", [{"gold": "1", "predicted": "1"}], "en").scores() == {"accuracy": 1.0}
    assert items_of("pos", [{"gold": ["A"], "predicted": ["B"]}], "en").scores()["accuracy"] == 0.0
