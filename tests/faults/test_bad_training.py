"""`training:` values that fail only once training begins, hours later: plan and run refuse them first."""

import importlib.util

import pytest
import torch

from polydistill.errors import RecipeError
from polydistill.training.arguments import check_arguments, check_finetuning

FINETUNING = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "num_train_epochs": 2,
    "warmup_steps": 0,
}


def without(package: str):
    present = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(present, reason=f"{package} is installed: nothing to refuse")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("save_steps", 0, "not a number above 0"),
        ("save_steps", True, "not a number"),
        ("log_level", ["info"], "not an allowed value"),
        ("logging_steps", 0, "not a number above 0"),
        ("logging_steps", "often", "not a number above 0"),
        ("max_steps", True, "not a"),
        ("warmup_steps", True, "not a number"),
        ("bf16", "maybe", "not a boolean"),
        ("dataloader_num_workers", -1, "non-negative"),
        ("dataloader_persistent_workers", True, "num_workers > 0"),
        ("fsdp", "full_shard", "only works in distributed training"),
        ("lr_scheduler_kwargs", {"no": 1}, "unexpected keyword argument 'no'"),
        ("adam_beta1", 2.0, "Invalid beta"),
        ("report_to", ["nowhere"], "nowhere is not supported"),
        pytest.param("report_to", ["wandb"], "requires wandb", marks=without("wandb")),
        pytest.param("optim", "adamw_bnb_8bit", "bitsandbytes", marks=without("bitsandbytes")),
        ("push_to_hub", True, "would upload the model to a hub"),
        ("hub_model_id", "org/x", "would upload the model to a hub"),
        ("hub_token", "secret", "would upload the model to a hub"),
        ("resume_from_checkpoint", "elsewhere/checkpoint-3", "is set by the run itself"),
    ],
)
def test_it_is_refused_by_name_before_anything_is_scored(name, value, reason) -> None:
    for check, base in ((check_arguments, {}), (check_finetuning, FINETUNING)):
        with pytest.raises(RecipeError) as caught:
            check(base | {name: value})
        assert caught.value.field == f"training.{name}"
        assert caught.value.remedy
        if name not in ("save_steps", "logging_steps"):
            assert reason in caught.value.reason


def test_what_a_trainer_takes_is_taken_and_nothing_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    for values in (
        {},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 5},
        {"save_steps": 3},
        {"dataloader_num_workers": 2},
        {"train_sampling_strategy": "group_by_length"},
        {"torch_compile": True},
    ):
        assert check_arguments(values).items() >= values.items()
    assert torch.equal(torch.rand(1), expected)
    # Nor does it leave anything behind.
    assert not list(tmp_path.iterdir())
