"""The loss in chunks, against the dense formula in float64."""

import math

import pytest
import torch

from polydistill.losses.schedules import scheduled_weight
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.losses.targets import soft_targets


def problem(num_rows: int, *, size: int = 53, width: int = 8, columns: int = 5):
    torch.manual_seed(3)
    features = torch.randn(num_rows, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(size, width, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(size, dtype=torch.float64, requires_grad=True)
    # Ids repeat within a row: gold is often among the teacher's.
    ids = torch.randint(0, size, (num_rows, columns))
    target = torch.rand(num_rows, columns, dtype=torch.float64) / columns
    return features, weight, bias, ids, target


def dense(features, weight, bias, ids, target, tail=None):
    logprobs = torch.log_softmax(features @ weight.t() + bias, -1)
    loss = -(target * logprobs.gather(1, ids)).sum()
    if tail is not None:
        top = torch.zeros_like(logprobs, dtype=torch.bool).scatter_(1, ids[:, 1:], True)
        loss = loss - (tail * torch.log((logprobs.exp() * ~top).sum(-1))).sum()
    return loss


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("with_tail", [False, True])
def test_value_and_gradients_equal_dense_formula(chunk: int, with_tail: bool) -> None:
    features, weight, bias, ids, target = problem(11)
    tail = torch.rand(11, dtype=torch.float64) if with_tail else None
    expected = dense(features, weight, bias, ids, target, tail)
    wanted = torch.autograd.grad(expected * 2.5, (features, weight, bias))
    result = sparse_soft_cross_entropy(
        features, weight, bias, ids, target, tail=tail, top=slice(1, None), chunk_positions=chunk
    )
    gradients = torch.autograd.grad(result.loss * 2.5, (features, weight, bias))
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=1e-12)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_tail", [False, True])
def test_rows_that_go_through_the_cache_in_turn_give_the_same(monkeypatch, with_tail: bool) -> None:
    """Two rows at a time, in chunks of five, and a gradient of 1, which takes the path without a scale."""
    monkeypatch.setattr("polydistill.losses.chunks.CACHE_BYTES", 2 * 53 * 8)
    features, weight, bias, ids, target = problem(11)
    tail = torch.rand(11, dtype=torch.float64) if with_tail else None
    expected = dense(features, weight, bias, ids, target, tail)
    wanted = torch.autograd.grad(expected, (features, weight, bias))
    result = sparse_soft_cross_entropy(
        features, weight, bias, ids, target, tail=tail, top=slice(1, None), chunk_positions=5
    )
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(result.loss, (features, weight, bias))
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
    expected_logprobs = torch.log_softmax(features @ weight.t() + bias, -1).gather(1, ids)
    torch.testing.assert_close(result.logprobs, expected_logprobs)


def test_bfloat16_features_keep_the_loss_near_the_dense_one() -> None:
    """Products in bfloat16, the rest in float32: the loss within 1 %, gradients in their own types."""
    features, weight, bias, ids, target = (
        t.detach().float() if t.is_floating_point() else t for t in problem(64, size=300, width=32)
    )
    low = features.bfloat16().requires_grad_()
    weight, bias = (0.1 * weight).requires_grad_(), bias.requires_grad_()
    result = sparse_soft_cross_entropy(low, weight, bias, ids, target)
    gradients = torch.autograd.grad(result.loss, (low, weight, bias))
    exact = features.requires_grad_()
    expected = dense(exact, weight, bias, ids, target)
    wanted = torch.autograd.grad(expected, (exact, weight, bias))
    assert result.loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for gradient, other in zip(gradients, wanted, strict=True):
        assert (gradient.float() - other).norm() < 0.03 * other.norm()


def test_without_bias_and_without_positions() -> None:
    features, weight, _, ids, target = problem(6)
    result = sparse_soft_cross_entropy(features, weight, None, ids, target)
    expected = dense(features, weight, torch.zeros(53, dtype=torch.float64), ids, target)
    torch.testing.assert_close(result.loss, expected)
    empty = sparse_soft_cross_entropy(features[:0], weight, None, ids[:0], target[:0])
    empty.loss.backward()
    assert empty.loss.item() == 0.0
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_a_tail_outside_nothing_costs_nothing() -> None:
    """When the ids are the whole vocabulary, no probability is left outside them."""
    features, weight, bias, _, _ = problem(3, size=4)
    ids = torch.tensor([[0, 0, 1, 2, 3]] * 3)
    target = torch.full((3, 5), 0.2, dtype=torch.float64)
    result = sparse_soft_cross_entropy(
        features,
        weight,
        bias,
        ids,
        target,
        tail=torch.full((3,), 0.1, dtype=torch.float64),
        top=slice(1, None),
    )
    assert math.isfinite(result.loss.item())
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(result.loss, (features, weight, bias)))


def test_gold_and_teacher_in_one_target_are_the_weighted_sum_of_two_losses() -> None:
    """L_ALL of MergeDistill: lambda * KD + (1 - lambda) * MLM."""
    features, weight, bias, ids, _ = problem(9)
    soft = torch.softmax(torch.randn(9, 4, dtype=torch.float64), -1)
    share = 0.3
    target = torch.cat([torch.full((9, 1), 1 - share, dtype=torch.float64), share * soft], 1)
    both = sparse_soft_cross_entropy(features, weight, bias, ids, target).loss
    logprobs = torch.log_softmax(features @ weight.t() + bias, -1)
    mlm = torch.nn.functional.nll_loss(logprobs, ids[:, 0], reduction="sum")
    kd = -(soft * logprobs.gather(1, ids[:, 1:])).sum()
    torch.testing.assert_close(both, share * kd + (1 - share) * mlm)


LOGPROBS = torch.log(torch.tensor([[0.4, 0.2, 0.1], [0.9, 0.05, 0.05]]))


@pytest.mark.parametrize(
    ("tail", "mass", "rest"),
    [
        ("renormalise", [1.0, 1.0], [0, 0]),
        ("raw", [0.7, 1.0], [0, 0]),
        ("bucket", [0.7, 1.0], [0.3, 0]),
        ("gold", [0.7, 1.0], [0.3, 0]),
    ],
)
def test_readings_of_the_tail(tail, mass, rest) -> None:
    soft, outside = soft_targets(LOGPROBS, tail=tail)
    torch.testing.assert_close(soft.sum(-1), torch.tensor(mass), atol=1e-5, rtol=0)
    torch.testing.assert_close(outside, torch.tensor(rest, dtype=torch.float32), atol=1e-5, rtol=0)
    torch.testing.assert_close(soft[0] / soft[0, 0], torch.tensor([1.0, 0.5, 0.25]))


def test_empty_slots_of_a_draw_weigh_nothing() -> None:
    soft, _ = soft_targets(torch.tensor([[math.log(0.75), math.log(0.25), -math.inf]]), tail="renormalise")
    assert soft[0].tolist() == pytest.approx([0.75, 0.25, 0.0])


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 0.25 * 3), ("cosine", 0.8535534 * 1.0), ("constant", 1.0)]
)
def test_schedules(schedule, middle) -> None:
    weight = [scheduled_weight(p, first=1.0, last=0.0, schedule=schedule) for p in (0.0, 0.25, 1.0)]
    assert weight[0] == 1.0
    assert weight[1] == pytest.approx(middle)
    assert weight[2] == pytest.approx(1.0 if schedule == "constant" else 0.0)
