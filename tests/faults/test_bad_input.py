"""Users' mistakes: exit 2, a message with field, value and remedy, nothing lost."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.faults.harness import copy_teacher, expect_refusal, only_russian, run

from polydistill.config.load import parse_recipe
from polydistill.disk import read_json, write_json
from polydistill.errors import RecipeError, StoreError, UserError
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.run import run_recipe
from polydistill.store.reader import Store
from polydistill.tools.verify import verify_stores


def plan_errors(values: dict) -> str:
    """The errors in a plan, for which a run would refuse."""
    conflicts = plan_recipe(parse_recipe(values), (), Console(file=io.StringIO()))
    return "\n".join(conflict.what for conflict in conflicts if conflict.level == "error")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"studnet": {}}, ["studnet", "did you mean 'student'"]),
        ({"scoring": {"topk": 3}}, ["scoring.topk", "did you mean 'top_k'"]),
        ({"masking": {"probability": 1.5}}, ["masking.probability 1.5"]),
        ({"languages": {}}, ["languages"]),
        ({"name": "../../x"}, ["name '../../x'"]),
        ({"languages": {"../x": {"text": "a", "teachers": ["en"]}}}, ["languages", "../x"]),
        (
            {"languages": {"sw": {"text": "a", "teachers": ["bert-sw"]}}},
            ["languages.sw.teachers[0] 'bert-sw'", "defines en, en2, ru"],
        ),
        ({"recipe": "mix"}, ["recipe 'mix'", "merge, extract, balance"]),
        ({"training": {"max_step": 5}}, ["training.max_step", "did you mean 'max_steps'"]),
        ({"training": {"max_steps": -1}}, ["training.max_steps -1"]),
    ],
)
def test_recipe_errors(recipe_values, change, wanted) -> None:
    expect_refusal(recipe_values | change, *wanted)
    assert not list(Path(recipe_values["output"]).rglob("*.arrow"))


def test_exit_code_two_and_no_traceback(tmp_path, recipe_values) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values | {"trainng": {}}), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "polydistill", "run", str(recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "trainng" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: 1\na: 2", "- a", "x: &a [1]\ny: [" + "*a," * 200 + "]", "!!python/object:os.system x"],
)
def test_yaml_that_is_none(tmp_path, text) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        run_recipe(path)
    assert "bad.yaml" in str(caught.value)


def test_missing_file(recipe_values) -> None:
    recipe_values["languages"]["ru"]["text"] = "nowhere.txt"
    expect_refusal(recipe_values, "languages.ru.text[0] 'nowhere.txt'", "no such file")


def test_empty_corpus(recipe_values, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", "utf-8")
    recipe_values["languages"]["ru"]["text"] = str(tmp_path / "empty.txt")
    expect_refusal(recipe_values, "languages.ru.text", "2 empty")


def test_corpus_too_small_to_hold_anything_out(recipe_values, tmp_path) -> None:
    (tmp_path / "one.txt").write_text("одно предложение\n", "utf-8")
    recipe_values["languages"]["ru"]["text"] = str(tmp_path / "one.txt")
    expect_refusal(recipe_values, "languages.ru.text", "held out", "block_lines")


def test_text_that_is_not_utf8(recipe_values, tmp_path) -> None:
    (tmp_path / "latin.txt").write_bytes("Straße und Bücher\nGrüße\nÜber\nÄhnlich\n".encode("latin-1") * 20)
    recipe_values["languages"]["ru"]["text"] = str(tmp_path / "latin.txt")
    expect_refusal(recipe_values, "latin.txt", "not UTF-8", "iconv")


def test_model_that_is_nowhere(recipe_values, tmp_path) -> None:
    expect_refusal(only_russian(recipe_values, tmp_path / "none"), "teachers.ru", "no such folder")


def test_model_without_an_mlm_head(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "headless")
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("cls.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expect_refusal(only_russian(recipe_values, folder), "teachers.ru", "lacks weights", "cls.predictions")


def test_decoder_as_teacher(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "gpt")
    config = json.loads((folder / "config.json").read_text())
    write_json(
        folder / "config.json", {"model_type": "gpt2", "vocab_size": config["vocab_size"], "n_positions": 64}
    )
    expect_refusal(only_russian(recipe_values, folder), "teachers.ru", "is a decoder", "gpt2")
    copied = only_russian(recipe_values, folder)
    copied["student"] = {"init": "teachers", "encoder_from": "ru"}
    expect_refusal(copied, "teachers.ru", "is a decoder", "give a masked language model")


def test_model_without_a_tokenizer(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "bare")
    for path in folder.glob("*token*"):
        path.unlink()
    for path in folder.glob("vocab*"):
        path.unlink()
    expect_refusal(
        only_russian(recipe_values, folder), "teachers.ru", "holds no tokenizer", "tokenizer: OTHER"
    )


def test_tokenizer_without_a_mask_token(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "maskless")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    write_json(folder / "tokenizer_config.json", settings)
    expect_refusal(only_russian(recipe_values, folder), "teachers.ru", "no mask token")


def test_tokenizer_of_another_model(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"vocab_size": 100})
    expect_refusal(only_russian(recipe_values, folder), "pieces and the model 100 rows")


class Bomb:
    def __reduce__(self):
        return (os.system, (f"touch {os.environ['BOMB']}",))


def test_a_length_that_is_no_number(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "odd")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": [64]}))
    expect_refusal(only_russian(recipe_values, folder), "teachers.ru", "model_max_length")


def test_pickle_only_checkpoint_is_refused_before_it_is_opened(
    recipe_values, teachers, tmp_path, monkeypatch
) -> None:
    folder = copy_teacher(teachers, tmp_path / "pickle")
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    expect_refusal(only_russian(recipe_values, folder), "pickle", "allow_pickle")
    values = only_russian(recipe_values, folder)
    values["teachers"] = {"ru": {"model": str(folder), "allow_pickle": True}}
    expect_refusal(values, "teachers.ru")
    assert not (tmp_path / "exploded").exists()


def test_allowed_pickle_loads(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "pickle")
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    values = only_russian(recipe_values, folder)
    values["teachers"] = {"ru": {"model": str(folder), "allow_pickle": True}}
    assert run(values).is_dir()


def test_k_larger_than_the_vocabulary(recipe_values) -> None:
    recipe_values["scoring"]["top_k"] = 100_000
    expect_refusal(recipe_values, "scoring.top_k 100000", "vocabulary")
    assert "scoring.top_k 100000: larger than the vocabulary of teacher en" in plan_errors(recipe_values)


def test_sequences_too_long_for_a_teacher(recipe_values) -> None:
    recipe_values["corpora"]["max_length"] = 512
    expect_refusal(recipe_values, "corpora.max_length 512", "at most 64 tokens")
    assert "corpora.max_length 512: teacher en takes at most 64 tokens" in plan_errors(recipe_values)


def test_a_plan_of_a_pre_training_without_its_text() -> None:
    values = {"recipe": "pretrain", "name": "x", "languages": {"en": {"text": "nowhere.txt"}}}
    assert "languages.en.text[0] 'nowhere.txt': no such file" in plan_errors(values)


def test_nan_from_a_teacher(recipe_values, teachers, tmp_path) -> None:
    folder = copy_teacher(teachers, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expect_refusal(
        only_russian(recipe_values, folder), "teachers.ru", "NaN", "bert.encoder.layer.0.output.dense.weight"
    )


def test_overflow_in_a_teacher(recipe_values, teachers, tmp_path) -> None:
    """Finite weights whose predictions are not finite."""
    folder = copy_teacher(teachers, tmp_path / "inf")
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.transform.LayerNorm.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expect_refusal(only_russian(recipe_values, folder), "predicts NaN or infinity")


def test_truncated_and_flipped_shards(recipe_values) -> None:
    folder = run(only_russian(recipe_values, recipe_values["teachers"]["ru"]))
    shard = sorted((folder / "store" / "ru" / "ru").glob("shard-*.arrow"))[0]
    whole = shard.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(UserError, match=r"shard-00000.*checksum"):
        verify_stores(folder / "store")
    shard.write_bytes(whole[:-100])
    values = only_russian(recipe_values, recipe_values["teachers"]["ru"])
    expect_refusal(values, "store/ru/ru", "shard-00000.arrow is not what was written", until="train")
    # A store without the stamp's checksums, such as a copy, still knows its sizes.
    with pytest.raises(UserError, match=r"shard-00000.* bytes, but the manifest has"):
        verify_stores(folder / "store")
    shard.write_bytes(whole)
    assert run(values, "train").is_dir()


def test_folder_of_another_recipe(recipe_values) -> None:
    folder = run(recipe_values)
    before = {path: path.read_bytes() for path in folder.rglob("*.arrow")}
    expect_refusal(recipe_values | {"seed": 5}, "output", "seed: 0 → 5", "--update")
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_of_an_earlier_version_goes_on(recipe_values) -> None:
    """Newer settings count as their defaults; a changed default still shows."""
    folder = run_recipe(parse_recipe(recipe_values), until="corpora", show=lambda line: None)
    path = folder / "recipe.yaml"
    old = yaml.safe_load(path.read_text("utf-8"))
    del old["card"]
    path.write_text(yaml.safe_dump(old), "utf-8")
    expect_refusal(recipe_values | {"card": {"license": "mit"}}, "output", "card.license", "mit")
    assert run_recipe(parse_recipe(recipe_values), until="corpora", show=lambda line: None) == folder


def test_folder_that_is_no_run(recipe_values) -> None:
    folder = Path(recipe_values["output"])
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    expect_refusal(recipe_values, "not a run's folder")
    assert (folder / "thesis.txt").read_text() == "mine"


def test_store_scored_with_another_teacher(recipe_values, teachers) -> None:
    """The teacher's weights change under the same recipe: the store is not used, but scored again."""
    values = only_russian(recipe_values, recipe_values["teachers"]["ru"])
    folder = run(values)
    manifest = folder / "store" / "ru" / "ru" / "manifest.json"
    content = read_json(manifest)
    content["identity"]["weights"] = "0" * 32
    write_json(manifest, content)
    expect_refusal(values, "its file manifest.json is not what was written")
    # A store of an earlier version has no checksums of its files.
    stamp = json.loads((manifest.parent / "stamp.json").read_text())
    write_json(manifest.parent / "stamp.json", {key: stamp[key] for key in ("fingerprint", "inputs")})
    expect_refusal(values, "its weights is", "score again")
    with pytest.raises(StoreError, match="is not the manifest's"):
        Store(manifest.parent).row(0)
    content["shards"][0]["file"] = "../../other/shard-00000.arrow"
    write_json(manifest, content)
    with pytest.raises(StoreError, match=r"shards\.0\.file"):
        Store(manifest.parent)
    write_json(manifest, content | {"shards": []})
    with pytest.raises(StoreError, match="shards"):
        Store(manifest.parent)


def test_a_folder_that_was_moved_is_still_that_run(recipe_values) -> None:
    old = Path(recipe_values["output"])
    run(recipe_values, "corpora")
    made = (old / "corpora" / "en" / "train.arrow").stat().st_mtime_ns
    new = old.rename(old.with_name("moved"))
    run(recipe_values | {"output": str(new)}, "corpora")
    assert (new / "corpora" / "en" / "train.arrow").stat().st_mtime_ns == made
    assert not old.exists()
    expect_refusal(
        recipe_values | {"output": str(new), "seed": 5}, "belongs to a recipe with other settings (seed: 0"
    )


def test_two_runs_on_one_folder(recipe_values) -> None:
    import fcntl

    folder = Path(recipe_values["output"])
    run(recipe_values, "corpora")
    with (folder / ".lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        expect_refusal(recipe_values, "in use by process")
