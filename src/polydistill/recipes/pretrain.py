"""Pre-train: text in, one masked language model with its own WordPiece out. The same engine, gold labels only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from polydistill.artefacts import artefact, is_current, partial_folder, unlisted_files
from polydistill.config import BalanceRecipe, PretrainRecipe
from polydistill.config.models import Distillation, Recipe
from polydistill.corpora import Examples, build_corpus, smoothed_probabilities, source_bytes, source_identity
from polydistill.disk import fingerprint, hash_folder, read_json, require_space, write_json, write_text
from polydistill.masking import Masked
from polydistill.models import (
    build_student,
    device,
    load_masked_lm,
    mask_texts,
    masks_identity,
    resolve_dtype,
    student_config,
)
from polydistill.recipes.corpus import prepare_corpus
from polydistill.recipes.evaluate import Reader, evaluate_language, text_files
from polydistill.recipes.records import report_run
from polydistill.recipes.run_folder import Run
from polydistill.recipes.training_stage import train_into
from polydistill.reports import model_card
from polydistill.reports.card import with_results
from polydistill.tokenization import LoadedTokenizer, save_tokenizer, train_wordpiece
from polydistill.tokenization.pieces import STUDENT_SPECIALS
from polydistill.training import (
    STEPS_VERSION,
    MaskedTexts,
    check_arguments,
    leader_first,
    leads,
    portable,
    training_arguments,
)

STAGES = ("corpora", "tokenizer", "train", "evaluate", "report")
# Languages are balanced in the vocabulary's text by repeating the small ones at most so often.
MAX_VOCABULARY_CHARACTERS = 200_000_000


def run_pretrain(recipe: PretrainRecipe, run: Run, *, until: str = "report") -> Path:
    """Pre-train up to a stage of STAGES; returns the run's folder. The model is in student/final."""
    last = STAGES.index(until)
    arguments = check_arguments(recipe.training)
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    with run.claim():
        run.record_recipe()
        with leader_first():
            tokenizer = build_tokenizer(recipe, run)
            corpora = prepare_corpora(recipe, run, tokenizer)
        if last >= STAGES.index("train"):
            train_model(recipe, run, tokenizer, corpora, arguments)
        if last >= STAGES.index("evaluate") and leads():
            evaluate_model(recipe, run, tokenizer, corpora)
        if last >= STAGES.index("report") and leads():
            with run.stage("report"):
                path = report_run(run.path)
            run.say(f"report: {path}")
    return run.path


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


