"""Models' inputs and decoded outputs: against transformers' own tokenizer calls, brute force, and by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.finetuning import recipe_values, task
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from polydistill.config.finetune import Task
from polydistill.config.load import parse_recipe
from polydistill.errors import ModelError, NumericsError
from polydistill.pipelines.finetune.jobs import all_jobs, notes_of
from polydistill.tasks.encoding import Coder, best_span
from polydistill.tasks.heads import NO_LABEL, collate, load_with_head, predict, takes_segments
from polydistill.tasks.labelled import Choice, LabelledText
from polydistill.tasks.questions import Answer, Question
from polydistill.tasks.splits import read_tasks
from polydistill.tasks.tagged import TaggedSentence
from polydistill.tasks.training import fine_tune
from polydistill.tokenization.load import load_tokenizer
from polydistill.training.arguments import check_finetuning


def coder(kind: str, path, labels=(), max_length=32, segments=True, **more) -> Coder:
    data = {"en": {"train": "x", "test": "x"}}
    settings = Task.model_validate({"kind": kind, "data": data, **more})
    return Coder(settings, load_tokenizer(str(path)), list(labels), max_length, segments)


def test_texts_and_pairs_are_those_of_the_model_s_own_tokenizer(teachers) -> None:
    fast = AutoTokenizer.from_pretrained(teachers["en"])
    long = "the house of the " * 20
    made = coder("pairs", teachers["en"], ["no", "yes"]).encode(
        [LabelledText(("the house", "of that"), "yes"), LabelledText((long, "of"), "no")]
    )
    wanted = fast(["the house", long], ["of that", "of"], truncation="longest_first", max_length=32)
    assert [row["input_ids"] for row in made] == wanted["input_ids"]
    assert [row["labels"] for row in made] == [1, 0]
    # The student's tokenizer writes no token types: only the separator marks the pair's second text.
    first = made[0]["input_ids"].index(fast.sep_token_id) + 1
    assert made[0]["token_type_ids"] == [0] * first + [1] * (len(made[0]["input_ids"]) - first)
    assert (
        "token_type_ids"
        not in coder("pairs", teachers["en"], segments=False).encode([LabelledText(("a", "b"), "x")])[0]
    )
    config = AutoConfig.from_pretrained(teachers["en"])
    assert takes_segments(config, ["input_ids", "token_type_ids"])
    assert not takes_segments(config, ["input_ids", "attention_mask"])
    config.type_vocab_size = 1
    assert not takes_segments(config, ["token_type_ids"])
    both = coder("choice", teachers["en"]).encode([Choice("the house", ("of", "that was"), 1)])[0]
    assert both["input_ids"] == fast([["the house", "of"], ["the house", "that was"]])["input_ids"]
    assert both["labels"] == 1


def test_a_tag_is_learned_at_a_word_s_first_token_and_every_word_gets_one(teachers) -> None:
    reader = coder("pos", teachers["en"], ["ADJ", "NOUN"], max_length=12)
    sentence = TaggedSentence(("extraordinarily",) * 2 + ("the",) * 14, ("ADJ",) * 2 + ("NOUN",) * 14)
    made = reader.encode([sentence])
    assert len(made) > 1
    assert all(len(row["input_ids"]) <= 12 for row in made)
    targets = [label for row in made for label in row["labels"] if label != NO_LABEL]
    assert targets == [0] * 2 + [1] * 14
    assert made[0]["labels"][1] == 0
    assert made[0]["labels"][2] == NO_LABEL
    # Logits of each place's own target give the sentence's own tags.
    logits = [np.eye(2, dtype=np.float32)[np.maximum(0, row["labels"])] for row in made]
    assert reader.decode([sentence], made, ((i, (rows,)) for i, rows in enumerate(logits))) == [
        list(sentence.tags)
    ]


CONTEXT = "the first of the men was in the house and the last of them was in the garden with his dog"


@pytest.mark.parametrize("answer", ["the first", "garden", "dog", "men was in"])
def test_an_answer_is_where_its_tokens_are_in_each_window(teachers, answer) -> None:
    question = Question("q", "who was it", CONTEXT, (Answer(CONTEXT.index(answer), answer),))
    reader = coder("qa", teachers["en"], max_length=18, stride_tokens=4)
    made = reader.encode([question], training=True)
    assert len(made) > 2
    held = []
    for feature in made:
        assert len(feature["input_ids"]) <= 18
        first, last = feature["start_positions"], feature["end_positions"]
        if first:
            text = CONTEXT[feature["offsets"][first][0] : feature["offsets"][last][1]]
            assert text == answer
            held.append(feature)
        else:
            assert last == 0
            inside = [offset for offset in feature["offsets"] if offset is not None]
            start = CONTEXT.index(answer)
            assert inside[0][0] > start or inside[-1][1] < start + len(answer)
    assert held
    # Predictions use the same windows; logits that point at the answer return it, whichever window has it.
    plain = reader.encode([question])
    assert [row["input_ids"] for row in plain] == [row["input_ids"] for row in made]
    outputs = []
    for index, feature in enumerate(made):
        starts, ends = np.zeros((2, len(feature["input_ids"])), dtype=np.float32)
        if feature["start_positions"]:
            starts[feature["start_positions"]] = ends[feature["end_positions"]] = 5.0
        outputs.append((index, (starts, ends)))
    assert reader.decode([question], plain, outputs) == [answer]
    absent = Question("q", "who was it", CONTEXT, (Answer(0, "nobody"),))
    assert reader.encode([absent], training=True) == []
    assert len(reader.encode([absent])) == len(plain)


def test_the_best_span_is_that_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        size = int(draw.integers(4, 18))
        starts, ends = draw.normal(size=(2, size)).astype(np.float32)
        inside = draw.random(size) < 0.7
        offsets = [(10 * i, 10 * i + 7) if inside[i] else None for i in range(size)]
        pairs = [
            (float(starts[i]) + float(ends[j]), i, j)
            for i in range(size)
            for j in range(i, min(size, i + 4))
            if inside[i] and inside[j]
        ]
        span = best_span(starts, ends, offsets, 4)
        if not pairs:
            assert span is None
            continue
        score, i, j = max(pairs)
        assert span == (pytest.approx(score, abs=1e-5), 10 * i, 10 * j + 7)


ARCHITECTURES = {
    "bert": {"intermediate_size": 32},
    "roberta": {
        "intermediate_size": 32,
        "type_vocab_size": 1,
        "pad_token_id": 0,
        "max_position_embeddings": 66,
    },
    "electra": {"intermediate_size": 32, "embedding_size": 16},
    "albert": {"intermediate_size": 32, "embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    "modernbert": {"intermediate_size": 32},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_any_architecture_gets_each_head_from_the_seed(tmp_path, teachers, architecture) -> None:
    """An MLM's folder has neither pooler nor head: the encoder's weights are the folder's, the others the
    seed's.
    """
    tokenizer = load_tokenizer(str(teachers["en"]))
    config = AutoConfig.for_model(
        architecture,
        vocab_size=tokenizer.size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        **{
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        | ARCHITECTURES[architecture],
    )
    torch.manual_seed(0)
    base = AutoModelForMaskedLM.from_config(config)
    base.save_pretrained(tmp_path)
    features = [{"input_ids": [2, 9, 8, 3]}, {"input_ids": [2, 9, 8, 7, 6, 3]}]
    for kind in ("ner", "classification", "choice", "qa"):
        models = [load_with_head(str(tmp_path), kind, num_labels=3, seed=seed) for seed in (1, 1, 2)]
        states = [model.state_dict() for model in models]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
        encoder = base.base_model.state_dict()
        for key, value in models[0].base_model.state_dict().items():
            if "pooler" not in key:
                assert torch.equal(value, encoder[key]), key
        given = [{"input_ids": [row["input_ids"]] * 2} for row in features] if kind == "choice" else features
        outputs = dict(predict(models[0], given, pad_id=0, batch_tokens=64, dtype=torch.float32))
        # A row's logits do not depend on its batch: the padding is masked.
        alone = dict(predict(models[0], given[:1], pad_id=0, batch_tokens=64, dtype=torch.float32))
        for batched, single in zip(outputs[0], alone[0], strict=True):
            np.testing.assert_allclose(batched, single, atol=1e-5)
            assert batched.shape[0] == {"ner": 4, "classification": 3, "choice": 2, "qa": 4}[kind]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_head_that_comes_with_the_folder_is_drawn_anew(tmp_path, teachers, architecture) -> None:
    """An earlier training's head may have other labels or another order: each seed draws its own head."""
    tokenizer = load_tokenizer(str(teachers["en"]))
    config = AutoConfig.for_model(
        architecture,
        vocab_size=tokenizer.size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        **{
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        | ARCHITECTURES[architecture],
    )
    config.num_labels = 3
    torch.manual_seed(0)
    tuned = AutoModelForSequenceClassification.from_config(config)
    tuned.save_pretrained(tmp_path)
    seeds = [load_with_head(str(tmp_path), "classification", num_labels=3, seed=seed) for seed in (1, 1, 2)]
    own = [key for key in tuned.state_dict() if key.startswith("classifier") and key.endswith("weight")]
    assert own
    for key in own:
        heads = [model.state_dict()[key] for model in seeds]
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert not torch.equal(heads[0], tuned.state_dict()[key])
    encoder = tuned.base_model.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in seeds[0].base_model.state_dict().items())
    other = load_with_head(str(tmp_path), "classification", num_labels=5, seed=1)
    assert other.state_dict()[own[-1]].shape[0] == 5
    # An answer has a start and an end, whatever the folder was made for.
    given = {"input_ids": torch.tensor([[2, 9, 8, 3]])}
    assert load_with_head(str(tmp_path), "qa", num_labels=0, seed=1)(**given).start_logits.shape == (1, 4)
    # A checkpoint of the training itself keeps its head.
    kept = load_with_head(str(tmp_path), "classification", num_labels=3, seed=1, fresh=False)
    assert all(torch.equal(kept.state_dict()[key], tuned.state_dict()[key]) for key in tuned.state_dict())


