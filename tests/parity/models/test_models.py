"""Features at masked positions on every architecture, students, and starting from teachers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.errors import ModelError
from polydistill.models.features import masked_features, output_layer
from polydistill.models.load import load_masked_lm
from polydistill.models.student import TeacherRows, build_student, start_from_teachers, student_config
from polydistill.padding import ROWS_MULTIPLE
from polydistill.tokenization.load import load_tokenizer
from polydistill.tokenization.union import unite

SMALL = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {},
    "roformer": {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "mpnet": {},
    "camembert": {},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_features_make_the_logits_of_the_whole_model(model_type) -> None:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(model_type, **(SMALL | ARCHITECTURES[model_type]))
    ).eval()
    ids = torch.randint(5, 90, (3, 16))
    attention = torch.ones_like(ids)
    attention[1, 12:] = 0
    inputs = {"input_ids": ids, "attention_mask": attention}
    positions = torch.tensor([1, 7, 16 + 3, 32 + 15])
    with torch.no_grad():
        logits = model(**inputs).logits.reshape(48, -1)[positions]
        features = masked_features(model, inputs, positions)
        weight, bias = output_layer(model)
        made = features @ weight.t() + (0 if bias is None else bias)
    torch.testing.assert_close(made, logits, atol=1e-5, rtol=1e-5)
    # All positions of one sequence, in any order.
    order = torch.randperm(16)
    with torch.no_grad():
        alone = masked_features(model, {"input_ids": ids[:1], "attention_mask": attention[:1]}, order)
        whole = model(input_ids=ids[:1], attention_mask=attention[:1]).logits[0, order]
    torch.testing.assert_close(
        alone @ weight.t() + (0 if bias is None else bias), whole, atol=1e-5, rtol=1e-5
    )
    # The hooks are removed: the model is unchanged.
    assert model(**inputs).logits.shape == (3, 16, 90)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_head_sees_masked_positions_alone(model_type) -> None:
    """Rows of the head's linear layers, except the last, which makes logits: see `polydistill.padding`."""
    config = AutoConfig.for_model(model_type, **(SMALL | ARCHITECTURES[model_type]))
    model = AutoModelForMaskedLM.from_config(config).eval()
    inside = set(model.base_model.modules())
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m not in inside]
    seen = []
    for layer in head:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[:-1].numel()))
    inputs = {"input_ids": torch.randint(5, 90, (3, 16)), "attention_mask": torch.ones(3, 16)}
    with torch.no_grad():
        masked_features(model, inputs, torch.tensor([1, 7, 20, 47]))
    assert len(seen) == len(head) > 1
    # Four, padded to a group; not the batch's 48.
    assert set(seen) <= {ROWS_MULTIPLE, 0}


