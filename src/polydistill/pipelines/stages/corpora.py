"""The corpora stage, shared by the recipes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polydistill.artefacts import artefact, partial_folder
from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Corpora, Source
from polydistill.corpora.corpus import build_corpus
from polydistill.corpora.packing import PACKING_VERSION
from polydistill.corpora.sources import source_bytes, source_identity
from polydistill.disk import require_space
from polydistill.pipelines.run_folder import Run
from polydistill.tokenization.encode import count_tokens
from polydistill.tokenization.load import LoadedTokenizer


def prepare_corpus(
    run: Run,
    language: str,
    *,
    text: Sequence[Source],
    evaluation: dict[str, list[Source]],
    settings: Corpora,
    tokenizers: Sequence[LoadedTokenizer],
    field: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Build a language's corpus, or find it; returns its folder and what it was made from.

    tokenizers  those that must be able to take every example within `settings.max_length` tokens
    field       where the recipe has the language, for messages; by default under `languages`
    """
    field = field or f"languages.{language}"
    inputs = {
        "stage": "corpus",
        "packing": PACKING_VERSION,
        "language": language,
        "text": source_identity(text, field=f"{field}.text"),
        "evaluation": {
            name: source_identity(sources, field=f"{field}.evaluation.{name}")
            for name, sources in evaluation.items()
        },
        # How languages are weighed against each other changes no language's examples.
        "settings": settings.model_dump(mode="json", exclude={"smoothing_alpha"}),
        "tokenizers": [tokenizer.fingerprint for tokenizer in tokenizers],
    }
    found = run.find(f"corpora/{language}", inputs)
    if found is not None:
        return run.use(f"corpora/{language}", found), inputs
    target = run.path / "corpora" / language
    size = sum(source_bytes(sources, field=field) for sources in (text, *evaluation.values()))
    require_space(partial_folder(target), size, stage=f"corpora/{language}")
    specials = max(tokenizer.backend.num_special_tokens_to_add(False) for tokenizer in tokenizers)
    room = settings.max_length - specials
    with run.stage(f"corpora/{language}"), artefact(target, inputs) as folder:
        statistics = build_corpus(
            folder,
            sources=text,
            evaluation=evaluation,
            settings=settings,
            count_tokens=partial(count_tokens, [tokenizer.backend for tokenizer in tokenizers]),
            max_tokens=room,
            field=field,
        )
    train, held_out = statistics["splits"]["train"], statistics["splits"]["held_out"]
    run.say(
        f"corpora/{language}: {train['examples']:,} examples, {train['characters']:,} characters, "
        f"{held_out['examples']:,} held out, {train['fill']:.0%} full"
    )
    return run.use(f"corpora/{language}", target), inputs


def prepare_corpora(
    recipe: PretrainRecipe | BalanceRecipe, run: Run, tokenizer: LoadedTokenizer
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each language's corpus: its folder, and what it was made from."""
    return {
        language: prepare_corpus(
            run, language, text=settings.text, evaluation=settings.evaluation,
            settings=recipe.corpora, tokenizers=[tokenizer],
        )
        for language, settings in recipe.languages.items()
    }  # fmt: skip
