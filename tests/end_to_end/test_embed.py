"""Sentence encoders distilled from stored vectors: whole runs, resumed ones, reuse, plans and errors."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from tests.conftest import bundled_lines
from tests.embedding import make_data, recipe_of, run
from tests.end_to_end.test_merge import polydistill, write_recipe
from transformers import AutoModel, AutoTokenizer

import polydistill as pd
from polydistill.config.load import parse_recipe
from polydistill.errors import UserError
from polydistill.models.sentence_files import read_sentence_files
from polydistill.models.sentences import load_sentence_encoder
from polydistill.pipelines.embed import vectors as vector_stage
from polydistill.pipelines.run import run_recipe
from polydistill.reports.page import report_run
from polydistill.tools.verify import verify_run
from polydistill.training.vectors import VectorObjective


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """See `make_data`."""
    return make_data(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> tuple[dict, Path]:
    """(recipe, its finished run, kept as it is)."""
    values = recipe_of(data, tmp_path_factory.mktemp("finished") / "run")
    return values, run(values)[0]


def model_bytes(folder: Path) -> dict[str, bytes]:
    final = folder / "student/final"
    return {
        path.relative_to(final).as_posix(): path.read_bytes() for path in final.rglob("*") if path.is_file()
    }


def plain_vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """What sentence-transformers computes from a student's folder: each module by hand."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    assert [each["type"].rpartition(".")[2] for each in modules] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    length = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"]
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, return_tensors="pt", padding=True, truncation=True, max_length=length
    )
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    dense = load_file(folder / "2_Dense/model.safetensors")
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean @ dense["linear.weight"].T + dense["linear.bias"])


