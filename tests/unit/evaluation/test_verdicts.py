"""Verdicts and Holm's correction, by hand."""

import pytest
from scipy import stats

from polydistill.evaluation.verdicts import holm, starred, verdict


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (-0.5, 0.9, 1.0, "level"),
        (-1.0, 1.0, 1.0, "level"),
        (-1.1, 0.9, 1.0, "not settled"),
        (-0.9, 1.1, 1.0, "not settled"),
        (0.1, 1.1, 1.0, "better"),
        (-1.1, -0.1, 1.0, "worse"),
        # Smaller than the difference that counts, although it is one.
        (0.1, 0.9, 1.0, "level"),
        (-0.5, 0.5, None, "not settled"),
        (0.0, 0.5, None, "not settled"),
        (0.1, 0.2, None, "better"),
        (-0.2, -0.1, None, "worse"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_margin(low, high, margin, expected) -> None:
    assert verdict(low, high, margin) == expected


def test_a_correction_unsettles_a_verdict_and_settles_none() -> None:
    assert verdict(0.1, 0.2, None, excludes_zero=False) == "not settled"
    assert verdict(0.1, 0.2, None, excludes_zero=True) == "better"
    assert verdict(-0.1, 0.2, None, excludes_zero=True) == "not settled"
    # Within the margin nothing is starred that a correction could take back.
    assert verdict(0.1, 0.2, 1.0, excludes_zero=False) == "level"


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5 by 4, 3, 2, 1; none below the one before it, and none above 1."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    # Never below the raw values, nor above Bonferroni's.
    raw = stats.uniform.rvs(size=20, random_state=0).tolist()
    assert all(p <= q <= min(1.0, 20 * p) for p, q in zip(raw, holm(raw), strict=True))


def test_stars_of_a_table_are_corrected_together() -> None:
    """p of 2.2 standard errors is 0.028: a star alone, none beside another."""
    close = {"value": 2.2, "low": 2.2 - 1.96, "high": 2.2 + 1.96}
    far = {"value": -4.0, "low": -5.96, "high": -2.04}
    none = {"value": 1.0, "low": -0.96, "high": 2.96}
    assert 0.025 < 2 * stats.norm.sf(2.2) < 0.05
    assert starred([close]) == [True]
    assert starred([close, close]) == [False, False]
    # The far one leaves the correction first, and then one is left.
    assert starred([close, far]) == [True, True]
    assert starred([none, far, close]) == [False, True, False]
    assert starred([{"value": 0.0, "low": 0.0, "high": 0.0}, far]) == [False, True]
    assert starred([]) == []
