"""The scoring stage of a merge: the store of every teacher over every one of its languages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from polydistill.corpora import Examples
from polydistill.files import (
    artefact,
    fingerprint,
)
from polydistill.models import (
    device,
    load_masked_lm,
    resolve_dtype,
    weights_fingerprint,
)
from polydistill.recipes.merge_state import Merge
from polydistill.recipes.run_folder import Run
from polydistill.scoring import score
from polydistill.store import Store
from polydistill.training import (
    clock,
)


def score_teachers(merge: Merge) -> None:
    """The store of every teacher over every one of its languages."""
    recipe, run = merge.recipe, merge.run
    dtype = resolve_dtype(recipe.scoring.precision)
    for name, teacher in recipe.teachers.items():
        languages = [language for language, settings in recipe.languages.items() if name in settings.teachers]
        weights = weights_fingerprint(teacher.model, revision=teacher.revision) if languages else ""
        model = None
        for language in languages:
            place = f"store/{language}/{name}"
            identity, found = _find_store(merge, language, name, weights)
            if found is not None:
                Store(found).check_identity(identity, field=f"languages.{language}")
                merge.stores[language, name] = run.use(place, found)
                continue
            if model is None:
                model = load_masked_lm(
                    teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
                ).to(device())
            examples = Examples(merge.corpora[language][0] / "train.arrow")
            target = run.path / "store" / language / name
            with (
                run.stage(f"score/{language}/{name}"),
                artefact(target, identity, keep_partial=True) as folder,
            ):
                result = score(
                    folder, identity, examples, merge.tokenizers[name], model,
                    scoring=recipe.scoring, masking=recipe.masking, max_length=recipe.corpora.max_length,
                    dtype=dtype, seed=recipe.seed, progress=_counter(run, f"score/{language}/{name}", len(examples)),
                )  # fmt: skip
            merge.stores[language, name] = run.use(place, target)
            store = Store(target)
            speed = result["tokens_scored"] / result["seconds"] if result["seconds"] else 0
            run.say(
                f"store/{language}/{name}: {store.num_masked:,} masked positions, {store.num_bytes / 2**20:.1f} MiB, "
                f"{speed:,.0f} tokens/s"
            )


def _find_store(merge: Merge, language: str, name: str, weights: str) -> tuple[dict[str, Any], Path | None]:
    """(what the store has to be, its folder if it is there).

    With `precision: auto` a store that another machine computed in the other precision is as good.
    """
    precision = merge.recipe.scoring.precision
    wanted = resolve_dtype(precision)
    others = (
        [dtype for dtype in (torch.bfloat16, torch.float32) if dtype != wanted] if precision == "auto" else []
    )
    for dtype in (wanted, *others):
        identity = _store_identity(merge, language, name, weights, str(dtype).removeprefix("torch."))
        found = merge.run.find(f"store/{language}/{name}", identity)
        if found is not None:
            return identity, found
    return _store_identity(merge, language, name, weights, str(wanted).removeprefix("torch.")), None


def _store_identity(merge: Merge, language: str, name: str, weights: str, dtype: str) -> dict[str, Any]:
    recipe, tokenizer = merge.recipe, merge.tokenizers[name]
    return {
        "language": language,
        "teacher": name,
        "weights": weights,
        "tokenizer": tokenizer.fingerprint,
        "corpus": fingerprint(merge.corpora[language][1]),
        "masking": recipe.masking.model_dump(mode="json"),
        "top_k": recipe.scoring.top_k,
        "sampling": recipe.scoring.sampling,
        "precision": dtype,
        "max_length": recipe.corpora.max_length,
        "vocabulary_size": tokenizer.size,
        "shard_examples": recipe.scoring.shard_examples,
        "batch_tokens": recipe.scoring.batch_tokens,
        "seed": recipe.seed,
    }


def _counter(run: Run, name: str, total: int) -> Any:
    """A progress callback that says every tenth of the way how far it is and the time left."""
    state = {"done": 0, "fresh": 0, "said": 0, "started": time.perf_counter()}

    def progress(examples: int, tokens: int) -> None:
        state["done"] += examples
        if tokens:
            state["fresh"] += examples
        tenth = state["done"] * 10 // max(1, total)
        if tenth > state["said"] and state["fresh"]:
            state["said"] = tenth
            seconds = time.perf_counter() - state["started"]
            left = seconds / state["fresh"] * (total - state["done"])
            run.say(f"{name}: {state['done']:,}/{total:,} examples, {clock(left)} left")

    return progress