def train_model(
    recipe: PretrainRecipe,
    run: Run,
    tokenizer: LoadedTokenizer,
    corpora: dict[str, tuple[Path, dict[str, Any]]],
    arguments: dict[str, Any],
) -> None:
    """Train on gold labels, with new masks in every epoch."""
    target = run.path / "student" / "final"
    inputs = {
        "stage": "pretrained",
        "steps": STEPS_VERSION,
        "corpora": {language: fingerprint(made_from) for language, (_, made_from) in corpora.items()},
        "tokenizer": tokenizer.fingerprint,
        "model": recipe.model.model_dump(mode="json"),
        "masking": masks_identity(recipe.masking),
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        "training": portable(arguments),
        "seed": recipe.seed,
    }
    if is_current(target, inputs):
        return
    model = initial_model(recipe, tokenizer)
    data, probabilities = training_data(recipe, tokenizer, corpora)
    run.say(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")

    def write_beside(folder: Path) -> None:
        copy_tokenizer(run.path / "tokenizer", folder)
        write_text(folder / "README.md", model_card(recipe, {"init": "random"}))

    train_into(
        run, target, inputs, stage="train", model=model, data=data, probabilities=probabilities,
        distillation=Distillation(labels="gold"), write_beside=write_beside, arguments=arguments,
        pad_id=tokenizer.special_ids["pad"], max_length=recipe.corpora.max_length, seed=recipe.seed,
    )  # fmt: skip


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """A run's tokenizer into a model's folder: what was written with it, and not what somebody has put beside it."""
    others = {"stamp.json", "vocabulary.json", *unlisted_files(tokenizer)}
    for path in tokenizer.iterdir():
        if path.is_file() and path.name not in others:
            shutil.copy(path, folder)


def initial_model(recipe: PretrainRecipe | BalanceRecipe, tokenizer: LoadedTokenizer) -> Any:
    """The model before training."""
    config = student_config(
        recipe.model.model_type, recipe.model.config, vocabulary_size=tokenizer.size,
        special_ids=tokenizer.special_ids, max_length=recipe.corpora.max_length,
    )  # fmt: skip
    return build_student(config, seed=recipe.seed, field="model.model_type")


def training_data(
    recipe: PretrainRecipe, tokenizer: LoadedTokenizer, corpora: dict[str, tuple[Path, dict[str, Any]]]
) -> tuple[dict[str, MaskedTexts], dict[str, float]]:
    """Each language's examples, and the probability that it is drawn with."""
    data, sizes = {}, {}
    for language, (folder, _) in corpora.items():
        examples = Examples(folder / "train.arrow")
        sizes[language] = len(examples)
        data[language] = MaskedTexts(
            examples.num_tokens.astype(np.int64), Masker(recipe, tokenizer, examples), ids=examples.ids
        )
    return data, smoothed_probabilities(sizes, recipe.corpora.smoothing_alpha)


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


def evaluate_model(
    recipe: PretrainRecipe,
    run: Run,
    tokenizer: LoadedTokenizer,
    corpora: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    """The model on each language's held-out text, beside the unigram baseline, to evaluation/mlm.json."""
    inputs = {
        "stage": "evaluation",
        "model": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": masks_identity(recipe.masking),
        "tokenizer": tokenizer.fingerprint,
        "seed": recipe.seed,
        "corpora": {language: fingerprint(made_from) for language, (_, made_from) in corpora.items()},
    }
    if not is_current(run.path / "evaluation", inputs):
        _evaluate(recipe, run, tokenizer, corpora, inputs)
    # Each time: a model that was made anew has the card that it was made with.
    rows = read_json(run.path / "evaluation" / "mlm.json")["languages"]
    card = with_results(model_card(recipe, {"init": "random"}), rows, "student")
    write_text(run.path / "student" / "final" / "README.md", card)


def _evaluate(
    recipe: PretrainRecipe,
    run: Run,
    tokenizer: LoadedTokenizer,
    corpora: dict[str, tuple[Path, dict[str, Any]]],
    inputs: dict[str, Any],
) -> None:
    with run.stage("evaluate"), artefact(run.path / "evaluation", inputs) as folder:
        model = load_masked_lm(str(run.path / "student" / "final"), name="student").to(device())
        rows = {}
        for language, (corpus, _) in corpora.items():
            rows[language] = evaluate_language(
                [Reader("student", model, tokenizer, "own", recipe.name)],
                training=Examples(corpus / "train.arrow"), texts=text_files(corpus), settings=recipe.evaluation,
                masking=recipe.masking, max_length=recipe.corpora.max_length,
                dtype=resolve_dtype(recipe.evaluation.precision), seed=recipe.seed,
            )  # fmt: skip
        write_json(folder / "mlm.json", {"languages": rows, "summary": {}, "ties": "mean rank"})


class Masker:
    """Tokenises and masks a language's examples when they are drawn, with other masks in every epoch."""

    def __init__(self, recipe: Recipe, tokenizer: LoadedTokenizer, examples: Examples) -> None:
        self.recipe, self.tokenizer, self.examples = recipe, tokenizer, examples
        self.ids = examples.ids

    def __call__(self, row: int, epoch: int) -> Masked:
        """The text at a row, masked for an epoch."""
        # A seed of its own for every epoch; far from those of other seeds.
        return mask_texts(
            self.examples.texts(np.array([row])), [int(self.ids[row])], self.tokenizer,
            max_length=self.recipe.corpora.max_length, masking=self.recipe.masking,
            seed=self.recipe.seed + (epoch << 32),
        )[0]  # fmt: skip


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
