"""A merge whose student has a vocabulary of its own: the tokenizer, and the teachers' labels in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer

from polydistill.config.merge import LEARNED, UNION, MergeRecipe
from polydistill.corpora.examples import Examples
from polydistill.disk import Json, write_json
from polydistill.errors import TokenizerError
from polydistill.pipelines.merge.state import Merge
from polydistill.pipelines.run_folder import Artefact, fingerprints
from polydistill.pipelines.stages.tokenizer import balanced, texts_of
from polydistill.scoring.crossing import CROSSING_VERSION, UNCUT, Coverage, Crossing, cross
from polydistill.store.reader import Store
from polydistill.store.schema import store_bytes
from polydistill.store.writer import StoreWriter
from polydistill.tokenization.drift import Segmentation, compare_segmentation
from polydistill.tokenization.load import LoadedTokenizer, load_vocabulary
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.selection import document_frequency, select
from polydistill.tokenization.student import union_tokenizer
from polydistill.tokenization.union import ROLE_IDS, Planned, overlap, unite
from polydistill.tokenization.wordpiece import (
    ACCENTED_SCRIPTS,
    check_filled,
    save_tokenizer,
    special_strings,
    train_wordpiece,
)

# Language → a function that reads its text from the beginning.
Texts = Mapping[str, Callable[[], Iterable[str]]]
# Of a language's tokens, beyond its teachers' own share: more, and the vocabulary cannot spell the language.
MAX_UNKNOWN = 0.02
SEGMENTATION_TEXTS = 2000


def planned_vocabulary(merge: Merge) -> Planned:
    """The size and special tokens of the student's vocabulary, before it is made.

    A trimmed union has at most the union's size.
    """
    student = merge.recipe.student
    if student.vocabulary == LEARNED:
        return Planned(student.tokenizer.size)
    if student.vocabulary != UNION:
        loaded = load_vocabulary(student.vocabulary, field="student.vocabulary")
        return Planned(loaded.size, loaded.special_ids)
    return Planned(merge.union.size, merge.union.special_ids)


def build_own(merge: Merge) -> None:
    """Make the student's tokenizer, and measure how it splits the languages' text."""
    recipe, run = merge.recipe, merge.run
    student = recipe.student
    named = student.vocabulary not in (UNION, LEARNED)
    inputs = {
        "stage": "own vocabulary",
        "vocabulary": load_vocabulary(student.vocabulary, field="student.vocabulary").fingerprint
        if named
        else student.vocabulary,
        "tokenizers": [[name, tokenizer.fingerprint] for name, tokenizer in merge.tokenizers.items()],
        "settings": student.tokenizer.model_dump(mode="json"),
        "languages": {language: settings.teachers for language, settings in recipe.languages.items()},
        "corpora": fingerprints(merge.corpora),
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        "max_length": merge.student_length,
    }
    made = run.make("tokenizer", inputs, partial(_write_own, merge), reuse="copy")
    merge.own = load_vocabulary(str(made.path), field="tokenizer")


def _write_own(merge: Merge, folder: Path) -> None:
    recipe, run = merge.recipe, merge.run
    named = recipe.student.vocabulary
    length = max(merge.student_length, 512)
    settings: Json = {}
    if named in (UNION, LEARNED):
        texts = {
            language: partial(texts_of, Examples(corpus.path / "train.arrow"))
            for language, corpus in merge.corpora.items()
        }
        make = trimmed_union if named == UNION else learned
        backend, specials = make(recipe, merge.tokenizers, texts), STUDENT_SPECIALS
    else:
        given = load_vocabulary(named, field="student.vocabulary")
        backend, specials, settings = given.backend, special_strings(given), given.settings
    settings = settings | {"model_max_length": length}
    save_tokenizer(backend, folder, specials=specials, max_length=length, settings=settings)
    own = load_vocabulary(str(folder), field="student.vocabulary")
    measured = {
        f"{language}/{name}": _segmentation(merge, language, name, own)
        for language, of_language in recipe.languages.items()
        for name in of_language.teachers
    }
    write_json(
        folder / "vocabulary.json",
        {
            "size": own.size,
            "teachers": {name: tokenizer.size for name, tokenizer in merge.tokenizers.items()},
            "overlap": overlap(list(merge.tokenizers.values())).tolist(),
            "own": named,
            "segmentation": {name: each.as_dict() for name, each in measured.items()},
        },
    )
    run.say(f"tokenizer: {'trimmed union' if named == UNION else named} of {own.size:,} pieces")
    for name, each in measured.items():
        run.say(
            f"  {name}: {each.fertility:.2f} tokens a word (the teacher's {each.own_fertility:.2f}), unknown "
            f"{each.unknown_share:.2%} (the teacher's {each.own_unknown_share:.2%})"
        )
    check_spelling(recipe, measured)


def learned(
    recipe: MergeRecipe, tokenizers: Mapping[str, LoadedTokenizer], texts: Texts, *, filled: bool = True
) -> Tokenizer:
    """One WordPiece for all languages.

    texts   language → a function that reads its text from the beginning
    filled  whether to raise TokenizerError if the text fills fewer pieces than the recipe asks for
    """
    settings = recipe.student.tokenizer
    lowercase = settings.lowercase
    if lowercase is None:
        lowercase = all(tokenizer.lowercases for tokenizer in tokenizers.values())
    strip = settings.strip_accents
    made = train_wordpiece(
        partial(balanced, texts, recipe.corpora.smoothing_alpha),
        size=settings.size,
        lowercase=lowercase,
        strip_accents=(list(ACCENTED_SCRIPTS) if lowercase else False) if strip is None else strip,
    )
    if filled:
        check_filled(made, settings.size, field="student.tokenizer.size")
    return made


def trimmed_union(recipe: MergeRecipe, tokenizers: Mapping[str, LoadedTokenizer], texts: Texts) -> Tokenizer:
    """The union of the pieces that each teacher's languages use.

    texts  language → a function that reads its text from the beginning
    """
    views = []
    for name, tokenizer in tokenizers.items():
        frequencies = {
            language: document_frequency(tokenizer.backend, texts[language](), tokenizer.size)
            for language, settings in recipe.languages.items()
            if name in settings.teachers
        }
        selection = select(
            tokenizer, frequencies, min_document_share=recipe.student.tokenizer.min_document_share
        )
        kept = set(selection.kept.tolist())
        pieces = [piece if index in kept else None for index, piece in enumerate(tokenizer.pieces)]
        views.append(SimpleNamespace(pieces=pieces, special_ids=tokenizer.special_ids))
    settings = recipe.student.tokenizer
    return union_tokenizer(
        unite(views), list(tokenizers.values()), lowercase=settings.lowercase, strip_accents=settings.stripped
    )


def sampled_vocabulary(
    recipe: MergeRecipe, tokenizers: Mapping[str, LoadedTokenizer], texts: Mapping[str, Sequence[str]]
) -> LoadedTokenizer:
    """The student's own vocabulary as a sample of each language's text makes it, for a plan."""
    if recipe.student.vocabulary not in (UNION, LEARNED):
        return load_vocabulary(recipe.student.vocabulary, field="student.vocabulary")
    readers: Texts = {language: partial(iter, each) for language, each in texts.items()}
    if recipe.student.vocabulary == LEARNED:
        backend = learned(recipe, tokenizers, readers, filled=False)
    else:
        backend = trimmed_union(recipe, tokenizers, readers)
    return LoadedTokenizer("student", backend, dict(ROLE_IDS), UNCUT)


def _segmentation(merge: Merge, language: str, teacher: str, own: LoadedTokenizer) -> Segmentation:
    examples = Examples(merge.corpora[language].path / "held_out.arrow")
    texts = examples.texts(examples.first(SEGMENTATION_TEXTS))
    return compare_segmentation(own, merge.tokenizers[teacher], texts)


def check_spelling(recipe: MergeRecipe, measured: Mapping[str, Segmentation]) -> None:
    """Raise TokenizerError for a language that the vocabulary cannot spell."""
    for language, settings in recipe.languages.items():
        best = min(
            (measured[f"{language}/{name}"] for name in settings.teachers),
            key=lambda each: each.own_unknown_share,
        )
        if best.unknown_share > best.own_unknown_share + MAX_UNKNOWN:
            raise TokenizerError(
                "student.vocabulary",
                recipe.student.vocabulary,
                f"leaves {best.unknown_share:.1%} of the tokens of language {language} unknown (its teacher "
                f"{best.own_unknown_share:.1%})",
                "use a vocabulary with the language's characters, or `learned`",
            )


def cross_labels(merge: Merge) -> None:
    """Bring every store into the student's vocabulary; nothing to do for the union."""
    if merge.own is None:
        return
    for (language, name), stores in merge.stores.items():
        crossing: Crossing | None = None
        for draw, store in enumerate(stores):
            if crossing is None:
                crossing = Crossing.prepare(
                    merge.tokenizers[name], merge.own, (merge.recipe.corpora.max_length, merge.student_length)
                )
            stored = name if draw == 0 else f"{name}@{draw}"
            merge.labels.setdefault((language, name), []).append(
                _crossed(merge, f"labels/{language}/{stored}", store, crossing, language)
            )


