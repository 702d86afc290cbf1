"""Losses with a live teacher, against dense formulas in float64."""

import math

import pytest
import torch
from torch.nn import functional

from polydistill.losses.live import OutputLayer, cosine_loss, live_distillation, relation_loss


def problem(num_rows: int = 11, *, size: int = 53, dtype=torch.float64):
    torch.manual_seed(3)

    def layer(width: int, scale: float):
        return OutputLayer(
            torch.randn(num_rows, width, dtype=dtype),
            scale * torch.randn(size, width, dtype=dtype),
            torch.randn(size, dtype=dtype),
        )

    student, teacher = layer(8, 0.7), layer(6, 1.3)
    for tensor in (*student, *teacher):
        tensor.requires_grad_()
    gold = torch.randint(0, size, (num_rows,))
    kd_weight, mlm_weight = torch.rand(num_rows, dtype=dtype), torch.rand(num_rows, dtype=dtype)
    mlm_weight[::3] = 0
    kd_weight[1] = 0
    return student, teacher, gold, kd_weight, mlm_weight


def dense(student, teacher, gold, kd_weight, mlm_weight, temperature):
    """As in DistilBERT: KLDivLoss of softmaxes at T, times T²; cross-entropy at 1."""
    ours = student.features @ student.weight.t() + (0 if student.bias is None else student.bias)
    theirs = teacher.features @ teacher.weight.t() + (0 if teacher.bias is None else teacher.bias)
    kd = (
        functional.kl_div(
            (ours / temperature).log_softmax(-1), (theirs / temperature).softmax(-1), reduction="none"
        ).sum(-1)
        * temperature**2
    )
    mlm = functional.cross_entropy(ours, gold, reduction="none")
    return (kd_weight * kd + mlm_weight * mlm).sum(), kd, mlm


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(("chunk", "cache_rows"), [(4, 3), (1000, 1000)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_value_and_gradients_equal_the_dense_formula(
    monkeypatch, temperature, chunk, cache_rows, scale
) -> None:
    monkeypatch.setattr("polydistill.losses.chunks.CACHE_BYTES", cache_rows * 53 * 8)
    values = problem()
    student, teacher, _, _, mlm_weight = values
    expected, kd, mlm = dense(*values, temperature)
    wanted = torch.autograd.grad(expected * scale, tuple(student))
    result = live_distillation(*values, temperature=temperature, chunk_positions=chunk)
    gradients = torch.autograd.grad(result.loss * scale, tuple(student))
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.kd, kd, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(result.mlm, torch.where(mlm_weight > 0, mlm, 0.0), rtol=1e-12, atol=1e-12)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
    again = live_distillation(*values, temperature=temperature).loss
    assert torch.autograd.grad(again, tuple(teacher), allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("chunk", "cache_rows"), [(4, 3), (5, 2), (1000, 1000)])
def test_several_teachers_in_one_pass_are_each_by_itself(monkeypatch, temperature, chunk, cache_rows) -> None:
    """Rows of three teachers of different widths, one without a bias: boundaries fall within chunks and their
    parts.
    """
    monkeypatch.setattr("polydistill.losses.chunks.CACHE_BYTES", cache_rows * 53 * 8)
    student, first, gold, kd_weight, mlm_weight = problem()
    torch.manual_seed(9)
    second = OutputLayer(
        torch.randn(11, 4, dtype=torch.float64), torch.randn(53, 4, dtype=torch.float64), None
    )
    layers, bounds = (first, second, first), (0, 2, 7, 11)
    parts = [slice(*bounds[i : i + 2]) for i in range(3)]
    teachers = [
        layer._replace(features=layer.features[part]) for layer, part in zip(layers, parts, strict=True)
    ]
    expected = [
        dense(
            student._replace(features=student.features[part]),
            teacher,
            gold[part],
            kd_weight[part],
            mlm_weight[part],
            temperature,
        )
        for teacher, part in zip(teachers, parts, strict=True)
    ]
    result = live_distillation(
        student, teachers, gold, kd_weight, mlm_weight, temperature=temperature, chunk_positions=chunk
    )
    torch.testing.assert_close(
        result.kd, torch.cat([losses[1] for losses in expected]), rtol=1e-11, atol=1e-12
    )
    total = sum(losses[0] for losses in expected)
    torch.testing.assert_close(result.loss, total, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(total, tuple(student))
    for gradient, other in zip(torch.autograd.grad(result.loss, tuple(student)), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="not the number of positions"):
        live_distillation(student, teachers[:2], gold, kd_weight, mlm_weight, temperature=temperature)


def test_the_gradient_is_that_of_small_steps() -> None:
    student, teacher, *rest = problem(3, size=7)

    def loss(features, weight, bias):
        return live_distillation(
            OutputLayer(features, weight, bias), teacher, *rest, temperature=2.0, chunk_positions=2
        ).loss

    assert torch.autograd.gradcheck(loss, tuple(student))


def test_a_student_that_predicts_as_its_teacher_has_nothing_to_learn_from_it() -> None:
    _, teacher, gold, kd_weight, mlm_weight = problem()
    result = live_distillation(
        teacher, teacher, gold, kd_weight, torch.zeros_like(mlm_weight), temperature=2.0
    )
    assert result.kd.abs().max() < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(result.loss, tuple(teacher)))


def test_mlm_is_measured_where_it_is_asked_for_without_a_weight() -> None:
    values = problem()
    student, teacher, gold, kd_weight, _ = values
    masked = torch.arange(11) < 4
    result = live_distillation(
        student, teacher, gold, kd_weight, torch.zeros(11), temperature=2.0, masked=masked
    )
    _, _, mlm = dense(*values, 2.0)
    torch.testing.assert_close(result.mlm, torch.where(masked, mlm, 0.0))
    expected = dense(student, teacher, gold, kd_weight, torch.zeros(11), 2.0)[0]
    torch.testing.assert_close(result.loss, expected)


def test_without_biases_and_without_positions() -> None:
    student, teacher, *rest = problem()
    student, teacher = student._replace(bias=None), teacher._replace(bias=None)
    result = live_distillation(student, teacher, *rest, temperature=2.0)
    torch.testing.assert_close(result.loss, dense(student, teacher, *rest, 2.0)[0])
    empty = [tensor[:0] for tensor in rest]
    none = live_distillation(
        student._replace(features=student.features[:0]),
        teacher._replace(features=teacher.features[:0]),
        *empty,
        temperature=2.0,
    )
    none.loss.backward()
    assert none.loss.item() == 0.0
    assert student.weight.grad.abs().sum() == 0


def test_bfloat16_features_keep_the_loss_near_the_dense_one() -> None:
    student, teacher, *rest = problem(64, size=300, dtype=torch.float32)
    low = OutputLayer(student.features.detach().bfloat16().requires_grad_(), student.weight, student.bias)
    result = live_distillation(
        low, teacher._replace(features=teacher.features.detach().bfloat16()), *rest, temperature=2.0
    )
    gradients = torch.autograd.grad(result.loss, tuple(low))
    expected, _, _ = dense(student, teacher, *rest, 2.0)
    assert result.loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for gradient, other in zip(gradients, torch.autograd.grad(expected, tuple(student)), strict=True):
        assert (gradient.float() - other).norm() < 0.03 * other.norm()


def dense_logits(student, teacher):
    """[N] Mean squared difference of logits, each less its mean over the vocabulary."""
    logits = [
        layer.features @ layer.weight.t() + (0 if layer.bias is None else layer.bias)
        for layer in (student, teacher)
    ]
    ours, theirs = (each - each.mean(-1, keepdim=True) for each in logits)
    return functional.mse_loss(ours, theirs, reduction="none").mean(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("chunk", "cache_rows"), [(4, 3), (1000, 1000)])
def test_logits_beside_the_others_equal_the_dense_formula(
    monkeypatch, temperature, chunk, cache_rows
) -> None:
    monkeypatch.setattr("polydistill.losses.chunks.CACHE_BYTES", cache_rows * 53 * 8)
    values = problem()
    student, teacher = values[:2]
    weight = torch.rand(11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight[4] = 0
    squares = dense_logits(student, teacher)
    expected = dense(*values, temperature)[0] + (weight * squares).sum()
    result = live_distillation(*values, temperature=temperature, logits_weight=weight, chunk_positions=chunk)
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.logits, squares, rtol=1e-11, atol=1e-12)
    gradients = torch.autograd.grad(2.5 * result.loss, tuple(student))
    wanted = torch.autograd.grad(2.5 * expected, tuple(student))
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_logits_is_that_of_small_steps() -> None:
    student, teacher, *rest = problem(3, size=7)
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)

    def loss(features, weights, bias):
        return live_distillation(
            OutputLayer(features, weights, bias),
            teacher,
            *rest,
            temperature=2.0,
            logits_weight=weight,
            chunk_positions=2,
        ).loss

    assert torch.autograd.gradcheck(loss, tuple(student))


def test_logits_are_twice_the_predictions_at_a_high_temperature() -> None:
    """Hinton et al. 2015, section 2.1: T² KL → half the mean squared difference of centred logits."""
    student, teacher, gold, kd_weight, mlm_weight = problem()
    result = live_distillation(
        student, teacher, gold, kd_weight, mlm_weight, temperature=1e4, logits_weight=torch.ones(11)
    )
    torch.testing.assert_close(2 * result.kd, result.logits, rtol=1e-3, atol=0)


def test_a_shift_of_all_logits_is_no_difference() -> None:
    _, teacher, gold, kd_weight, mlm_weight = problem()
    shifted = teacher._replace(bias=teacher.bias + 3.0)
    result = live_distillation(
        shifted, teacher, gold, kd_weight, 0 * mlm_weight, temperature=2.0, logits_weight=torch.ones(11)
    )
    assert result.logits.abs().max() < 1e-12
    without = live_distillation(shifted, teacher, gold, kd_weight, mlm_weight, temperature=2.0)
    assert not without.logits.any()


def test_cosine_is_one_minus_the_cosine() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.randn(7, 5, dtype=torch.float64) for _ in range(2))
    cosines = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
    torch.testing.assert_close(cosine_loss(ours, theirs), (1 - cosines).sum(), rtol=1e-9, atol=0)
    assert cosine_loss(ours, 3 * ours).item() == pytest.approx(0, abs=1e-9)
    assert cosine_loss(ours.bfloat16(), ours.bfloat16()).dtype == torch.float32


def by_hand(student, teacher, lengths, heads):
    """MiniLMv2 with loops: each text, relation, head and query alone, without padding."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for row, length in enumerate(lengths):
            for head in range(heads):
                sides = []
                for states in (ours, theirs):
                    size = states.shape[-1] // heads
                    block = states[row, :length, head * size : (head + 1) * size]
                    sides.append((block @ block.t() / math.sqrt(size)).softmax(-1))
                s, t = sides
                total = total + (t * (t.log() - s.log())).sum() / heads
    return total


def test_relations_equal_the_loops_and_see_no_padding() -> None:
    torch.manual_seed(0)
    student = [torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    teacher = [torch.randn(2, 5, 12, dtype=torch.float64) for _ in range(3)]
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    loss, wanted = relation_loss(student, teacher, attention, heads=2), by_hand(student, teacher, [5, 3], 2)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-12)
    gradients = zip(torch.autograd.grad(loss, student), torch.autograd.grad(wanted, student), strict=True)
    for gradient, other in gradients:
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-10)
