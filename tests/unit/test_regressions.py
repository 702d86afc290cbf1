"""Bugs that a review found, each mended and kept away."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.models.features import masked_features
from polydistill.models.student import TeacherRows, build_student, start_from_teachers, student_config
from polydistill.pipelines.run import run_recipe
from polydistill.reports.merge_page import gather_merge
from polydistill.tokenization.load import load_tokenizer
from polydistill.tokenization.union import unite

ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def run(values: dict, until: str, *, update: bool = False) -> Path:
    return run_recipe(parse_recipe(values), until=until, update=update, show=lambda line: None)


def test_a_typo_that_is_mended_needs_no_update(recipe_values) -> None:
    right = recipe_values["teachers"]["en"]
    recipe_values["teachers"]["en"] = "/nowhere/typo"
    with pytest.raises(UserError, match="cannot be loaded"):
        run(recipe_values, "tokenizer")
    recipe_values["teachers"]["en"] = right
    run(recipe_values, "tokenizer")


def test_the_order_of_teachers_is_part_of_what_a_tokenizer_is_made_from(recipe_values) -> None:
    run(recipe_values, "tokenizer")
    recipe_values["teachers"] = dict(reversed(recipe_values["teachers"].items()))
    path = run(recipe_values, "train", update=True)
    final = json.loads((path / "student/final/tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    union = unite([load_tokenizer(str(model)) for model in recipe_values["teachers"].values()])
    assert [final[string] for string in union.strings()] == list(range(union.size))


def test_a_mistake_in_the_student_is_said_before_anything_is_scored(recipe_values) -> None:
    recipe_values["student"]["config"]["hidden_sise"] = 32
    with pytest.raises(UserError, match="hidden_sise"):
        run(recipe_values, "train")
    assert not list(Path(recipe_values["output"]).glob("store/*/*/manifest.json"))


def student_of_a_roberta() -> tuple[torch.Tensor, torch.Tensor, bool]:
    """(the teacher's logits, those of the student that starts from it, whether the row of unk came along)."""
    config = AutoConfig.for_model(
        "roberta", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=42, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    mapping = np.arange(60)
    mapping[[1, 3, 0, 2, 4]] = np.arange(5)
    made = student_config("roberta", {}, vocabulary_size=60, special_ids=ROLES, max_length=40, base=config)
    student = build_student(made, seed=1).eval()
    start_from_teachers(
        student,
        [
            TeacherRows(
                "t", teacher, mapping, np.arange(5, 60), {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4}
            )
        ],
        row_map="mean",
        seed=0,
    )
    ids = np.array([[0, 10, 11, 4, 13, 2]])
    seen = torch.ones(1, 6, dtype=torch.long)
    with torch.no_grad():
        said = teacher(input_ids=torch.from_numpy(ids), attention_mask=seen).logits[0, :, 5:]
        says = student(input_ids=torch.from_numpy(mapping[ids]), attention_mask=seen).logits[0, :, 5:]
    rows, source = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    return said, says, bool(torch.equal(rows[ROLES["unk"]], source[3]))


def test_a_student_of_a_roberta_predicts_what_it_predicts() -> None:
    said, says, _ = student_of_a_roberta()
    torch.testing.assert_close(says, said)


def test_the_row_of_unk_comes_from_the_teacher() -> None:
    assert student_of_a_roberta()[2]


def test_features_of_a_model_in_a_parallel_wrapper() -> None:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    inner = AutoModelForMaskedLM.from_config(config)
    inputs = {"input_ids": torch.full((1, 8), 7), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    assert masked_features(torch.nn.DataParallel(inner), inputs, torch.tensor([1])).shape == (1, 32)


def test_evaluation_hides_every_token_that_it_asks_for(teachers) -> None:
    """Training leaves a tenth of masked tokens visible; in evaluation a model that copies its input must not score."""
    from tests.conftest import bundled_lines

    from polydistill.config.shared import Masking
    from polydistill.evaluation.readers import Reader, hidden

    tokenizer = load_tokenizer(str(teachers["en"]))
    texts = bundled_lines("en", 200)
    reader = Reader("x", None, tokenizer, "own", "x")
    made = reader.masked(texts, list(range(200)), 64, hidden(Masking()), 5)
    seen = np.concatenate([m.input_ids[m.positions] for m in made])
    assert set(seen.tolist()) == {tokenizer.special_ids["mask"]}


def test_rows_without_a_piece_are_never_predicted(teachers) -> None:
    """A model padded to more rows than its tokenizer has pieces: no stored id is beyond the tokenizer."""
    from polydistill.masking import Masked
    from polydistill.models.load import load_masked_lm
    from polydistill.scoring.predict import predict

    model = load_masked_lm(str(teachers["ru"]))
    size = model.config.vocab_size
    with torch.no_grad():
        model.cls.predictions.decoder.bias[size - 50 :] += 100
    example = Masked(np.array([2, 4, 9, 3]), np.array([1]), np.array([7]))
    for sampling in ("top_k", "random"):
        found = predict(
            model, [example], ids=[1], pad_id=0, vocabulary_size=size - 50, top_k=8, sampling=sampling,
            dtype=torch.float32, seed=0,
        )[0]  # fmt: skip
        assert found.top_ids.max() < size - 50
    assert np.exp(found.gold_logprobs[0]) < 1e-6


def test_an_artefact_is_replaced_whole(tmp_path, monkeypatch) -> None:
    """Killed while the old folder is being removed: what stands in its place is the new one."""

    from polydistill.disk import replace_folder

    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what").write_text(name)
    real = shutil.rmtree

    def dies(path, ignore_errors=False):
        if Path(path).exists():
            raise KeyboardInterrupt
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("polydistill.disk.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "what").read_text() == "new"


def test_a_run_that_reuses_another_reports_its_own_figures(recipe_values, tmp_path) -> None:
    other = run(
        recipe_values
        | {"output": str(tmp_path / "other"), "corpora": {"max_length": 16, "held_out_share": 0.2}},
        "score",
    )
    path = run(recipe_values | {"reuse": [str(other)]}, "report")

    shown = gather_merge(path)
    assert {store["identity"]["max_length"] for store in shown["stores"]} == {32}
    again = run(recipe_values | {"output": str(tmp_path / "third"), "reuse": [str(path)]}, "report")
    assert not list(again.glob("store/*/*/*.arrow"))
    assert gather_merge(again)["stores"] == shown["stores"]


def test_a_student_of_a_run_that_is_reused_is_not_trained_again(recipe_values, tmp_path) -> None:
    first = run(recipe_values, "train")
    said: list[str] = []
    values = recipe_values | {"name": "again", "output": str(tmp_path / "again"), "reuse": [str(first)]}
    again = run_recipe(parse_recipe(values), until="evaluate", show=said.append)
    assert f"student: taken from {first / 'student' / 'final'}" in said
    assert "train" not in json.loads((again / "timing.json").read_text("utf-8"))
    for name in ("final/model.safetensors", "log.json"):
        assert (again / "student" / name).read_bytes() == (first / "student" / name).read_bytes()
    card = (again / "student" / "final" / "README.md").read_text("utf-8")
    assert card.count("again") > (first / "student" / "final" / "README.md").read_text("utf-8").count("again")
    # It is its own: the other may go.
    shutil.rmtree(first / "student")
    assert run_recipe(parse_recipe(values), until="evaluate", show=said.append) == again
    weights = (again / "student/final/model.safetensors").read_bytes()
    turned = dict(reversed(values["languages"].items()))
    for name, change in {"seed": {"seed": 5}, "order": {"languages": turned}}.items():
        third = run(values | {"output": str(tmp_path / name), "reuse": [str(again)]} | change, "train")
        assert (third / "student/final/model.safetensors").read_bytes() != weights, name
    # Without its log a student is no whole one.
    (again / "student" / "log.json").unlink()
    fourth = run(values | {"output": str(tmp_path / "fourth"), "reuse": [str(again)]}, "train")
    assert "train" in json.loads((fourth / "timing.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"training": {"max_steps": 2, "learning_rate": "fast"}}, "training.learning_rate 'fast'"),
        ({"training": {"max_steps": 2, "per_device_train_batch_size": 0}}, "per_device_train_batch_size 0"),
        ({"training": {"max_steps": 2, "optim": "adafoo"}}, "adafoo"),
        ({"training": {"max_steps": 2, "eval_strategy": "steps"}}, "training.eval_strategy"),
        ({"student": {"config": {"hidden_size": "big"}}}, "student.config"),
        ({"student": {"config": {"hidden_size": 33, "num_attention_heads": 2}}}, "student.model_type 'bert'"),
        ({"student": {"model_type": "t5"}}, "student.model_type 't5'"),
        ({"student": {"init": "teachers", "config": {"hidden_size": 64}}}, "student.encoder_from 'en'"),
    ],
)
def test_mistakes_are_said_before_anything_is_scored(recipe_values, change, wanted) -> None:
    with pytest.raises(UserError) as caught:
        run(recipe_values | change, "train")
    assert wanted in str(caught.value)
    assert not list(Path(recipe_values["output"]).rglob("*.arrow"))


def test_the_recipe_that_a_run_writes_is_the_one_that_it_was_started_with(
    recipe_values, teachers, tmp_path
) -> None:
    """A student that starts from a teacher is of its architecture, in the file with all defaults written out too."""
    config = AutoConfig.for_model(
        "modernbert", vocab_size=len(AutoTokenizer.from_pretrained(teachers["ru"])), hidden_size=32,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    teacher = shutil.copytree(teachers["ru"], tmp_path / "modern")
    AutoModelForMaskedLM.from_config(config).save_pretrained(teacher)
    values = recipe_values | {"teachers": {"ru": str(teacher)}, "student": {"init": "teachers"},
                              "languages": {"ru": recipe_values["languages"]["ru"]}}  # fmt: skip
    student = run(values, "train") / "student" / "final"
    assert json.loads((student / "config.json").read_text("utf-8"))["model_type"] == "modernbert"
    written = yaml.safe_load((Path(values["output"]) / "recipe.yaml").read_text("utf-8"))
    before = (student / "model.safetensors").stat().st_mtime_ns
    run(written, "train")
    assert (student / "model.safetensors").stat().st_mtime_ns == before
    # As earlier versions wrote it.
    written["student"]["model_type"] = "bert"
    (Path(values["output"]) / "recipe.yaml").write_text(yaml.safe_dump(written, sort_keys=False), "utf-8")
    run(values, "train")
    assert (student / "model.safetensors").stat().st_mtime_ns == before


def test_a_student_of_a_version_that_wrote_bert_is_not_trained_again(recipe_values) -> None:
    config = recipe_values["student"]["config"]
    said = recipe_values | {"student": {"model_type": "bert", "config": config}}
    weights = run(said, "train") / "student" / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run(recipe_values | {"student": {"config": config}}, "train")
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("place", ["a file", "under a file"])
def test_an_output_that_cannot_be(recipe_values, tmp_path, place) -> None:
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" if place == "a file" else tmp_path / "file" / "run"
    with pytest.raises(UserError, match="cannot be written"):
        run(recipe_values | {"output": str(output)}, "tokenizer")


def test_a_truncated_checkpoint_and_a_strange_tokenizer(recipe_values, teachers, tmp_path) -> None:
    for name, damage in (
        ("model.safetensors", lambda b: b[:-500]),
        ("tokenizer.json", lambda b: b.replace(b"WordPiece", b"WardPiece")),
    ):
        folder = Path(shutil.copytree(teachers["ru"], tmp_path / name))
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        values = recipe_values | {
            "output": str(tmp_path / f"run-{name}"), "teachers": {"ru": str(folder)},
            "languages": {"ru": recipe_values["languages"]["ru"]},
        }  # fmt: skip
        with pytest.raises(UserError, match=r"teachers\.ru"):
            run(values, "score")


def test_a_full_disk_while_weights_are_written() -> None:
    from safetensors import SafetensorError

    from polydistill.disk import explain_disk_errors
    from polydistill.errors import DiskError

    with pytest.raises(DiskError, match="no space left"), explain_disk_errors(Path("run")):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), explain_disk_errors(Path("run")):
        raise SafetensorError("something else")


def test_more_series_than_colours_are_told_apart_by_their_stroke() -> None:
    import re

    from polydistill.reports.figures import COLOURS, curves, grouped_bars

    names = [f"s{index}" for index in range(len(COLOURS) + 1)]
    drawn = curves({name: ([0, 1], [0.0, 1.0]) for name in names}, xlabel="x", ylabel="y")
    lines = re.findall(
        rf"stroke-dasharray: [\d., ]+; stroke-dashoffset: 0; stroke: {COLOURS[0].lower()}", drawn
    )
    # One of the figure's, one of the legend's.
    assert len(lines) == 2
    bars = grouped_bars(["all"], {name: [0.1964] for name in names}, ylabel="y")
    assert bars.count("<pattern") == 1
    assert ">.196<" in bars


def test_languages_in_another_order_are_another_model(tmp_path) -> None:
    """A fingerprint sorts keys; which language an example is drawn from hangs on their order."""
    from polydistill.artefacts import artefact
    from polydistill.disk import write_json
    from polydistill.pipelines.run_folder import Run
    from polydistill.pipelines.stages.training import equal_model

    inputs = {"texts": {"de": 1, "en": 2}, "seed": 0}
    made = tmp_path / "made" / "student" / "final"
    with artefact(made, inputs) as folder:
        (folder / "weights").write_text("w")
    write_json(made.parent / "log.json", {"log": []}, sealed=True)
    own = Run(tmp_path / "own", [tmp_path / "made"], print, {}, False)
    assert equal_model(own, own.path / "student" / "final", inputs) == made
    turned = {"texts": {"en": 2, "de": 1}, "seed": 0}
    assert equal_model(own, own.path / "student" / "final", turned) is None