def _crossed(merge: Merge, place: str, store: Artefact, crossing: Crossing, language: str) -> Artefact:
    recipe, run = merge.recipe, merge.run
    assert isinstance(store.inputs, dict)
    identity: Json = store.inputs | {
        "crossed": CROSSING_VERSION,
        "from": store.fingerprint,
        "vocabulary": crossing.student.fingerprint,
        "vocabulary_size": crossing.student.size,
        "max_length": merge.student_length,
    }
    source = Store(store.path)
    size = recipe.scoring.shard_examples

    def write(folder: Path) -> None:
        writer = StoreWriter(folder, identity)
        texts = Examples(merge.corpora[language].path / "train.arrow")
        coverage = Coverage()
        for index, chunk in enumerate(_chunks(len(source), size)):
            stored = [source.row(row) for row in chunk]
            read = texts.texts(texts.rows_of([row.example for row in stored]))
            made, of_chunk = cross(stored, read, crossing, seed=recipe.seed)
            coverage += of_chunk
            writer.write(index, made)
        writer.finish({"coverage": asdict(coverage)})
        run.say(f"{place}: {describe(coverage)}")

    def needs_bytes() -> float:
        tokens = sum(shard["tokens"] for shard in source.manifest["shards"])
        return store_bytes(
            tokens,
            vocabulary_size=crossing.student.size,
            max_length=merge.student_length,
            top_k=recipe.scoring.top_k,
            masked_share=recipe.masking.probability,
        )

    return run.make(place, identity, write, reuse=True, stage=f"labels/{language}", needs_bytes=needs_bytes)


def describe(coverage: Coverage) -> str:
    """A line about a store's labels in another vocabulary."""
    positions = max(1, coverage.positions)
    return (
        f"{coverage.candidates / positions:.1%} of {coverage.positions:,} masked pieces have the teacher's "
        f"candidates, {coverage.likelihood / positions:.1%} the probability of the text alone; "
        f"{coverage.expressible / max(1e-9, coverage.stored):.1%} of its stored probability is expressible"
    )


def _chunks(number: int, size: int) -> Iterator[range]:
    for start in range(0, number, size):
        yield range(start, min(start + size, number))
