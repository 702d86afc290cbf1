"""Seconds to a quality: the settings of before and those of now, trained until the same held-out loss.

Every run is a recipe in a folder of its own, and its seconds are those of all its stages up to the finished
model: text, vocabulary, scoring where there is a teacher, and training. The held-out text chose no setting.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from polydistill.config.load import parse_recipe, read_recipe
from polydistill.disk import Json, read_json
from polydistill.models.precision import resolve_dtype
from polydistill.pipelines.demo import DATA
from polydistill.pipelines.run import run_recipe

# What the demo's recipes said on 2026-11-27.
BEFORE: Json = {
    "masking.probability": 0.15,
    "masking.random_share": 0.1,
    "training.per_device_train_batch_size": 32,
}
RANDOM: Json = {"bias": "zero", "rows": "random", "attention": "random"}
STEPS_BEFORE = {"pretrain": 1120, "merge": 800}
LEARNING_RATE_BEFORE = {"pretrain": 3e-3, "merge": 2e-3}
# Steps of now, as shares of the examples that the steps of before saw.
SHARES = (0.125, 0.25, 0.375)


def run(
    languages: str = "en,ru", seeds: str = "2", scale: str = "1", merge: str = "en", width: str = "128"
) -> dict[str, Any]:
    """Pre-training of each language, and a merge of one teacher into a student of random weights.

    scale  of all steps, for a try
    merge  the language of the merge; '' for none
    width  of the models; 128 is the demo's, a GPU has room for more
    """
    settings = [("pretrain", language) for language in languages.split(",") if language]
    settings += [("merge", merge)] if merge else []
    results: dict[str, Any] = {"number_type": str(resolve_dtype("auto")).removeprefix("torch.")}
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        for kind, language in settings:
            rows: dict[str, dict[str, Any]] = {}
            sooner = []
            for seed in range(int(seeds)):
                before, now = compare(Path(root), kind, language, seed, float(scale), int(width))
                rows |= {f"before, seed {seed}": before} | {
                    f"now, seed {seed}, {n + 1}": r for n, r in enumerate(now)
                }
                seconds = seconds_until(before["loss"], now)
                sooner.append(None if seconds is None else round(before["seconds"] / seconds, 2))
                print(f"{kind} {language}, seed {seed}: {before} {now} {sooner[-1]}", flush=True)
            results[f"times sooner, {kind} {language}, by seed"] = ", ".join(map(str, sooner))
            tables[f"{kind} {language}"] = rows
    return results | tables


def compare(
    root: Path, kind: str, language: str, seed: int, scale: float, width: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(a run of before, runs of now of several lengths), with one seed."""
    if kind == "merge" and not (root / "teacher" / language).is_dir():
        teacher = root / "teacher" / language
        one_run(teacher, "pretrain", language, seed=1000, steps=int(2240 * scale), width=width, now=True)
    steps = max(8, int(STEPS_BEFORE[kind] * scale))
    before = one_run(
        root / f"{kind}-{language}-{seed}-before", kind, language, seed=seed, steps=steps, width=width
    )
    batch = int(preset(kind)["training"]["per_device_train_batch_size"])
    now = [
        one_run(
            root / f"{kind}-{language}-{seed}-{share}",
            kind,
            language,
            seed=seed,
            steps=max(8, round(steps * share * 32 / batch)),
            width=width,
            now=True,
        )
        for share in SHARES
    ]
    return before, now


def seconds_until(loss: float, runs: list[dict[str, Any]]) -> float | None:
    """Seconds of a run that ends at a loss, between two runs by the logarithm of their seconds.

    The shortest run's seconds if it ends below; None if the longest ends above.
    """
    shorter: dict[str, Any] | None = None
    for longer in runs:
        if longer["loss"] <= loss:
            if shorter is None:
                return float(longer["seconds"])
            part = (shorter["loss"] - loss) / (shorter["loss"] - longer["loss"])
            logarithm = math.log(shorter["seconds"]) * (1 - part) + math.log(longer["seconds"]) * part
            return round(math.exp(logarithm), 1)
        shorter = longer
    return None


def preset(kind: str) -> Json:
    """The demo's recipe of a kind."""
    return read_recipe({"pretrain": "demo-teacher", "merge": "demo-merge"}[kind])


def one_run(
    folder: Path, kind: str, language: str, *, seed: int, steps: int, width: int, now: bool = False
) -> dict[str, Any]:
    """Train one model; its steps, seconds, and quality on held-out text."""
    text = str(DATA / f"{language}.txt.xz")
    recipe = preset(kind) | {"name": folder.name, "output": str(folder), "seed": seed}
    if kind == "pretrain":
        recipe |= {"languages": {language: {"text": text}}}
    else:
        recipe |= {
            "teachers": {"teacher": str(folder.parent / "teacher" / language / "student" / "final")},
            "languages": {language: {"text": text, "teachers": "teacher"}},
            # The architecture of the teacher, for no weight of it.
            "student": {"model_type": "modernbert", "config": preset("pretrain")["model"]["config"]},
            # As the teacher was trained.
            "masking": {"probability": 0.3, "random_share": 0.0},
        }
    recipe["evaluation"] = {"max_examples": 1000}
    changes: Json = {"training.max_steps": steps, "training.logging_steps": steps}
    where = "model" if kind == "pretrain" else "student"
    changes |= {f"{where}.config.hidden_size": width, f"{where}.config.intermediate_size": 2 * width}
    if not now:
        changes |= BEFORE | {f"{where}.start.{name}": value for name, value in RANDOM.items()}
        if kind == "merge":
            changes["scoring.examples"] = "all"
        changes["training.learning_rate"] = LEARNING_RATE_BEFORE[kind]
    parsed = parse_recipe(recipe, [f"{key}={value}" for key, value in changes.items()])
    started = time.perf_counter()
    run_recipe(parsed, until="train", show=lambda line: None)
    seconds = time.perf_counter() - started
    run_recipe(parsed, until="evaluate", show=lambda line: None)
    rows = read_json(folder / "evaluation" / "mlm.json", dict)["languages"][language]
    row = next(
        row
        for row in rows
        if row["text"] == "held_out" and row["model"] == "student" and row["tokenizer"] == "own"
    )
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "mrr": round(row["mrr"], 4),
        "loss": round(row["loss"], 3),
        "masked_tokens": row["num_masked"],
    }
