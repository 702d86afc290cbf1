"""Training with a live teacher: what it minimises, and that a stop changes nothing."""

import pytest
import torch
from tests.training import SMALL, Rows, SameOrder, difference, make_model, short_training, stop_at
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.config.extract import Losses, LossWeight
from polydistill.errors import NumericsError
from polydistill.training.data import collate, expected_size
from polydistill.training.live_teacher import LiveTeacher
from polydistill.training.objectives import weight_at
from polydistill.training.run import train
from polydistill.training.sampler import LanguageSampler

TEACHER = SMALL | {"num_hidden_layers": 2, "hidden_dropout_prob": 0.1}
ROWS = [Rows(40, 1, teacher=False)]


def make_teacher(**fields):
    torch.manual_seed(5)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **(TEACHER | fields)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def trained(folder, *, steps=1, teacher=None, losses=None, student=None, **arguments):
    model = student or make_model()
    values = short_training(steps, **arguments)
    live = LiveTeacher(teacher or make_teacher(), Losses.model_validate(losses or {}), torch.float32)
    log = train(
        model,
        {"a": ROWS[0]},
        [1.0],
        folder=folder,
        arguments=values,
        objective=live,
        pad_id=0,
        max_length=64,
        seed=7,
        say=lambda line: None,
    )
    return model, log


