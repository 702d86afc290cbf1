"""The tokenizer stage of recipes that train a vocabulary on their text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from polydistill.artefacts import copy_artefact, is_current, unlisted_files
from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.corpora.corpus import CorpusFields, build_corpus
from polydistill.corpora.counting import count_characters
from polydistill.corpora.examples import Examples
from polydistill.corpora.packing import PACKING_VERSION
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.corpora.sources import source_bytes, source_identity
from polydistill.pipelines.run_folder import Run
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.tokenization.wordpiece import save_tokenizer, train_wordpiece

# The vocabulary's text has about this many characters at most; small languages are repeated within it.
MAX_VOCABULARY_CHARACTERS = 200_000_000


def build_tokenizer(recipe: PretrainRecipe | BalanceRecipe, run: Run) -> LoadedTokenizer:
    """Train one WordPiece on all languages' text, without held-out text."""
    inputs = {
        "stage": "wordpiece",
        "settings": recipe.tokenizer.model_dump(mode="json"),
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        "packing": PACKING_VERSION,
        "corpora": recipe.corpora.content() | {"smoothing_alpha": recipe.corpora.smoothing_alpha},
        "text": {
            language: source_identity(settings.text, field=f"languages.{language}.text")
            for language, settings in recipe.languages.items()
        },
    }

    def needs_bytes() -> float:
        return sum(source_bytes(sources, field=field) for field, sources in recipe.texts.items())

    def write(folder: Path) -> None:
        # It does not depend on the seed, say, by which two runs of a grid differ.
        for other in run.reuse:
            if is_current(other / "tokenizer", inputs):
                copy_artefact(other / "tokenizer", folder)
                run.say(f"tokenizer: taken from {other / 'tokenizer'}")
                return
        trained = _train_vocabulary(recipe, folder / "raw")
        shutil.rmtree(folder / "raw")
        save_tokenizer(trained, folder, specials=STUDENT_SPECIALS, max_length=recipe.corpora.max_length)
        run.say(f"tokenizer: WordPiece of {trained.get_vocab_size():,} pieces")

    return shared_tokenizer(recipe, run.make("tokenizer", inputs, write, needs_bytes=needs_bytes).path)


def _train_vocabulary(recipe: PretrainRecipe | BalanceRecipe, raw: Path) -> Tokenizer:
    """Train the WordPiece on the languages' text, which is first cleaned and split into `raw`.

    No tokenizer exists yet to pack text by, so characters count as tokens here. Training examples are
    packed again afterwards.
    """
    examples = {}
    for language, settings in recipe.languages.items():
        folder = raw / language
        folder.mkdir(parents=True)
        build_corpus(
            folder,
            sources=settings.text,
            evaluation={},
            settings=recipe.corpora,
            count_tokens=count_characters,
            max_tokens=4096,
            fields=CorpusFields(f"languages.{language}.text", f"languages.{language}.evaluation"),
        )
        examples[language] = Examples(folder / "train.arrow")
    wordpiece = recipe.tokenizer
    return train_wordpiece(
        partial(
            balanced,
            {language: partial(texts_of, of_language) for language, of_language in examples.items()},
            recipe.corpora.smoothing_alpha,
        ),
        size=wordpiece.size,
        lowercase=wordpiece.lowercase,
        strip_accents=wordpiece.strip_accents,
        min_frequency=wordpiece.min_frequency,
        limit_alphabet=wordpiece.limit_alphabet,
    )


def shared_tokenizer(recipe: PretrainRecipe | BalanceRecipe, folder: Path) -> LoadedTokenizer:
    """Load a tokenizer that a run made, with its special tokens."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = backend.get_vocab()
    ids = {role: vocabulary[token] for role, token in STUDENT_SPECIALS.items()}
    return LoadedTokenizer(recipe.name, backend, ids, recipe.corpora.max_length)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy a run's tokenizer into a model's folder, without files that the run did not write."""
    others = {"stamp.json", "vocabulary.json", *unlisted_files(tokenizer)}
    for path in tokenizer.iterdir():
        if path.is_file() and path.name not in others:
            shutil.copy(path, folder)


def balanced(texts: Mapping[str, Callable[[], Iterable[str]]], alpha: float) -> Iterator[str]:
    """The vocabulary's text; small languages are repeated by the exponential smoothing of training.

    texts  language → a function that reads its text from the beginning
    """
    sizes = {language: sum(map(len, read())) for language, read in texts.items()}
    shares = smoothed_probabilities(sizes, alpha)
    # The language that smoothing shrinks most is read once; the others repeat until they have their shares.
    unit = max(sizes[language] / shares[language] for language in sizes)
    unit = min(unit, MAX_VOCABULARY_CHARACTERS)
    for language, read in texts.items():
        budget = unit * shares[language]
        while budget > 0:
            for text in read():
                if budget <= 0:
                    break
                budget -= len(text)
                yield text


def texts_of(examples: Examples) -> Iterator[str]:
    """All texts, a thousand at a time in memory."""
    for start in range(0, len(examples), 1024):
        yield from examples.texts(slice(start, min(start + 1024, len(examples))))
