"""Means and differences over seeds and items, against scipy and by their coverage."""

import numpy as np
import pytest
from scipy import stats

from polydistill.tasks.estimates import Variant, difference_estimates, level_estimates, paired_noise


def test_two_variants_without_items_are_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    first, other = draw.normal(0.5, 0.1, 4), draw.normal(0.6, 0.1, 4)
    found = difference_estimates({"a": Variant(first), "b": Variant(other)}, "a", level=0.9)["b"]
    test = stats.ttest_rel(other, first)
    interval = test.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(test.pvalue)
    assert found.value == pytest.approx(np.mean(other - first))
    assert found.knows == "seeds"


def test_several_variants_share_the_residual_of_a_two_way_analysis_of_variance() -> None:
    """By hand: what is left of a table after its rows' and columns' means. A seed that is good for all
    variants costs nothing.
    """
    scores = np.array([[0.1, 0.2, 0.6], [0.3, 0.5, 0.7], [0.2, 0.3, 0.4]])
    noise = paired_noise(scores)
    rest = [
        [scores[v, s] - scores[v].mean() - scores[:, s].mean() + scores.mean() for s in range(3)]
        for v in range(3)
    ]
    assert noise == (pytest.approx(np.sqrt(2 * np.sum(np.square(rest)) / 4)), 4)
    assert paired_noise(scores + np.array([5.0, -3.0, 7.0])) == (pytest.approx(noise.deviation), 4)
    assert paired_noise(scores[:, :1]).freedom == 0
    assert paired_noise(scores[:1]).freedom == 0


def test_levels_without_items_are_the_t_interval_of_a_pooled_deviation() -> None:
    one = np.array([0.2, 0.4, 0.9])
    found = level_estimates({"a": Variant(one)}, level=0.95)["a"]
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, one.mean(), stats.sem(one)))
    # Pooled with a variant that scatters otherwise: the root of the mean variance, twice the freedom.
    both = level_estimates({"a": Variant(one), "b": Variant(one / 2)}, level=0.95)["a"]
    pooled = np.sqrt((one.var(ddof=1) + (one / 2).var(ddof=1)) / 2)
    assert (both.low, both.high) == pytest.approx(stats.t.interval(0.95, 4, one.mean(), pooled / np.sqrt(3)))


def test_one_seed_knows_items_alone() -> None:
    samples = np.random.default_rng(0).normal(0.5, 0.02, (4000, 1))
    found = level_estimates({"a": Variant(np.array([0.5]), samples, 101)}, level=0.95)["a"]
    assert found.knows == "items"
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 100) * samples.std(), rel=1e-6)
    nothing = level_estimates({"a": Variant(np.array([0.5]))}, level=0.95)["a"]
    assert (nothing.knows, nothing.p, nothing.low) == ("nothing", 1.0, 0.5)


def test_half_intervals_add_like_the_sides_of_a_right_angle() -> None:
    """And the p-value is 1 minus the level of the interval that ends at 0."""
    seeds = np.array([0.1, 0.3, 0.2])
    items = np.random.default_rng(1).normal(0, 0.05, 1000)
    variant = {"a": Variant(seeds, seeds + items[:, None], 40)}
    found = level_estimates(variant, level=0.95)["a"]
    sides = stats.t.ppf(0.975, 39) * items.std(), stats.t.ppf(0.975, 2) * stats.sem(seeds)
    assert found.high - 0.2 == pytest.approx(np.hypot(*sides))
    assert found.value - found.low == pytest.approx(np.hypot(*sides))
    assert found.knows == "seeds and items"
    again = level_estimates(variant, level=1 - found.p)["a"]
    assert again.low == pytest.approx(0, abs=1e-9)


def test_seeds_on_other_items_are_not_taken_for_independent() -> None:
    """Held-out text with other masks is the same text: the mean of two such scores does not vary less."""
    draw = np.random.default_rng(2)
    apart = draw.normal(0, 0.1, (20_000, 2))
    widths = {
        joint: (
            found := level_estimates({"a": Variant(np.zeros(2), apart, 1000, joint)}, level=0.95)["a"]
        ).high
        - found.low
        for joint in (True, False)
    }
    assert widths[False] == pytest.approx(np.sqrt(2) * widths[True], rel=0.02)


def test_paired_items_and_seeds_narrow_a_difference() -> None:
    draw = np.random.default_rng(3)
    shared_seed, shared_items = draw.normal(0, 1, 3), draw.normal(0, 1, (2000, 3))
    first = Variant(shared_seed, shared_items, 500)
    other = Variant(shared_seed + 0.1 + draw.normal(0, 1e-3, 3), shared_items + 0.1, 500)
    found = difference_estimates({"a": first, "b": other}, "a", level=0.95)["b"]
    assert found.low > 0.09
    assert level_estimates({"a": first}, level=0.95)["a"].high > 1


def covered(seeds: int, variants: int, trials: int) -> tuple[float, float]:
    """How often intervals of equal variants contain 0: ours, and those of resampling seeds, then items.

    200 items; a seed moves a variant's score by 0.1, and items' errors are shared by half between variants.
    """
    ours = plain = 0
    chosen = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=400) / 200
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        items = (
            draw.normal(0, 0.1, (variants, seeds, 1))
            + draw.normal(0, 0.3, 200)
            + draw.normal(0, 0.3, (variants, 1, 200))
        )
        samples = np.moveaxis(items @ chosen.T, -1, 1)
        made = {str(v): Variant(items[v].mean(-1), samples[v], 200) for v in range(variants)}
        found = difference_estimates(made, "0", level=0.95)["1"]
        ours += found.low <= 0 <= found.high
        redrawn = draw.integers(0, seeds, (400, seeds))
        both = np.take_along_axis(samples[1] - samples[0], redrawn, 1)
        low, high = np.quantile(both.mean(1), (0.025, 0.975))
        plain += low <= 0 <= high
    return ours / trials, plain / trials


@pytest.mark.parametrize(("seeds", "variants"), [(2, 2), (3, 2), (3, 4)])
def test_an_interval_holds_the_truth_as_often_as_it_says(seeds, variants) -> None:
    """Where resampling seeds does not: with three it gives two thirds of their variance, and no tail."""
    ours, plain = covered(seeds, variants, 400)
    assert 0.92 <= ours <= 0.985, (ours, plain)
    assert plain < 0.88, (ours, plain)
