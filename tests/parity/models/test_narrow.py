"""Narrower students of a teacher's weights, against the teacher with the dropped parts made powerless."""

import numpy as np
import pytest
import torch
from tests.parity.models.test_extract import ARCHITECTURES, ROLES, SMALL, batch, logits
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.errors import ModelError
from polydistill.masking import Masked
from polydistill.models.extract import check_extraction, choose_layers, extract_student, extracted_config
from polydistill.models.importance import measure_importance, read_importance, write_importance
from polydistill.models.narrow import (
    Importance,
    Narrowing,
    first_parts,
    most_important,
    narrowing_record,
    width_fields,
)

# Head size 8; the feed-forward part is as wide as the residual stream, so that no shape tells them apart.
WIDE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 3}
MORE = {
    "distilbert": {"dim": 32, "n_heads": 4, "hidden_dim": 32, "n_layers": 3},
    "modernbert": ARCHITECTURES["modernbert"],
}
NARROWED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "modernbert")
GIVEN = {"hidden_size": 16, "intermediate_size": 12, "num_attention_heads": None}


def make_teacher(model_type: str):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(model_type, **(SMALL | WIDE | MORE.get(model_type, {})))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def some_texts(number: int = 12) -> list[Masked]:
    draw = np.random.default_rng(3)
    texts = []
    for _ in range(number):
        length = int(draw.integers(8, 20))
        positions = np.sort(draw.choice(length, 3, replace=False))
        texts.append(Masked(draw.integers(5, 90, length), positions, draw.integers(5, 90, 3)))
    return texts


def student_config_of(teacher, widths=GIVEN, init="stride", num_layers=3):
    size, layers = choose_layers(init, num_layers, teacher.config.num_hidden_layers)
    fields = width_fields(teacher.config, widths, {}, copied=True)
    config = extracted_config(
        teacher.config, fields, num_layers=size, layers=layers, special_ids=ROLES, max_length=32
    )
    return config, layers


def random_parts(teacher, hidden: int, heads: int, units: int) -> Narrowing:
    """Other parts in every layer."""
    draw = np.random.default_rng(5)

    def some(of: int, number: int):
        return np.sort(draw.choice(of, number, replace=False))

    return Narrowing(
        some(32, hidden), tuple(some(4, heads) for _ in range(3)), tuple(some(32, units) for _ in range(3))
    )


