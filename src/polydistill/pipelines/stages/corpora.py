"""The corpora stage, shared by the recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Corpora, Source
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.packing import PACKING_VERSION
from polydistill.corpora.sources import source_bytes, source_identity
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.tokenization.encode import count_tokens
from polydistill.tokenization.load import LoadedTokenizer


def prepare_corpus(
    run: Run,
    language: str,
    *,
    text: Sequence[Source],
    evaluation: Mapping[str, Sequence[Source]],
    settings: Corpora,
    tokenizers: Sequence[LoadedTokenizer],
    text_field: str | None = None,
    evaluation_field: str | None = None,
) -> Artefact:
    """Find a language's corpus, or build it.

    tokenizers  by each of them, every example has at most `settings.max_length` tokens
    text_field, evaluation_field  the texts' fields in the recipe, for messages; by default under `languages`
    """
    fields = CorpusFields(
        text_field or f"languages.{language}.text", evaluation_field or f"languages.{language}.evaluation"
    )
    inputs = {
        "stage": "corpus",
        "packing": PACKING_VERSION,
        "language": language,
        "text": source_identity(text, field=fields.text),
        "evaluation": {
            name: source_identity(sources, field=fields.evaluation_text(name))
            for name, sources in evaluation.items()
        },
        # Smoothing between languages changes no language's examples.
        "settings": settings.model_dump(mode="json", exclude={"smoothing_alpha"}),
        "tokenizers": [tokenizer.fingerprint for tokenizer in tokenizers],
    }

    def write(folder: Path) -> None:
        specials = max(tokenizer.backend.num_special_tokens_to_add(False) for tokenizer in tokenizers)
        statistics = build_corpus(
            folder,
            sources=text,
            evaluation=evaluation,
            settings=settings,
            count_tokens=partial(count_tokens, [tokenizer.backend for tokenizer in tokenizers]),
            max_tokens=settings.max_length - specials,
            fields=fields,
        )
        train, held_out = statistics["splits"]["train"], statistics["splits"]["held_out"]
        run.say(
            f"corpora/{language}: {train['examples']:,} examples, {train['characters']:,} characters, "
            f"{held_out['examples']:,} held out, {train['fill']:.0%} full"
        )

    def needs_bytes() -> float:
        return sum(source_bytes(sources, field=fields.text) for sources in (text, *evaluation.values()))

    return run.make(f"corpora/{language}", inputs, write, reuse=True, needs_bytes=needs_bytes)


def prepare_corpora(
    recipe: PretrainRecipe | BalanceRecipe, run: Run, tokenizer: LoadedTokenizer
) -> dict[str, Artefact]:
    """Each language's corpus."""
    corpora = {}
    for number, language in enumerate(recipe.languages):
        settings = recipe.languages[language]
        run.count("corpora", number, len(recipe.languages), "languages")
        corpora[language] = prepare_corpus(
            run,
            language,
            text=settings.text,
            evaluation=settings.evaluation,
            settings=recipe.corpora,
            tokenizers=[tokenizer],
        )
    return corpora
