"""What a merge's page says in words."""

import pytest

from polydistill.reports.merge_page import verdict


def cell(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ({"ko": cell(0.01, 0.02)}, "The student is better than its teachers in ko"),
        ({"ko": cell(-0.01, 0.02)}, "The student is not told apart from its teachers in ko"),
        ({"ko": cell(-0.03, -0.02)}, "The student is behind its teachers in ko"),
        (
            {"all": cell(0.1, 0.2), "a": cell(-1, 1), "b": cell(-1, 1), "c": cell(-1, 1), "d": cell(-2, -1)},
            "The student is not told apart from its teachers in a, b and c and behind them in d",
        ),
        (
            {"a": cell(-1, 1), "b": cell(1, 2), "d": cell(-2, -1)},
            "The student is better than its teachers in b, not told apart from them in a "
            "and behind them in d",
        ),
    ],
)
def test_the_verdict_is_no_stronger_than_the_intervals(differences, said) -> None:
    (sentence,) = verdict(differences, {})
    assert sentence == f"{said} (MRR on held-out text, 95 % intervals)."


def test_nothing_is_said_without_an_interval() -> None:
    assert verdict({"ko": {"value": 0.3}}, {"ko/ko": {"drift": 0.5}}) == []
    assert verdict({}, {}) == []


def test_a_tokenizer_that_splits_otherwise_is_named() -> None:
    said = verdict({"ko": cell(0.1, 0.2)}, {"ko/a": {"drift": 0.123}, "zh/b": {"drift": 0.02}})
    assert said[1] == (
        "Load the language's own tokenizer for ko: the union's splits 12% of its tokens otherwise."
    )
