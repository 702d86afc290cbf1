"""TODO"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from polydistill.artefacts import artefact, is_current, partial_folder, unlisted_files
from polydistill.config.balance import BalanceRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.corpora.corpus import build_corpus
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.corpora.sources import source_bytes, source_identity
from polydistill.disk import require_space
from polydistill.pipelines.run_folder import Run
from polydistill.tokenization.build import save_tokenizer, train_wordpiece
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import STUDENT_SPECIALS

# Languages are balanced in the vocabulary's text by repeating the small ones at most so often.
MAX_VOCABULARY_CHARACTERS = 200_000_000


def build_tokenizer(recipe: PretrainRecipe | BalanceRecipe, run: Run) -> LoadedTokenizer:
    """The WordPiece of all languages' text, held-out text left out."""
    target = run.path / "tokenizer"
    inputs = {
        "stage": "wordpiece",
        "settings": recipe.tokenizer.model_dump(mode="json"),
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        "corpora": recipe.corpora.model_dump(mode="json"),
        "text": {
            language: source_identity(settings.text, field=f"languages.{language}.text")
            for language, settings in recipe.languages.items()
        },
    }
    if not is_current(target, inputs):
        texts = {f"languages.{language}": settings.text for language, settings in recipe.languages.items()}
        size = sum(source_bytes(sources, field=field) for field, sources in texts.items())
        require_space(partial_folder(target), size, stage="tokenizer")
        with run.stage("tokenizer"), artefact(target, inputs) as folder:
            raw = {}
            for language, settings in recipe.languages.items():
                # Text has to be cleaned and split before there is a tokenizer to pack it by: characters stand
                # for tokens here, and the examples of training are packed anew afterwards.
                raw[language] = folder / "raw" / language
                raw[language].mkdir(parents=True)
                build_corpus(
                    raw[language], sources=settings.text, evaluation={}, settings=recipe.corpora,
                    count_tokens=lambda texts: [len(text) for text in texts], max_tokens=4096,
                    field=f"languages.{language}",
                )  # fmt: skip
            wordpiece = recipe.tokenizer
            examples = {language: Examples(path / "train.arrow") for language, path in raw.items()}
            trained = train_wordpiece(
                partial(_balanced, examples, recipe.corpora.smoothing_alpha),
                size=wordpiece.size, lowercase=wordpiece.lowercase, strip_accents=wordpiece.strip_accents,
                min_frequency=wordpiece.min_frequency, limit_alphabet=wordpiece.limit_alphabet,
            )  # fmt: skip
            shutil.rmtree(folder / "raw")
            save_tokenizer(trained, folder, specials=STUDENT_SPECIALS, max_length=recipe.corpora.max_length)
        run.say(f"tokenizer: WordPiece of {trained.get_vocab_size():,} pieces")
    return shared_tokenizer(recipe, target)


def shared_tokenizer(recipe: PretrainRecipe | BalanceRecipe, folder: Path) -> LoadedTokenizer:
    """A tokenizer of ours, with its special tokens, from a run's folder."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = backend.get_vocab()
    ids = {role: vocabulary[token] for role, token in STUDENT_SPECIALS.items()}
    return LoadedTokenizer(recipe.name, backend, ids, recipe.corpora.max_length)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """A run's tokenizer into a model's folder: what was written with it, and not what somebody has put beside it."""
    others = {"stamp.json", "vocabulary.json", *unlisted_files(tokenizer)}
    for path in tokenizer.iterdir():
        if path.is_file() and path.name not in others:
            shutil.copy(path, folder)


def _balanced(examples: dict[str, Examples], alpha: float) -> Iterator[str]:
    """Languages' texts for the vocabulary, small languages repeated by the exponential smoothing of training."""
    sizes = {language: int(sum(map(len, _texts(found)))) for language, found in examples.items()}
    shares = smoothed_probabilities(sizes, alpha)
    # The language that smoothing takes most from is read once; the others as often as their share asks.
    unit = max(sizes[language] / shares[language] for language in sizes)
    unit = min(unit, MAX_VOCABULARY_CHARACTERS)
    for language, found in examples.items():
        budget = unit * shares[language]
        while budget > 0:
            for text in _texts(found):
                if budget <= 0:
                    break
                budget -= len(text)
                yield text


def _texts(examples: Examples) -> Iterator[str]:
    for start in range(0, len(examples), 1024):
        yield from examples.texts(slice(start, min(start + 1024, len(examples))))
