"""The corpora stage, shared by the recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Corpora, Source
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.counting import TokenCounter
from polydistill.corpora.packing import PACKING_VERSION
from polydistill.corpora.pool import Alone, Pool, Processes, default_workers
from polydistill.corpora.sources import refuse_changed, source_bytes, source_identity, source_states
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.tokenization.load import LoadedTokenizer


@contextmanager
def corpora_pool(settings: Corpora, run: Run) -> Iterator[Pool]:
    """Where a run's texts are prepared; workers start at the first text of several parts."""
    pool: Pool
    if settings.engine == "ray":
        # Imported here: preparing text on one machine needs no Ray.
        from polydistill.corpora.ray_pool import RayTasks

        pool = RayTasks(settings.address, settings.workers, run.say)
    else:
        workers = settings.workers or default_workers()
        pool = Alone(one_core=settings.workers == 1) if workers == 1 else Processes(workers, run.say)
    try:
        yield pool
    finally:
        pool.close()


def prepare_corpus(
    run: Run,
    language: str,
    *,
    text: Sequence[Source],
    evaluation: Mapping[str, Sequence[Source]],
    settings: Corpora,
    tokenizers: Sequence[LoadedTokenizer],
    pool: Pool | None = None,
    place: tuple[int, int] = (0, 1),
    text_field: str | None = None,
    evaluation_field: str | None = None,
) -> Artefact:
    """Find a language's corpus, or build it.

    tokenizers  by each of them, every example has at most `settings.max_length` tokens
    pool        from `corpora_pool`
    place       (corpora that are finished, all of the run's)
    text_field, evaluation_field  the texts' fields in the recipe, for messages; by default under `languages`
    """
    fields = CorpusFields(
        text_field or f"languages.{language}.text", evaluation_field or f"languages.{language}.evaluation"
    )
    texts = {fields.text: text} | {
        fields.evaluation_text(name): sources for name, sources in evaluation.items()
    }
    states = {field: source_states(sources, field=field) for field, sources in texts.items()}
    inputs = {
        "stage": "corpus",
        "packing": PACKING_VERSION,
        "language": language,
        "text": source_identity(text, field=fields.text),
        "evaluation": {
            name: source_identity(sources, field=fields.evaluation_text(name))
            for name, sources in evaluation.items()
        },
        "settings": settings.content(),
        "tokenizers": [tokenizer.fingerprint for tokenizer in tokenizers],
    }

    def progress(step: str, done: int, total: int) -> None:
        of_all = f" of {total:,}" if total else ""
        run.count("corpora", *place, "languages", note=f"{language}: {done:,}{of_all} parts {step}")

    def write(folder: Path) -> None:
        specials = max(tokenizer.backend.num_special_tokens_to_add(False) for tokenizer in tokenizers)
        statistics = build_corpus(
            folder,
            sources=text,
            evaluation=evaluation,
            settings=settings,
            count_tokens=TokenCounter([tokenizer.backend for tokenizer in tokenizers]),
            max_tokens=settings.max_length - specials,
            fields=fields,
            pool=pool,
            progress=progress,
        )
        for field, before in states.items():
            refuse_changed(before, field=field)
        run.say(f"corpora/{language}: {_summary(statistics['splits'])}")

    def needs_bytes() -> float:
        # Cleaned lines and examples of the parts lie beside the corpus until it is whole.
        return 3 * sum(source_bytes(sources, field=field) for field, sources in texts.items())

    return run.make(
        f"corpora/{language}", inputs, write, reuse=True, needs_bytes=needs_bytes, keep_partial=True
    )


def _summary(splits: Mapping[str, Mapping[str, float]]) -> str:
    train, held_out = splits["train"], splits["held_out"]
    return (
        f"{train['examples']:,} examples, {train['characters']:,} characters, {held_out['examples']:,} held "
        f"out, {train['fill']:.0%} full"
    )


def prepare_corpora(
    recipe: PretrainRecipe | BalanceRecipe, run: Run, tokenizer: LoadedTokenizer
) -> dict[str, Artefact]:
    """Each language's corpus."""
    corpora = {}
    with corpora_pool(recipe.corpora, run) as pool:
        for number, language in enumerate(recipe.languages):
            settings = recipe.languages[language]
            place = number, len(recipe.languages)
            run.count("corpora", *place, "languages")
            corpora[language] = prepare_corpus(
                run,
                language,
                text=settings.text,
                evaluation=settings.evaluation,
                settings=recipe.corpora,
                tokenizers=[tokenizer],
                pool=pool,
                place=place,
            )
    return corpora