def test_a_student_learns_its_teachers_vectors_and_every_figure_is_that_of_its_folder(data, finished) -> None:
    _, folder = finished
    results = json.loads((folder / "evaluation/embed.json").read_text("utf-8"))
    english = results["languages"]["en"]["models"]
    assert english["student"]["cosine"] > english["start"]["cosine"] + 0.02
    final = folder / "student/final"
    held = (folder / "sentences/en/held_out.texts.txt").read_text("utf-8").split("\n")
    stored = np.load(folder / "vectors/en/held_out.npy")
    assert stored.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float32), axis=1), 1, atol=2e-3)
    made = plain_vectors(final, held).numpy()
    cosine = (made * stored).sum(1) / np.linalg.norm(stored.astype(np.float64), axis=1)
    assert results["languages"]["en"]["models"]["student"]["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
    assert results["languages"]["en"]["sentences"] == len(held)
    one, other = (
        plain_vectors(final, (data / f"test.{name}.txt").read_text("utf-8").split("\n")).numpy()
        for name in ("en", "fr")
    )
    similarity = one @ other.T
    pairs = results["retrieval"]["pair"]["pairs"]["student"]
    assert pairs["en"]["fr"] == pytest.approx((similarity.argmax(1) == np.arange(20)).mean())
    assert pairs["fr"]["en"] == pytest.approx((similarity.argmax(0) == np.arange(20)).mean())
    rows = [line.split("\t") for line in (data / "sts.tsv").read_text("utf-8").split("\n")[1:]]
    first, second = (plain_vectors(final, [row[index] for row in rows]).numpy() for index in (0, 1))
    expected = spearmanr((first * second).sum(1), [float(row[2]) for row in rows]).statistic
    assert results["similarity"]["sts"]["models"]["student"] == pytest.approx(expected, abs=1e-6)
    card = (final / "README.md").read_text("utf-8")
    assert f"{results['similarity']['sts']['models']['student']:.3f} |" in card
    assert "library_name: sentence-transformers" in card


def test_sentence_transformers_loads_the_student(finished) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    final = finished[1] / "student/final"
    texts = ["The house.", "Another one, much longer than the first."]
    theirs = library.SentenceTransformer(str(final), device="cpu").encode(texts)
    np.testing.assert_allclose(plain_vectors(final, texts).numpy(), theirs, atol=1e-5)


def test_translations_learn_the_teachers_vector_of_their_original(data, finished) -> None:
    _, folder = finished
    texts, sources = (
        (folder / f"sentences/fr/train.{kind}.txt").read_text("utf-8").split("\n")
        for kind in ("texts", "sources")
    )
    rows = np.load(folder / "sentences/fr/train.rows.npy")
    french = set(bundled_lines("fr", 300))
    assert any(text in french for text in texts)
    assert not any(source in french for source in sources)
    # The teacher's own vectors of two originals, each by itself.
    teacher = load_sentence_encoder(read_sentence_files(str(data / "teacher")), max_length=64)
    tokenizer = AutoTokenizer.from_pretrained(data / "teacher")
    stored = np.load(folder / "vectors/fr/train.npy")
    for place in (0, len(texts) - 1):
        ids = torch.tensor([tokenizer(sources[rows[place]])["input_ids"]])
        with torch.no_grad():
            alone = teacher(ids, torch.ones_like(ids))[0]
        np.testing.assert_allclose(stored[rows[place]], alone, atol=2e-3)


def test_a_second_run_does_nothing_and_the_same_recipe_gives_the_same_bytes(data, finished, tmp_path) -> None:
    values, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    run(values)
    changed = [
        path.name
        for path, time in before.items()
        if path.stat().st_mtime_ns != time and "/.progress" not in str(path)
    ]
    assert set(changed) <= {"README.md", "recipe.yaml", "timing.json", "run.log", "index.html", ".lock"}
    again, _ = run(values | {"output": str(tmp_path / "again")})
    assert model_bytes(again).keys() == model_bytes(folder).keys()
    for name, content in model_bytes(again).items():
        assert content == model_bytes(folder)[name], name
    for place in ("vectors/en/train.npy", "vectors/fr/held_out.npy", "evaluation/embed.json"):
        assert (again / place).read_bytes() == (folder / place).read_bytes(), place


def test_an_interrupted_training_resumes_with_the_same_bytes(finished, tmp_path, monkeypatch) -> None:
    values, folder = finished
    values = values | {"output": str(tmp_path / "run"), "reuse": [str(folder)]}
    # The student is not taken from the other run, so that there is something to train.
    monkeypatch.setattr("polydistill.pipelines.stages.training.equal_model", lambda *_: None)
    calls = Counter()
    plain = VectorObjective.__call__

    def stopping(self, *arguments, **more):
        calls["forward"] += 1
        if calls["forward"] == 40 and not calls["stopped"]:
            calls["stopped"] += 1
            raise KeyboardInterrupt
        return plain(self, *arguments, **more)

    monkeypatch.setattr(VectorObjective, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(values)
    kept = sorted(path.name for path in (tmp_path / "run/student/checkpoints").glob("checkpoint-*"))
    assert kept, "it was interrupted after a checkpoint"
    assert not (tmp_path / "run/student/final").exists()
    resumed, lines = run(values)
    assert any(line.startswith("resuming at step") for line in lines)
    for name, content in model_bytes(resumed).items():
        assert content == model_bytes(folder)[name], name


def test_an_interrupted_store_goes_on_and_has_the_same_bytes(data, tmp_path, monkeypatch) -> None:
    values = recipe_of(data, tmp_path / "one", languages={"en": {"text": str(data / "en.txt")}})
    monkeypatch.setattr(vector_stage, "CHUNK", 64)
    whole = run_recipe(parse_recipe(values), until="vectors", show=lambda line: None)
    calls = Counter()
    plain = vector_stage.encode_ids

    def stopping(model, ids, *arguments, **more):
        if calls["chunks"] == 3 and not calls["stopped"]:
            calls["stopped"] += 1
            raise KeyboardInterrupt
        calls["chunks"] += 1
        return plain(model, ids, *arguments, **more)

    monkeypatch.setattr(vector_stage, "encode_ids", stopping)
    values["output"] = str(tmp_path / "two")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(parse_recipe(values), until="vectors", show=lambda line: None)
    assert not (tmp_path / "two/vectors/en").exists()
    run_recipe(parse_recipe(values), until="vectors", show=lambda line: None)
    sizes = [len(np.load(whole / f"vectors/en/{split}.npy")) for split in ("train", "held_out")]
    # No chunk is computed twice.
    assert calls["chunks"] == sum(-(-size // 64) for size in sizes)
    for split in ("train", "held_out"):
        one, two = (tmp_path / name / f"vectors/en/{split}.npy" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in (tmp_path / "two/vectors/en").iterdir()) == [
        "held_out.npy",
        "stamp.json",
        "train.npy",
    ]


def test_another_student_reuses_the_vectors(data, finished, tmp_path, monkeypatch) -> None:
    _, folder = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the teacher is asked again")

    monkeypatch.setattr(vector_stage, "encode_ids", never)
    values = recipe_of(
        data,
        tmp_path / "other",
        loss="mse",
        reuse=[str(folder)],
        student={"model": str(data / "narrow"), "pooling": "cls"},
    )
    values["training"] = values["training"] | {"max_steps": 4}
    other, _ = run(values)
    places = json.loads((other / "artefacts.json").read_text("utf-8"))
    assert places["vectors/en"] == str((folder / "vectors/en").resolve())
    pooling = json.loads((other / "student/final/1_Pooling/config.json").read_text("utf-8"))
    assert pooling["pooling_mode_cls_token"]
    log = json.loads((other / "student/log.json").read_text("utf-8"))["log"]
    # Unit vectors of 8 numbers differ by at most 4 / 8 on average.
    assert all(0 < entry["vector_loss"] < 0.5 for entry in log if "vector_loss" in entry)


def test_the_page_the_commands_and_the_api_show_a_run(finished, tmp_path) -> None:
    values, folder = finished
    page = report_run(folder).read_text("utf-8")
    results = json.loads((folder / "evaluation/embed.json").read_text("utf-8"))
    assert f"{results['similarity']['sts']['models']['student']:.3f}" in page
    assert "SentenceTransformer(" in page
    assert "fill-mask" not in page
    # It opens without a network.
    assert not re.search(r'(src|href)="https?:|@import|url\((?!#)', page)
    shown = polydistill("evaluate", write_recipe(tmp_path, values))
    assert shown.returncode == 0, shown.stderr
    assert "Spearman" in shown.stdout
    status = polydistill("status", str(folder))
    assert (status.returncode, "finished" in status.stdout) == (0, True), status.stdout + status.stderr
    assert verify_run(folder)
    made = pd.FinishedRun(folder)
    assert {row["measure"] for row in made.results} == {
        "cosine with the teacher",
        "retrieval accuracy",
        "Spearman",
    }
    model, tokenizer = made.load()
    assert model.config.vocab_size == len(tokenizer)


def test_damage_is_told(finished, tmp_path) -> None:
    values, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    shutil.move(tmp_path / "run/student/final", tmp_path / "final")
    with pytest.raises(UserError, match=r"student/final.*it is gone"):
        verify_run(tmp_path / "run")
    shutil.move(tmp_path / "final", tmp_path / "run/student/final")
    values = values | {"output": str(tmp_path / "run")}
    broken = tmp_path / "run/vectors/en/train.npy"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    with pytest.raises(UserError, match=r"vectors/en.*train\.npy is not what was written"):
        run(values)


def test_a_grid_compares_losses(data, tmp_path) -> None:
    base = recipe_of(data, tmp_path / "unused")
    for key in ("name", "output"):
        base.pop(key)
    base["training"] = base["training"] | {"max_steps": 3}
    grid = {
        "recipe": "grid",
        "name": "losses",
        "output": str(tmp_path / "grid"),
        "base": base,
        "runs": {"cosine": {"loss": "cosine"}, "mse": {"loss": "mse"}},
    }
    folder, _ = run(grid)
    # The teacher is asked once for all runs.
    places = json.loads((folder / "mse/artefacts.json").read_text("utf-8"))
    assert places["vectors/en"] == str((folder / "cosine/vectors/en").resolve())
    rows = json.loads((folder / "evaluation/grid.json").read_text("utf-8"))["rows"]
    measures = Counter((row["run"], row["measure"]) for row in rows if row["model"] == "student")
    assert measures["cosine", "Spearman"] == measures["mse", "Spearman"] == 1
    assert measures["mse", "cosine with the teacher"] == 2
