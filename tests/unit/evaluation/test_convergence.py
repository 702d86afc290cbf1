"""How much sooner one training reaches another's final loss."""

import pytest

from polydistill.disk import write_json
from polydistill.evaluation.convergence import Curve, compared, loss_curve, reached, trailing_losses

STEPS = list(range(10, 101, 10))
SLOW = Curve(STEPS, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1])
FAST = Curve(STEPS, [10, 7, 4, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


def test_a_training_that_falls_faster_comes_sooner() -> None:
    arrival = reached(FAST, SLOW)
    assert arrival is not None
    assert (arrival.step, arrival.factor) == (40, 2.5)
    assert reached(SLOW, FAST) is None


def test_a_training_comes_to_its_own_end_at_its_end() -> None:
    arrival = reached(SLOW, SLOW)
    assert arrival is not None
    assert (arrival.step, arrival.factor) == (100, 1)


def test_losses_are_means_over_a_window_so_one_lucky_entry_is_not_an_arrival() -> None:
    steps = [2 * n for n in range(1, 51)]
    other = Curve(steps, [5.0] * 50)
    lucky = Curve(steps, [6.0] * 20 + [4.0] + [6.0] * 19 + [4.9] * 10)
    assert min(lucky.losses[:40]) < 5
    arrival = reached(lucky, other)
    assert arrival is not None
    assert arrival.step > 80
    # Nor is a low first entry, before the window is full.
    early = Curve(steps, [1.0] + [9.0] * 49)
    assert reached(early, other) is None


def test_a_trailing_mean_has_its_own_entry_and_those_within_the_window() -> None:
    assert trailing_losses(SLOW, 20)[:4] == [10, 9.5, 8.5, 7.5]
    assert trailing_losses(SLOW, 1) == SLOW.losses


def test_a_shorter_training_is_counted_by_the_others_steps() -> None:
    short = Curve([10, 20], [3, 0.5])
    table = compared({"short": short, "slow": SLOW})
    assert table == {"short": {"slow": (20, 5)}, "slow": {"short": None}}


def test_the_window_is_a_tenth_of_the_training_whose_end_is_asked_for() -> None:
    steps = list(range(1, 101))
    dip = Curve(steps, [4.0 if step in (50, 51) else 6.0 for step in steps])
    # Two steps long for a training of 20, ten for one of 100.
    arrival = reached(dip, Curve(steps[:20], [5.0] * 20))
    assert arrival is not None
    assert arrival.step == 50
    assert reached(dip, Curve(steps, [5.0] * 100)) is None


@pytest.mark.parametrize("entries", [None, [], [{"step": 1, "loss": 2}]])
def test_a_run_that_trains_nothing_has_no_curve(tmp_path, entries) -> None:
    if entries is not None:
        write_json(tmp_path / "student" / "log.json", {"log": entries})
    assert loss_curve(tmp_path) is None


def test_a_curve_is_what_the_log_has(tmp_path) -> None:
    entries = [{"step": 5, "mlm_loss": 2.5, "kd_loss": 1}, {"step": 7, "train_runtime": 1}]
    write_json(tmp_path / "student" / "log.json", {"log": entries})
    assert loss_curve(tmp_path) == Curve([5], [2.5])