def masked_loss(model, inputs, positions, whole):
    """A loss at positions, from all logits or from features; the gradient of every parameter by name."""
    torch.manual_seed(1)
    model.zero_grad()
    if whole:
        logits = model(**inputs).logits.flatten(0, 1)[positions]
    else:
        features = masked_features(model, inputs, positions)
        weight, bias = output_layer(model)
        logits = features @ weight.t() + (0 if bias is None else bias)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(positions)) + 5).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_last_layer_at_masked_positions_has_the_gradients_of_a_whole_one(model_type) -> None:
    """The batch's first position is among them, which padding repeats."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SMALL | ARCHITECTURES[model_type]))
    model = AutoModelForMaskedLM.from_config(config).eval()
    inputs = {"input_ids": torch.randint(5, 90, (3, 16)), "attention_mask": torch.ones(3, 16)}
    positions = torch.tensor([0, 7, 19, 47])
    wanted = masked_loss(model, inputs, positions, whole=True)
    made = masked_loss(model, inputs, positions, whole=False)
    assert set(made) <= set(wanted)
    for name, gradient in wanted.items():
        found = made.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "distilbert", "deberta-v2", "albert"])
def test_the_last_feed_forward_part_runs_at_masked_positions_alone(model_type) -> None:
    config = AutoConfig.for_model(model_type, **(SMALL | ARCHITECTURES[model_type]))
    model = AutoModelForMaskedLM.from_config(config).eval()
    seen: dict[str, int] = {}
    for name, layer in model.base_model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, arguments, name=name: seen.update({name: arguments[0].shape[:-1].numel()})
            )
    inputs = {"input_ids": torch.randint(5, 90, (3, 16)), "attention_mask": torch.ones(3, 16)}
    with torch.no_grad():
        masked_features(model, inputs, torch.tensor([1, 7, 20, 47]))
    few = {name for name, rows in seen.items() if rows == ROWS_MULTIPLE}
    assert len(few) == (0 if model_type == "albert" else 2)
    assert all(f".{config.num_hidden_layers - 1}." in name for name in few)
    if model_type == "albert":
        return
    # A checkpointed layer runs again in the backward pass, without hooks.
    model.gradient_checkpointing_enable()
    with torch.no_grad():
        masked_features(model, inputs, torch.tensor([1, 7, 20, 47]))
    assert ROWS_MULTIPLE not in seen.values()


# A layer runs on other shapes, several times, by language or in chunks: it must stay whole.
ELSEWHERE = {
    "longformer": {"attention_window": 8},
    "big_bird": {"attention_type": "original_full"},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "convbert": {"embedding_size": 32},
    "squeezebert": {"embedding_size": 32},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "albert, a group twice": {"embedding_size": 16, "inner_group_num": 2},
    "deberta-v2, convolved": {"num_hidden_layers": 1, "conv_kernel_size": 3, "conv_act": "gelu"},
    "bert, in chunks": {"chunk_size_feed_forward": 4},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_layers_stay_whole(name) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition(",")[0], **(SMALL | ELSEWHERE[name]))
    model = AutoModelForMaskedLM.from_config(config).eval()
    inputs = {"input_ids": torch.randint(5, 90, (3, 12)), "attention_mask": torch.ones(3, 12)}
    positions = torch.tensor([1, 7, 14, 35])
    with torch.no_grad():
        wanted = model(**inputs).logits.flatten(0, 1)[positions]
        features = masked_features(model, inputs, positions)
        weight, bias = output_layer(model)
        made = features @ weight.t() + (0 if bias is None else bias)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_encoder() -> None:
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL))
    features = masked_features(
        model,
        {"input_ids": torch.randint(5, 90, (2, 8)), "attention_mask": torch.ones(2, 8)},
        torch.tensor([3]),
    )
    (features * torch.randn(32)).sum().backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


SPECIALS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.mark.parametrize(
    "model_type", ["bert", "electra", "roberta", "modernbert", "distilbert", "deberta-v2"]
)
def test_students_of_several_architectures_load_again(tmp_path, model_type) -> None:
    fields = {
        k: v
        for k, v in (SMALL | ARCHITECTURES[model_type]).items()
        if k not in ("vocab_size", "pad_token_id")
    }
    if model_type == "distilbert":
        fields = ARCHITECTURES["distilbert"]
    config = student_config(model_type, fields, vocabulary_size=123, special_ids=SPECIALS, max_length=32)
    student = build_student(config, seed=1)
    assert torch.equal(output_layer(student)[0], output_layer(build_student(config, seed=1))[0])
    student.save_pretrained(tmp_path)
    assert output_layer(load_masked_lm(str(tmp_path)))[0].shape[0] == 123


@pytest.mark.parametrize(
    ("model_type", "fields", "wanted"),
    [
        ("brt", {}, "student.model_type 'brt'"),
        ("bert", {"hiden_size": 3}, "student.config.hiden_size"),
        ("bert", {"max_position_embeddings": 8}, "max_position_embeddings 8"),
    ],
)
def test_student_errors(model_type, fields, wanted) -> None:
    with pytest.raises(ModelError, match=wanted):
        student_config(model_type, fields, vocabulary_size=100, special_ids=SPECIALS, max_length=32)


@pytest.fixture(scope="module")
def parts(teachers):
    loaded = [load_tokenizer(str(teachers[name]), name=name) for name in ("en", "ru")]
    union = unite(loaded)
    rows = [
        TeacherRows(t.name, load_masked_lm(str(teachers[t.name])), m, t.ordinary_ids, t.special_ids)
        for t, m in zip(loaded, union.maps, strict=True)
    ]
    return union, rows


def make_student(union, **fields):
    return build_student(
        student_config(
            "bert",
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 64,
            }
            | fields,
            vocabulary_size=union.size,
            special_ids=union.special_ids,
            max_length=32,
        ),
        seed=0,
    )


@pytest.mark.parametrize("row_map", ["mean", "kernel", "orthogonal", "least_squares"])
def test_a_student_that_starts_from_a_teacher_predicts_what_it_predicts(parts, row_map) -> None:
    """On the first teacher's pieces the student's logits are the teacher's, whatever the others became."""
    union, (first, second) = parts
    student = make_student(union)
    record = start_from_teachers(student, [first, second], row_map=row_map, seed=0)
    ids = torch.from_numpy(np.array([[2, *first.ordinary[10:20], 4, 3]]))
    mapped = torch.from_numpy(first.mapping)[ids]
    with torch.no_grad():
        theirs = first.model(input_ids=ids).logits[..., first.ordinary]
        ours = student.eval()(input_ids=mapped).logits[..., first.mapping[first.ordinary]]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert record["rows"]["ru"]["map"] in (row_map, "mean")
    assert record["rows"]["ru"]["new"] > 100


