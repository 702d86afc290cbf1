"""A training on stored vectors beside a plain loop of PyTorch."""

import numpy as np
import pytest
import torch
from tests.training import SMALL, short_training
from transformers import AutoConfig, AutoModel

from polydistill.models.sentences import Dense, SentenceEncoder
from polydistill.training.data import LanguageDataset
from polydistill.training.run import train
from polydistill.training.sampler import LanguageSampler
from polydistill.training.vectors import SentenceTexts, VectorObjective

STEPS, BATCH, WIDTH = 4, 8, 6


def student() -> SentenceEncoder:
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", **SMALL))
    return SentenceEncoder(encoder, "mean", [Dense(16, WIDTH)])


def texts(number: int, sources: int, seed: int):
    """(examples, stored vectors): several texts may have one vector."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(5, 50, draw.integers(3, 14)).astype(np.int32) for _ in range(number)]
    rows = draw.integers(0, sources, number)
    return SentenceTexts(ids, rows), draw.normal(size=(sources, WIDTH)).astype(np.float16)


@pytest.mark.parametrize(("loss", "micro"), [("cosine", 1), ("mse", 2)])
def test_training_is_a_plain_loop_over_whole_steps(tmp_path, loss, micro) -> None:
    data = {"a": texts(30, 12, 1), "b": texts(9, 9, 2)}
    examples = {name: each for name, (each, _) in data.items()}
    vectors = {name: each for name, (_, each) in data.items()}
    arguments = short_training(
        STEPS,
        per_device_train_batch_size=BATCH // micro,
        gradient_accumulation_steps=micro,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1e9,
    )
    model = student()
    log = train(
        model,
        examples,
        [0.7, 0.3],
        folder=tmp_path / "checkpoints",
        arguments=arguments,
        objective=VectorObjective(
            ["a", "b"], list(vectors.values()), [each.rows for each in examples.values()], loss
        ),
        pad_id=0,
        max_length=32,
        seed=7,
        say=lambda line: None,
    )
    plain = student().train()
    sampler = LanguageSampler(
        [each.lengths for each in examples.values()], [0.7, 0.3], batch_size=BATCH, num_batches=STEPS, seed=7
    )
    keys = list(sampler)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)
    # Trainer decays neither biases nor normalisations.
    decayed = [w for n, w in plain.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    others = [w for n, w in plain.named_parameters() if "bias" in n or "LayerNorm" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    losses = []
    for step in range(STEPS):
        each = []
        for language, row, _ in keys[step * BATCH : (step + 1) * BATCH]:
            name = "ab"[language]
            ids = torch.from_numpy(examples[name].ids[row].astype(np.int64))[None]
            made = plain(ids, torch.ones_like(ids))[0]
            target = torch.from_numpy(vectors[name][examples[name].rows[row]].astype(np.float32))
            if loss == "mse":
                each.append(((made - target) ** 2).mean())
            else:
                each.append(1 - made @ target / (made.norm() * target.norm()))
        value = torch.stack(each).mean()
        losses.append(float(value.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    logged = [entry["vector_loss"] for entry in log if "vector_loss" in entry]
    assert logged == pytest.approx(losses, abs=2e-5)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if "pooler" not in name:
            torch.testing.assert_close(one, other, atol=2e-4, rtol=0, msg=name)


def test_an_example_is_a_sentence_and_says_where_it_comes_from() -> None:
    examples, _ = texts(5, 5, 3)
    made = LanguageDataset([examples], 5)[0, 2, 1]
    assert made.input_ids.tolist() == examples.ids[2].tolist()
    assert (len(made.positions), made.row, made.epoch) == (1, 2, 1)
    assert examples.identify(2) == {"line": 3}
