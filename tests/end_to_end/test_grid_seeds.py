"""A grid with seeds: what is shared, what is made again, and its table and page."""

import json

import numpy as np
import pytest
from tests.finetuning import recipe_values as tuning_values
from tests.finetuning import task

from polydistill.config.load import parse_recipe
from polydistill.pipelines.run import run_recipe
from polydistill.reports.grid_tables import difference_tables

SEEDS = [0, 3]


def values(tmp_path, texts) -> dict:
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
    }
    models = {name: f"$grid/{name}/student/final" for name in ("slow", "fast")}
    tuned = tuning_values(tmp_path, models, {"tags": task(tmp_path, "pos")}, baseline="slow", num_seeds=2)
    return {
        "recipe": "grid",
        "name": "rates",
        "output": str(tmp_path / "grid"),
        "seeds": SEEDS,
        "equivalence_margin": 10,
        "base": {
            "recipe": "pretrain",
            "languages": {"en": {"text": {"path": str(texts["en"]), "num_lines": 400}}},
            "corpora": {"max_length": 32, "block_lines": 16, "held_out_share": 0.2},
            "tokenizer": {"size": 300},
            "model": {"config": config},
            "training": {
                "max_steps": 6,
                "per_device_train_batch_size": 8,
                "logging_steps": 2,
                "save_steps": 3,
                "bf16": False,
            },
            "evaluation": {"max_examples": 40, "precision": "float32", "num_samples": 1},
        },
        "runs": {
            "slow": {"training": {"learning_rate": 1e-4}},
            "fast": {"training": {"learning_rate": 1e-2}},
        },
        "after": {"tasks": {key: value for key, value in tuned.items() if key not in ("name", "output")}},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp("seeds")
    said: list[str] = []
    recipe = values(root, texts)
    run = run_recipe(parse_recipe(recipe), show=said.append)
    return recipe, run, said


def test_what_does_not_depend_on_the_seed_is_made_once(made) -> None:
    _, run, said = made
    made_at = {path.relative_to(run).parts[0] for path in run.glob("*/corpora/*/stamp.json")}
    assert made_at == {"slow-seed0"}
    assert sum("WordPiece of" in line for line in said) == 1
    tokenizers = {path.read_text("utf-8") for path in run.glob("*/tokenizer/tokenizer.json")}
    assert len(tokenizers) == 1
    weights = {path.read_bytes() for path in run.glob("*-seed*/student/final/model.safetensors")}
    assert len(weights) == 4
    # Fine-tuning takes its own two seeds for each seed.
    assert sorted(path.name for path in (run / "tasks-seed3/jobs/tags/fast").iterdir()) == ["en-6", "en-7"]


def test_a_table_has_means_and_differences_over_seeds(made) -> None:
    _, run, _ = made
    table = json.loads((run / "evaluation" / "grid.json").read_text("utf-8"))
    assert (table["variants"], table["seeds"]) == (["slow", "fast", "tasks"], SEEDS)
    rows = {(row["place"], row["measure"]): row for row in table["summary"]["rows"]}
    assert set(rows) == {
        ("en, held_out", "MRR"),
        ("tasks: tags, en", "accuracy"),
        ("tasks: tags, en", "macro f1"),
    }
    mrr = rows["en, held_out", "MRR"]
    by_hand = {
        name: np.mean(
            [
                json.loads((run / f"{name}-seed{seed}/evaluation/mlm.json").read_text("utf-8"))["languages"][
                    "en"
                ][0]["mrr"]
                for seed in SEEDS
            ]
        )
        for name in ("slow", "fast")
    }
    assert {name: cell["value"] for name, cell in mrr["cells"].items()} == pytest.approx(by_hand)
    difference = mrr["differences"]["fast"]
    assert difference["value"] == pytest.approx(by_hand["fast"] - by_hand["slow"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["knows"] == mrr["cells"]["slow"]["knows"] == "seeds and items"
    assert difference["adjusted"] == difference["p"]
    # The two measures of one task are two families of one.
    tags = rows["tasks: tags, en", "accuracy"]["cells"]
    scores = [
        json.loads((run / f"tasks-seed{seed}/evaluation/finetune.json").read_text("utf-8"))["scores"]["tags"][
            "fast"
        ]["en"]["accuracy"]
        for seed in SEEDS
    ]
    assert np.shape(scores) == (2, 2)
    assert tags["fast"]["value"] == pytest.approx(np.mean(scores))
    assert tags["fast"]["deviation"] == pytest.approx(np.std(np.mean(scores, axis=1), ddof=1))
    assert tags["fast"]["knows"] == "seeds and items"
    # Only runs of one seed are compared by their losses.
    assert {(row["run"], row["other"]) for row in table["sooner"]} == {
        (f"{a}-seed{seed}", f"{b}-seed{seed}")
        for a, b in (("slow", "fast"), ("fast", "slow"))
        for seed in SEEDS
    }
    assert [len(found.rows) for found in difference_tables(table)] == [2, 2, 2]


def test_the_page_says_what_its_intervals_know(made) -> None:
    _, run, _ = made
    page = (run / "report" / "index.html").read_text("utf-8")
    assert "seeds 0, 3" in page
    assert "<b>seeds and items</b>" in page
    assert "± 10 % of slow's figure, the margin that the recipe states" in page
    assert '<a href="../fast-seed3/report/index.html">' in page
    assert '<th class="n">fast</th>' in page
    assert "of 2 seeds" in page


def test_a_killed_grid_goes_on_and_another_seed_adds_to_it(made, texts) -> None:
    recipe, run, _ = made
    before = {path: path.stat().st_mtime_ns for path in run.glob("*-seed*/student/final/model.safetensors")}
    (run / "evaluation" / "grid.json").unlink()
    said: list[str] = []
    more = recipe | {"seeds": [*SEEDS, 5], "after": {}}
    run_recipe(parse_recipe(more), show=said.append, update=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (run / "fast-seed5/student/final/model.safetensors").is_file()
    assert not (run / "fast-seed5/corpora").exists()
    table = json.loads((run / "evaluation" / "grid.json").read_text("utf-8"))
    assert table["summary"]["rows"][0]["cells"]["fast"]["seeds"] == 3