def test_random_weights_are_the_architecture_s_own_and_drawn_by_the_seed(tmp_path, teachers) -> None:
    model, same, other = (
        load_with_head(str(teachers["en"]), "ner", num_labels=5, seed=seed, random=True) for seed in (1, 1, 2)
    )
    trained = load_with_head(str(teachers["en"]), "ner", num_labels=5, seed=1)
    assert model.config.num_labels == 5
    for key, value in model.state_dict().items():
        assert value.shape == trained.state_dict()[key].shape
        assert torch.equal(value, same.state_dict()[key])
    for differs in (other, trained):
        key = "bert.embeddings.word_embeddings.weight"
        assert not torch.equal(model.state_dict()[key], differs.state_dict()[key])
    values = recipe_values(tmp_path, {"a": teachers["en"]}, {"ner": task(tmp_path, "ner")})
    names = {}
    for weights in ("trained", "random"):
        values["models"] = {"a": {"model": str(teachers["en"]), "weights": weights}}
        recipe = parse_recipe(values)
        (job,) = all_jobs(recipe, read_tasks(recipe))
        assert torch.equal(
            job.load().state_dict()[key],
            load_with_head(
                str(teachers["en"]), "ner", num_labels=7, seed=0, random=weights == "random"
            ).state_dict()[key],
        )
        names[weights] = job.inputs["weights"]
    assert names["random"].startswith("random ")
    assert names["trained"] != names["random"]