class NormOf(nn.Module):
    """A norm that knows the kept dimensions alone, and returns 0 in the others."""

    def __init__(self, norm: nn.LayerNorm, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        norm, kept = self.norm, self.kept
        bias = None if norm.bias is None else norm.bias[kept]
        some = functional.layer_norm(states[..., kept], (len(kept),), norm.weight[kept], bias, norm.eps)
        return torch.zeros_like(states).index_copy(-1, kept, some)


def powerless(teacher, parts: Narrowing) -> None:
    """Make all but some parts of a teacher powerless, by modules found without the code under test.

    Every reader of the residual stream reads it through a norm. The output weights of dropped heads and units
    are 0.
    """
    kept = torch.from_numpy(parts.hidden)
    for module in list(teacher.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, NormOf(child, kept))
    layers = next(m for m in teacher.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    for layer, heads, units in zip(layers, parts.heads, parts.units, strict=True):
        linear = [(name, m) for name, m in layer.named_modules() if isinstance(m, nn.Linear)]
        # In the order in which they compute: the attention's output is before the feed-forward part.
        out = next(m for name, m in linear if name.endswith(("attention.output.dense", "out_lin", "attn.Wo")))
        down = linear[-1][1]
        assert down is not out
        with torch.no_grad():
            out.weight[:, [i for i in range(32) if i // 8 not in heads]] = 0
            down.weight[:, [i for i in range(32) if i not in units]] = 0


@pytest.mark.parametrize("model_type", NARROWED)
@pytest.mark.parametrize(
    "widths",
    [
        GIVEN,
        {"hidden_size": 24, "intermediate_size": None, "num_attention_heads": 3},
        {"hidden_size": None, "intermediate_size": 20, "num_attention_heads": None},
    ],
)
def test_a_narrower_student_is_its_teacher_without_the_dropped_parts(model_type, widths) -> None:
    teacher = make_teacher(model_type)
    config, layers = student_config_of(teacher, widths)
    hidden, units = widths["hidden_size"] or 32, widths["intermediate_size"] or 32
    parts = random_parts(teacher, hidden, hidden // 8, units)
    student, _ = extract_student(teacher, config, layers, seed=0, narrowing=parts)
    assert (config.hidden_size, config.num_attention_heads) == (hidden, hidden // 8)
    powerless(teacher, parts)
    ids, attention = batch()
    seen = attention.bool()
    actual, wanted = logits(student.eval(), ids, attention), logits(teacher, ids, attention)
    torch.testing.assert_close(actual[seen], wanted[seen], atol=2e-4, rtol=1e-4)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("model_type", NARROWED)
def test_parts_without_effect_are_the_ones_that_go(model_type) -> None:
    """Units whose output and input are 0 have importance 0: without them the student is its teacher."""
    teacher = make_teacher(model_type)
    gone = random_parts(teacher, 32, 4, 12)
    layers = next(m for m in teacher.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    for layer, units in zip(layers, gone.units, strict=True):
        down = [m for m in layer.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            down.weight[:, units] = 0
    importance = measure_importance(teacher, some_texts(), pad_id=0, batch_tokens=64)
    config, chosen = student_config_of(teacher, {"intermediate_size": 20})
    parts = most_important(importance, config)
    for scores, kept, units in zip(importance.units, parts.units, gone.units, strict=True):
        assert set(kept) == set(range(32)) - set(units)
        assert not scores[units].any()
    student, _ = extract_student(teacher, config, chosen, seed=0, narrowing=parts)
    ids, attention = batch()
    actual, wanted = logits(student.eval(), ids, attention), logits(teacher, ids, attention)
    seen = attention.bool()
    torch.testing.assert_close(actual[seen], wanted[seen], atol=2e-4, rtol=1e-4)


def by_hand(teacher, texts, batch_tokens: int):
    """Importances from whole logits and each weight's slices, named here by hand, for BERT and ModernBERT."""
    fused = teacher.config.model_type == "modernbert"
    hidden, heads, units = np.zeros(32), np.zeros((3, 4)), np.zeros((3, 32))
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index].input_ids))
    groups, group = [], []
    for index in order:
        longest = -(-len(texts[(group or [index])[0]].input_ids) // 8) * 8
        if (len(group) + 1) * longest > batch_tokens and group:
            groups, group = [*groups, group], []
        group = [*group, index]
    for chosen in [*groups, group]:
        losses = []
        for index in chosen:
            text = texts[index]
            out = teacher(input_ids=torch.from_numpy(text.input_ids)[None]).logits[0]
            losses += [
                functional.cross_entropy(out[p], torch.tensor(int(g)))
                for p, g in zip(text.positions, text.gold, strict=True)
            ]
        teacher.zero_grad()
        torch.stack(losses).mean().backward()
        for name, weight in teacher.named_parameters():
            change = (weight.grad * weight.detach()).abs().double().numpy()
            if "layer" not in name:
                if name.endswith(("predictions.bias", "decoder.bias")):
                    continue
                if "embeddings" in name and change.ndim == 2:
                    hidden += change.sum(0)
                elif change.ndim == 2:
                    hidden += change.sum(0) + change.sum(1)
                else:
                    hidden += change
                continue
            layer = int(name.split("layers." if fused else "layer.")[1].split(".")[0])
            rows = change.reshape(len(change), -1).sum(1)
            columns = change.sum(0) if change.ndim == 2 else None
            if any(part in name for part in (".query.", ".key.", ".value.")):
                heads[layer] += rows.reshape(4, 8).sum(1)
                hidden += columns if columns is not None else 0
            elif "Wqkv" in name:
                heads[layer] += sum(rows[32 * i : 32 * i + 32].reshape(4, 8).sum(1) for i in range(3))
                hidden += columns
            elif "attention.output.dense" in name or "attn.Wo" in name:
                hidden += rows
                heads[layer] += columns.reshape(4, 8).sum(1) if columns is not None else 0
            elif "intermediate" in name or "mlp.Wi" in name:
                units[layer] += rows[:32] + (rows[32:] if fused else 0)
                hidden += columns if columns is not None else 0
            elif "output.dense" in name or "mlp.Wo" in name:
                hidden += rows
                units[layer] += columns if columns is not None else 0
            else:
                assert "norm" in name.lower()
                hidden += rows
    return hidden, heads, units


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_importances_are_the_sums_by_hand(model_type) -> None:
    teacher, texts = make_teacher(model_type), some_texts()
    importance = measure_importance(teacher, texts, pad_id=0, batch_tokens=64)
    for scores, wanted in zip(importance, by_hand(teacher, texts, 64), strict=True):
        np.testing.assert_allclose(scores, wanted, rtol=2e-3)
    again = measure_importance(teacher, texts, pad_id=0, batch_tokens=64)
    assert all(np.array_equal(one, two) for one, two in zip(importance, again, strict=True))


def test_importance_is_the_change_of_the_loss_when_a_weight_goes() -> None:
    """For one weight at a time: a unit whose only weights are small, removed by a small step."""
    teacher = make_teacher("bert")
    texts = some_texts(2)
    intermediate = teacher.bert.encoder.layer[1].intermediate.dense
    output = teacher.bert.encoder.layer[1].output.dense
    with torch.no_grad():
        intermediate.weight[7] = 0
        intermediate.bias[7] = 1.0
        output.weight[:, 7] = 0
        output.weight[3, 7] = 1e-3

    def loss() -> float:
        total = []
        with torch.no_grad():
            for text in texts:
                out = teacher(input_ids=torch.from_numpy(text.input_ids)[None]).logits[0]
                total += [
                    functional.cross_entropy(out[p].double(), torch.tensor(int(g))).item()
                    for p, g in zip(text.positions, text.gold, strict=True)
                ]
        return float(np.mean(total))

    # Of the unit's weights, the two that are not 0 matter: one written, one read.
    importance = measure_importance(teacher, texts, pad_id=0, batch_tokens=4096).units[1, 7]
    changes = []
    for weight, place in ((output.weight, (3, 7)), (intermediate.bias, (7,))):
        before, value = loss(), float(weight.detach()[place])
        with torch.no_grad():
            weight[place] = value * (1 - 0.1)
        changes.append(abs(loss() - before) / 0.1)
        with torch.no_grad():
            weight[place] = value
    assert importance == pytest.approx(sum(changes), rel=0.05)


def test_what_is_chosen_and_what_is_said_of_it() -> None:
    importance = Importance(
        np.array([1.0, 5.0, 2.0, 2.0]), np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[0.0, 4, 6], [1, 0, 1]])
    )
    config = AutoConfig.for_model("bert", hidden_size=2, num_attention_heads=1, intermediate_size=2)
    parts = most_important(importance, config)
    assert parts.hidden.tolist() == [1, 2]
    assert [heads.tolist() for heads in parts.heads] == [[0], [0]]
    assert [units.tolist() for units in parts.units] == [[1, 2], [0, 2]]
    assert narrowing_record(importance, parts) == {
        "hidden_size": {"kept": 2, "of": 4, "importance": 0.7},
        "num_attention_heads": {"kept": 1, "of": 2, "importance": round(4 / 6, 4)},
        "intermediate_size": {"kept": 2, "of": 3, "importance": 1.0},
    }


def test_importances_are_read_as_they_were_written(tmp_path) -> None:
    importance = Importance(np.array([1.5, 0.0]), np.array([[3.0]]), np.array([[1e-9, 4, 6]]))
    write_importance(importance, tmp_path)
    again = read_importance(tmp_path)
    assert all(np.array_equal(one, two) for one, two in zip(importance, again, strict=True))


@pytest.mark.parametrize(
    ("model_type", "given", "wanted"),
    [
        ("bert", {"hidden_size": 16}, {"hidden_size": 16, "num_attention_heads": 2}),
        ("bert", {"num_attention_heads": 3}, {"hidden_size": 24, "num_attention_heads": 3}),
        ("distilbert", {"hidden_size": 8, "intermediate_size": 9}, {"dim": 8, "n_heads": 1, "hidden_dim": 9}),
        ("modernbert", {"intermediate_size": 9}, {"intermediate_size": 9}),
        ("bert", {"hidden_size": None}, {}),
    ],
)
def test_heads_keep_their_size(model_type, given, wanted) -> None:
    assert width_fields(make_teacher(model_type).config, given, {}, copied=True) == wanted


@pytest.mark.parametrize(
    ("model_type", "given", "fields", "wanted"),
    [
        ("bert", {"hidden_size": 20}, {}, ["student.hidden_size 20", "multiple of 8", "give 16 or 24"]),
        ("bert", {"hidden_size": 4}, {}, ["multiple of 8", "give 8,"]),
        (
            "bert",
            {"hidden_size": 16, "num_attention_heads": 4},
            {},
            ["student.hidden_size 16", "4 times 8", "leave num_attention_heads out: it is 2"],
        ),
        ("bert", {"hidden_size": 40}, {}, ["student.hidden_size 40", "the teacher has 32"]),
        ("bert", {"intermediate_size": 33}, {}, ["student.intermediate_size 33", "the teacher has 32"]),
        ("bert", {"num_attention_heads": 5}, {}, ["student.num_attention_heads 5", "the teacher has 4"]),
        ("bert", {"hidden_size": 16}, {"hidden_size": 8}, ["student.config.hidden_size 8", "give it once"]),
        ("distilbert", {"hidden_size": 16}, {"dim": 16}, ["student.config.dim 16", "give it once"]),
        (
            "mpnet",
            {"hidden_size": 16},
            {},
            ["student.hidden_size 16", "mpnet", "bert, roberta", "init: random"],
        ),
    ],
)
def test_widths_that_cannot_be(model_type, given, fields, wanted) -> None:
    config = AutoConfig.for_model(model_type, **(SMALL | WIDE | MORE.get(model_type, {})))
    with pytest.raises(ModelError) as caught:
        width_fields(config, given, fields, copied=True)
    assert [part for part in wanted if part not in str(caught.value)] == []


def test_random_students_have_any_width() -> None:
    config = make_teacher("bert").config
    assert width_fields(config, {"hidden_size": 20}, {}, copied=False) == {"hidden_size": 20}


def test_shapes_are_checked_without_weights() -> None:
    teacher = make_teacher("modernbert")
    config, layers = student_config_of(teacher, init=[0, 2], num_layers=None)
    check_extraction(config, teacher.config, layers, first_parts(config, teacher.config))
    with pytest.raises(ModelError, match=r"student.hidden_size.*init: random"):
        check_extraction(config, teacher.config, layers)
