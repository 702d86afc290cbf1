"""Students made from a teacher's layers, against the teacher and against layers run by hand."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.errors import ModelError
from polydistill.models.extract import (
    check_extractable,
    check_extraction,
    choose_layers,
    extract_student,
    extracted_config,
)
from polydistill.models.trim import trim_model

SMALL = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
ARCHITECTURES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 16},
    "modernbert": {
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 4,
    },
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 48},
    "deberta-v2": {},
    "mpnet": {},
    "camembert": {},
    "roformer": {"embedding_size": 32},
}
# RoBERTa's type table has two rows by default, one in published checkpoints.
WITH_TYPES = ("bert", "electra", "roberta", "xlm-roberta", "camembert")


def make_teacher(model_type: str):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(model_type, **(SMALL | ARCHITECTURES[model_type]))
    )
    # Fresh rows and biases are near zero, where a wrong one would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def extract(teacher, init, num_layers=None, *, max_length=32, **fields):
    size, layers = choose_layers(init, num_layers, teacher.config.num_hidden_layers)
    config = extracted_config(
        teacher.config, fields, num_layers=size, layers=layers, special_ids=ROLES, max_length=max_length
    )
    student, record = extract_student(teacher, config, layers, seed=0)
    return student.eval(), record


def logits(model, ids, attention):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=attention).logits


def batch():
    ids = torch.randint(5, 90, (3, 20), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(ids)
    attention[1, 12:] = 0
    return ids, attention


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_student_with_all_layers_is_its_teacher(model_type) -> None:
    teacher = make_teacher(model_type)
    student, record = extract(teacher, "stride", 4)
    ids, attention = batch()
    actual, wanted = logits(student, ids, attention), logits(teacher, ids, attention)
    seen = attention.bool()
    if model_type in WITH_TYPES:
        assert record["token_types"] == "row 0 in the positions"
        torch.testing.assert_close(actual[seen], wanted[seen], atol=2e-4, rtol=1e-5)
    else:
        assert torch.equal(actual[seen], wanted[seen])
    assert student.num_parameters() <= teacher.num_parameters()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_student_of_some_layers_is_the_teacher_without_the_others(model_type) -> None:
    """The oracle removes the other layers from the teacher's own list and does not depend on names."""
    teacher = make_teacher(model_type)
    student, _ = extract(teacher, [0, 3])
    assert student.config.num_hidden_layers == 2
    lists = [m for m in teacher.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4]
    del lists[0][1:3]
    ids, attention = batch()
    actual, wanted = logits(student, ids, attention), logits(teacher, ids, attention)
    seen = attention.bool()
    torch.testing.assert_close(actual[seen], wanted[seen], atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert", "distilbert", "electra"])
def test_trimmed_first_it_still_is_its_teacher(model_type) -> None:
    teacher = make_teacher(model_type)
    kept = torch.tensor([0, 1, 2, 3, 4, *range(10, 60, 2)]).numpy()
    student, _ = extract(trim_model(teacher, kept), "stride", 4)
    ids = torch.randint(5, len(kept), (2, 15), generator=torch.Generator().manual_seed(2))
    attention = torch.ones_like(ids)
    wanted = logits(teacher, torch.from_numpy(kept)[ids], attention)[..., torch.from_numpy(kept)]
    torch.testing.assert_close(logits(student, ids, attention), wanted, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("model_type", WITH_TYPES)
def test_token_types_are_gone_for_good(model_type) -> None:
    """One row of zeros, which training does not touch; random students have it too."""
    for init in ("stride", "random"):
        student, _ = extract(make_teacher(model_type), init)
        rows = {name: p for name, p in student.named_parameters() if "token_type" in name}
        assert [len(p) for p in rows.values()] == [1]
        assert all(not p.requires_grad and not p.any() for p in rows.values())


def test_a_random_student_has_no_weight_of_its_teacher() -> None:
    teacher = make_teacher("bert")
    student, record = extract(teacher, "random", 2)
    assert record["layers"] is None
    theirs = teacher.get_input_embeddings().weight
    assert not torch.isclose(student.get_input_embeddings().weight, theirs).all(-1).any()
    again, _ = extract(teacher, "random", 2)
    assert torch.equal(student.get_input_embeddings().weight, again.get_input_embeddings().weight)
    narrow, _ = extract(teacher, "random", 2, hidden_size=16)
    assert narrow.config.hidden_size == 16


@pytest.mark.parametrize(
    ("init", "size", "depth", "wanted"),
    [
        ("stride", None, 12, [0, 2, 4, 6, 8, 10]),
        ("stride", 4, 12, [0, 3, 6, 9]),
        ("distilbert", 6, 12, [0, 2, 4, 7, 9, 11]),
        ("distilbert", 3, 4, [0, 2, 3]),
        ("distilbert", 1, 4, [0]),
        ("bottom", 3, 12, [0, 1, 2]),
        ("top", 3, 12, [9, 10, 11]),
        ([5, 1], None, 6, [5, 1]),
        ("random", None, 7, None),
        ("stride", None, 1, [0]),
    ],
)
def test_which_layers(init, size, depth, wanted) -> None:
    number, layers = choose_layers(init, size, depth)
    assert layers == wanted
    assert number == (len(wanted) if wanted else 3)


def test_layers_keep_their_kind_of_attention() -> None:
    """ModernBERT's layers 0 and 3 attend globally, 1 and 2 locally."""
    student, _ = extract(make_teacher("modernbert"), [0, 2, 3])
    assert student.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("init", "size", "wanted"),
    [
        ("stride", 5, ["student.num_layers 5", "the teacher has 4 layers"]),
        ("random", 9, ["student.num_layers 9"]),
        ([0, 4], None, ["student.init '[0, 4]'", "no layer 4", "from 0 to 3"]),
    ],
)
def test_layers_that_are_not_there(init, size, wanted) -> None:
    with pytest.raises(ModelError) as caught:
        choose_layers(init, size, 4)
    for part in wanted:
        assert part in str(caught.value)


@pytest.mark.parametrize("layers", [[2, 3], [1, 0]])
def test_modernberts_first_layer_stays_the_first(layers) -> None:
    with pytest.raises(ModelError, match=r"cannot be student layer 0.*attn_norm.weight"):
        extract(make_teacher("modernbert"), layers)


def test_a_student_of_another_shape_cannot_start_from_layers() -> None:
    teacher = make_teacher("bert").config
    config = extracted_config(
        teacher, {"intermediate_size": 20}, num_layers=2, layers=[0, 2], special_ids=ROLES, max_length=32
    )
    with pytest.raises(ModelError, match=r"intermediate.*init: random"):
        check_extraction(config, teacher, [0, 2])


def test_depth_is_not_the_configurations_to_say() -> None:
    for model_type, name in (("bert", "num_hidden_layers"), ("distilbert", "n_layers")):
        with pytest.raises(ModelError, match=rf"student.config.{name} 2.*student.num_layers"):
            extract(make_teacher(model_type), "stride", **{name: 2})


def test_teachers_that_have_no_layers_to_give() -> None:
    albert = AutoConfig.for_model("albert")
    with pytest.raises(ModelError, match=r"teacher 'a/b': albert shares.*vocab trim"):
        check_extractable(albert, "a/b")
    discriminator = AutoConfig.for_model("electra", architectures=["ElectraForPreTraining"])
    with pytest.raises(ModelError, match=r"discriminator.*generator"):
        check_extractable(discriminator, "a/b")