def test_an_encoder_that_lacks_weights_is_refused(tmp_path, teachers) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(teachers["en"], tmp_path / "part")
    path = tmp_path / "part" / "model.safetensors"
    weights = load_file(path)
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks weights of the encoder \(bert.encoder.layer.1.attention.self.query"
    ):
        load_with_head(str(tmp_path / "part"), "ner", num_labels=3, seed=0)
    torch.save(weights, tmp_path / "part" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(ModelError, match="exist only as a pickle"):
        load_with_head(str(tmp_path / "part"), "ner", num_labels=3, seed=0, field="models.x")


def test_a_batch_has_the_loss_that_transformers_gives_each_text(teachers) -> None:
    model = load_with_head(str(teachers["en"]), "pairs", num_labels=2, seed=3).eval()
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode(
        [LabelledText(("the house", "of that"), "yes"), LabelledText(("the", "was with him"), "no")]
    )
    loss = model(**collate(made, pad_id=0)).loss
    plain = AutoModelForSequenceClassification.from_pretrained(teachers["en"], num_labels=2).eval()
    plain.load_state_dict(model.state_dict())
    fast = AutoTokenizer.from_pretrained(teachers["en"])
    each = []
    for first, second, label in (("the house", "of that", 1), ("the", "was with him", 0)):
        batch = fast(first, second, return_tensors="pt")
        types = torch.tensor([reader.encode([LabelledText((first, second), "no")])[0]["token_type_ids"]])
        each.append(plain(**{**batch, "token_type_ids": types}, labels=torch.tensor([label])).loss)
    assert float(loss.detach()) == pytest.approx(float(sum(each).detach()) / 2, abs=1e-5)


def test_a_preset_s_warm_up_that_a_small_set_would_never_leave_is_cut(tmp_path, teachers) -> None:
    values = recipe_values(
        tmp_path, {"one": teachers["en"]}, {"tags": task(tmp_path, "pos")}, preset="eliquare"
    )
    values["training"] = {"bf16": False}
    recipe = parse_recipe(values)
    job = all_jobs(recipe, read_tasks(recipe))[0]
    arguments, said = job.arguments(320)
    assert arguments["warmup_steps"] == 0.1
    assert said == "500 steps of warm-up are too many for a training of 50: 10% of them instead"
    assert job.arguments(32 * 400)[0]["warmup_steps"] == 500
    values["training"]["warmup_steps"] = 500
    recipe = parse_recipe(values)
    own = all_jobs(recipe, read_tasks(recipe))[0]
    assert own.arguments(320) == (job.recipe_arguments, None)
    # It is another training, though the merged arguments are equal.
    assert own.inputs != job.inputs


def test_a_job_is_what_its_tokenizer_lets_the_model_read(tmp_path, teachers) -> None:
    """A limit in the tokenizer's settings is reported, and is part of a finished job's fingerprint."""
    shutil.copytree(teachers["en"], tmp_path / "one")
    path = tmp_path / "one" / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    jobs = []
    for limit in (16, 24):
        path.write_text(json.dumps(settings | {"model_max_length": limit}), "utf-8")
        recipe = parse_recipe(
            recipe_values(tmp_path, {"one": tmp_path / "one"}, {"tags": task(tmp_path, "pos")})
        )
        jobs.append(all_jobs(recipe, read_tasks(recipe)))
    assert [job[0].coder("en").max_length for job in jobs] == [16, 24]
    assert jobs[0][0].inputs != jobs[1][0].inputs
    assert notes_of(jobs[0]) == [
        "models.one: reads en in sequences of 16 tokens at most, not 32 (tags): it takes no more"
    ]
    shorter = recipe_values(
        tmp_path, {"one": tmp_path / "one"}, {"tags": task(tmp_path, "pos", max_length=24)}
    )
    assert notes_of(all_jobs(parse_recipe(shorter), read_tasks(parse_recipe(shorter)))) == []


def test_training_stops_when_the_dev_set_says_so_and_names_the_best_checkpoint(tmp_path, teachers) -> None:
    """Scores by hand: the second is the best, two without a better one end it; an equal one is no better."""
    scores = iter([0.1, 0.9, 0.9, 0.2, 1.0])
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode([LabelledText(("the house", "of that"), "yes")] * 4)
    arguments = check_finetuning(
        {
            "learning_rate": 1e-3,
            "num_train_epochs": 5,
            "warmup_steps": 0.1,
            "per_device_train_batch_size": 2,
            "bf16": False,
        }
    )
    said: list[str] = []

    def tune() -> dict:
        return fine_tune(
            load_with_head(str(teachers["en"]), "pairs", num_labels=2, seed=0),
            made,
            folder=tmp_path,
            arguments=arguments,
            measure=lambda model: next(scores),
            patience=2,
            evaluations_per_epoch=1,
            max_length=32,
            pad_id=0,
            seed=0,
            say=said.append,
        )

    record = tune()
    assert (record["best"], record["score"], record["steps"], record["max_steps"]) == (
        "checkpoint-4",
        0.9,
        8,
        10,
    )
    assert (tmp_path / "checkpoint-4" / "complete.json").is_file()
    assert len(said) == 4
    # Killed before this was recorded, training does not continue: the fifth measurement would be better.
    assert tune() == record
    assert next(scores) == 1.0


def test_patience_begins_with_the_first_score(tmp_path, teachers) -> None:
    """Entity F1 is 0 for a while: that does not mean that learning has ended."""
    scores = iter([0.0, 0.0, 0.0, 0.4, 0.3, 0.3])
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode([LabelledText(("the house", "of that"), "yes")] * 2)
    arguments = check_finetuning(
        {
            "learning_rate": 1e-3,
            "num_train_epochs": 9,
            "warmup_steps": 0.1,
            "per_device_train_batch_size": 2,
            "bf16": False,
        }
    )
    record = fine_tune(
        load_with_head(str(teachers["en"]), "pairs", num_labels=2, seed=0),
        made,
        folder=tmp_path,
        arguments=arguments,
        measure=lambda model: next(scores),
        patience=2,
        evaluations_per_epoch=1,
        max_length=32,
        pad_id=0,
        seed=0,
        say=print,
    )
    assert (record["score"], record["step"], record["steps"]) == (0.4, 4, 6)


def test_a_fine_tuning_whose_loss_is_not_finite_stops_and_keeps_its_batch(tmp_path, teachers) -> None:
    reader = coder("pairs", teachers["en"], ["no", "yes"])
    made = reader.encode([LabelledText(("the house", "of that"), "yes")] * 4)
    model = load_with_head(str(teachers["en"]), "pairs", num_labels=2, seed=0)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    arguments = check_finetuning(
        {
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "warmup_steps": 0.1,
            "per_device_train_batch_size": 2,
            "bf16": False,
        }
    )
    with pytest.raises(NumericsError, match="the loss is nan at step 0; that batch"):
        fine_tune(
            model,
            made,
            folder=tmp_path / "checkpoints",
            arguments=arguments,
            measure=lambda model: 0.0,
            patience=2,
            evaluations_per_epoch=1,
            max_length=32,
            pad_id=0,
            seed=0,
            say=print,
        )
    batch = load_file(tmp_path / "nonfinite-step-0" / "batch-0.safetensors")
    assert batch["input_ids"][0].tolist() == made[0]["input_ids"]
    assert batch["labels"].tolist() == [made[0]["labels"]] * 2