def test_least_squares_finds_a_map_that_is_there() -> None:
    from polydistill.models.row_map import fit_map

    torch.manual_seed(0)
    source = torch.randn(400, 12, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(20, 12, dtype=torch.float64))[0].t()
    for row_map in ("orthogonal", "least_squares"):
        mapped, fit = fit_map(source[:300], 3 * source[:300] @ rotation + 1, source[300:], row_map)
        assert fit["held_out_cosine"] > 0.95
        assert torch.nn.functional.cosine_similarity(mapped - 1, source[300:] @ rotation, dim=-1).min() > 0.9


def test_an_encoder_of_another_shape_is_refused(parts) -> None:
    union, rows = parts
    with pytest.raises(ModelError, match=r"student\.encoder_from 'en'"):
        start_from_teachers(
            make_student(union, hidden_size=48, num_attention_heads=2), rows, row_map="mean", seed=0
        )


FAULTS = """
import resource, sys
import torch
from polydistill.models.memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    print("cannot")
    sys.exit()
for _ in range(3):
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


RETURNED = """
from pathlib import Path
import torch
from polydistill.models.memory import keep_freed_memory, return_freed_memory

def held():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024

if not keep_freed_memory():
    print("cannot")
    raise SystemExit
before = held()
some = [torch.ones(4 << 20) for _ in range(20)]
last = torch.ones(4 << 20)
full = held()
del some
kept = held()
return_freed_memory()
print(before, full, kept, held())
"""


def test_kept_memory_is_given_back_when_it_is_asked_for() -> None:
    """320 MiB below a tensor that stays: not at the end of the heap, which the C library would free by
    itself.
    """
    said = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True).stdout
    if said.strip() == "cannot":
        pytest.skip("this C library has no mallopt")
    before, full, kept, after = map(int, said.split())
    assert full - before > 300
    assert kept > full - 20
    assert after < before + 60


def test_freed_memory_is_taken_again_without_asking_the_kernel() -> None:
    """Twenty tensors of 64 MiB in turn: without the setting every page of each is faulted in.

    With it a few may still be: if something small and lasting lands in the freed block, the heap grows by one
    more.
    """

    def faults(what: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=True
        ).stdout.strip()

    kept = faults("keep")
    if kept == "cannot":
        pytest.skip("this C library has no mallopt")
    assert int(kept) < int(faults("give")) / 3