def dense(student, teacher, batch, heads=2):
    """Each loss from whole models' outputs, as in DistilBERT's code and MiniLMv2's paper."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, theirs = (
            m.eval()(**inputs, output_hidden_states=True, output_attentions=False) for m in (student, teacher)
        )
    attended = batch["attention_mask"].flatten().bool()
    masked = torch.zeros_like(attended).index_fill(0, batch["positions"], True)
    flat = [outputs.logits.flatten(0, 1) for outputs in (ours, theirs)]
    divergence = functional.kl_div(
        (flat[0] / 2).log_softmax(-1), (flat[1] / 2).softmax(-1), reduction="none"
    ).sum(-1)
    hidden = [outputs.hidden_states[-1].flatten(0, 1)[attended] for outputs in (ours, theirs)]
    ones = torch.ones(len(hidden[0]))
    relation = 0.0
    for name in ("query", "key", "value"):
        logprobs = []
        for model, outputs in ((student, ours), (teacher, theirs)):
            layer = getattr(model.bert.encoder.layer[-1].attention.self, name)
            states = layer(outputs.hidden_states[-2]).unflatten(-1, (heads, -1)).transpose(1, 2)
            scores = states @ states.transpose(2, 3) / states.shape[-1] ** 0.5
            scores = scores.masked_fill(batch["attention_mask"][:, None, None] == 0, -torch.inf)
            logprobs.append(scores.log_softmax(-1))
        each = (logprobs[1].exp() * (logprobs[1] - logprobs[0])).nan_to_num(0.0).sum(-1).mean(1)
        relation = relation + each.flatten()[attended].mean()
    return {
        "attended": 4 * divergence[attended].mean(),
        "masked": 4 * divergence[masked].mean(),
        **{
            f"logits, {name}": functional.mse_loss(
                *[each - each.mean(-1, keepdim=True) for each in flat], reduction="none"
            )
            .mean(-1)[where]
            .mean()
            for name, where in (("attended", attended), ("masked", masked))
        },
        "mlm": functional.cross_entropy(flat[0][batch["positions"]], batch["ids"][:, 0]),
        "cosine": functional.cosine_embedding_loss(*hidden, ones),
        "relation": relation,
    }


@pytest.mark.parametrize("positions", ["attended", "masked"])
def test_the_first_loss_is_the_dense_formula(tmp_path, positions) -> None:
    losses = {"relation": 3, "positions": positions, "logits": 0.5}
    _, log = trained(tmp_path, losses=losses)
    sampler = LanguageSampler([ROWS[0].lengths], [1.0], batch_size=8, num_batches=1, seed=7)
    batch = collate([ROWS[0].example(row, epoch, language) for language, row, epoch in sampler], 0)
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        wanted = dense(make_model(), make_teacher(), batch)
    assert log[0]["kd_loss"] == pytest.approx(wanted[positions].item(), abs=1e-4)
    assert log[0]["logits_loss"] == pytest.approx(wanted[f"logits, {positions}"].item(), rel=1e-4)
    for name in ("mlm", "cosine", "relation"):
        assert log[0][f"{name}_loss"] == pytest.approx(wanted[name].item(), abs=1e-4), name
    # Each is a mean over this step's positions; the loss divides by a step's average number.
    size = expected_size([ROWS[0]], [1.0], 8)
    masked, tokens = len(batch["positions"]) / size.masked, int(batch["attention_mask"].sum()) / size.tokens
    seen = tokens if positions == "attended" else masked
    total = (
        (5 * wanted[positions] + 0.5 * wanted[f"logits, {positions}"]) * seen
        + 2 * wanted["mlm"] * masked
        + (wanted["cosine"] + 3 * wanted["relation"]) * tokens
    )
    assert abs(masked - 1) > 0.01
    assert abs(tokens - 1) > 0.01
    assert log[0]["loss"] == pytest.approx(total.item(), abs=2e-3)


def test_accumulation_changes_nothing(tmp_path) -> None:
    """Two micro-batches with different numbers of tokens and masks equal one batch of both."""

    settings = {"optim": "sgd", "max_grad_norm": 0, "steps": 2, "losses": {"relation": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.run.LanguageSampler", SameOrder)
        whole, _ = trained(tmp_path / "a", per_device_train_batch_size=16, **settings)
        parts, _ = trained(tmp_path / "b", gradient_accumulation_steps=2, **settings)
    assert difference(whole, parts) < 1e-5
    assert difference(whole, make_model()) > 1e-3


def test_resuming_gives_the_same_weights_and_the_teacher_stays(tmp_path) -> None:
    """With dropout in the student, and a weight that fades."""

    def student():
        torch.manual_seed(0)
        return AutoModelForMaskedLM.from_config(
            AutoConfig.for_model("bert", **(SMALL | {"hidden_dropout_prob": 0.1}))
        )

    teacher, losses = make_teacher(), {"kd": {"first": 5, "last": 0}}
    whole, log = trained(tmp_path / "a", steps=8, student=student(), teacher=teacher, losses=losses)
    assert [entry["kd_weight"] for entry in log if "kd_weight" in entry][-1] == pytest.approx(0.0)
    assert difference(teacher, make_teacher()) == 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydistill.training.trainer.DistillationTrainer.check", stop_at(5))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "b", steps=8, student=student(), losses=losses, save_steps=3)
    resumed, log = trained(tmp_path / "b", steps=8, student=student(), losses=losses, save_steps=3)
    assert difference(whole, resumed) == 0.0
    assert [entry["step"] for entry in log if "mlm_loss" in entry] == list(range(1, 9))


def test_a_loss_without_weight_is_not_computed(tmp_path) -> None:
    """With MLM alone the teacher never runs: it would fail."""
    teacher = make_teacher()
    teacher.forward = None
    _, log = trained(tmp_path, teacher=teacher, losses={"kd": 0, "cosine": 0, "mlm": 1})
    sampler = LanguageSampler([ROWS[0].lengths], [1.0], batch_size=8, num_batches=1, seed=7)
    count = sum(len(ROWS[0].example(row, 0, 0).positions) for _, row, _ in sampler)
    share = count / expected_size([ROWS[0]], [1.0], 8).masked
    assert log[0]["loss"] == pytest.approx(log[0]["mlm_loss"] * share, abs=1e-3)
    assert "kd_loss" not in log[0]


def test_widths_may_differ_without_the_cosine(tmp_path) -> None:
    teacher = make_teacher(hidden_size=32, num_attention_heads=4)
    _, log = trained(
        tmp_path, steps=30, teacher=teacher, losses={"cosine": 0, "relation": 1, "relation_heads": 2}
    )
    losses = [entry["loss"] for entry in log if "mlm_loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_logits_alone_teach(tmp_path) -> None:
    """Without KD the teacher still runs, and its predictions come nearer."""
    losses = {"kd": 0, "mlm": 0, "cosine": 0, "logits": {"first": 1, "last": 0.5}}
    _, log = trained(tmp_path, steps=30, losses=losses)
    steps = [entry for entry in log if "mlm_loss" in entry]
    assert "kd_loss" not in steps[0]
    # Logged after the first of 30 steps.
    assert [steps[0]["logits_weight"], steps[-1]["logits_weight"]] == [
        pytest.approx(1 - 0.5 / 29, abs=1e-5),
        0.5,
    ]
    assert steps[-1]["logits_loss"] < 0.9 * steps[0]["logits_loss"]


def test_the_cosine_of_a_narrower_student_is_of_the_dimensions_that_it_has(tmp_path) -> None:
    """The first step's, against hidden states of whole models."""
    teacher = make_teacher(hidden_size=32, num_attention_heads=4)
    dimensions = torch.tensor([1, 4, 5, 8, 9, 10, 13, 17, 18, 20, 21, 23, 24, 26, 29, 31])
    objective = LiveTeacher(teacher, Losses.model_validate({}), torch.float32, dimensions)
    log = train(
        make_model(),
        {"a": ROWS[0]},
        [1.0],
        folder=tmp_path,
        arguments=short_training(1),
        objective=objective,
        pad_id=0,
        max_length=64,
        seed=7,
        say=lambda line: None,
    )
    sampler = LanguageSampler([ROWS[0].lengths], [1.0], batch_size=8, num_batches=1, seed=7)
    batch = collate([ROWS[0].example(row, epoch, language) for language, row, epoch in sampler], 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, theirs = (
            m.eval()(**inputs, output_hidden_states=True).hidden_states[-1] for m in (make_model(), teacher)
        )
    cosines = functional.cosine_similarity(ours, theirs[..., dimensions], dim=-1)
    wanted = (1 - cosines)[batch["attention_mask"].bool()].mean().item()
    assert log[0]["cosine_loss"] == pytest.approx(wanted, abs=1e-4)


def test_nan_stops_training(tmp_path) -> None:
    with pytest.raises(NumericsError, match="step"):
        trained(tmp_path, steps=30, learning_rate=1e30, optim="sgd", max_grad_norm=0)


@pytest.mark.parametrize(
    ("weight", "middle", "end"),
    [
        ({"first": 4, "last": 0}, 3.0, 0.0),
        ({"first": 4, "last": 0, "schedule": "cosine"}, 4 * 0.8535534, 0.0),
        ({"first": 4, "last": 0, "schedule": "constant"}, 4.0, 4.0),
        ({"first": 4}, 4.0, 4.0),
    ],
)
def test_weights_over_time(weight, middle, end) -> None:
    weights = [weight_at(LossWeight.model_validate(weight), progress) for progress in (0.0, 0.25, 1.0)]
    assert weights == pytest.approx([4.0, middle, end])
