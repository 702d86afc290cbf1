"""Pre-train: text in, one masked language model and its WordPiece out. The same engine, gold labels only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Arguments, Distillation
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.disk import Json, hash_folder, read_json, write_text
from polydistill.evaluation.readers import Reader, text_files
from polydistill.evaluation.summaries import HeldOut, summarise
from polydistill.masking import evaluation_masks_identity, masks_identity
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device
from polydistill.models.text_start import START_VERSION
from polydistill.pipelines.pipeline import Command, Pipeline, Pipelines, Stage
from polydistill.pipelines.run_folder import Artefact, Run, fingerprints
from polydistill.pipelines.stages.conflicts import Conflict, collect, report_conflicts
from polydistill.pipelines.stages.corpora import prepare_corpora
from polydistill.pipelines.stages.evaluation import Measured, Reading, evaluate, write_page
from polydistill.pipelines.stages.languages import wrong_languages
from polydistill.pipelines.stages.planning import (
    CHARACTERS_OF_A_TOKEN,
    further_texts,
    measure_text,
    print_settings,
    step_seconds,
)
from polydistill.pipelines.stages.start import ReadText, start_weights
from polydistill.pipelines.stages.tokenizer import build_tokenizer, copy_tokenizer
from polydistill.pipelines.stages.training import Training, check_training, random_model, train_into
from polydistill.reports.card import pretrain_card
from polydistill.reports.card_results import with_results
from polydistill.reports.progress import clock
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.union import Planned
from polydistill.training.arguments import check_arguments, portable, training_arguments
from polydistill.training.data import STEPS_VERSION, LanguageData, MaskedTexts
from polydistill.training.objectives import StoredLabels

if TYPE_CHECKING:
    pass


@dataclass
class Pretraining:
    """The state that the stages of a pre-training share.

    arguments  of TrainingArguments, checked
    corpora    language → its corpus, from the corpora stage
    """

    recipe: PretrainRecipe
    run: Run
    arguments: Arguments
    corpora: dict[str, Artefact] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The vocabulary; trained on the text if it is missing."""
        return build_tokenizer(self.recipe, self.run)


def prepare(recipe: PretrainRecipe, run: Run, command: Command) -> Pretraining:
    """Check what can be checked without text."""
    arguments = check_arguments(recipe.training)
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    return Pretraining(recipe, run, arguments)


def make_tokenizer(state: Pretraining) -> None:
    """Train one WordPiece on all languages' text."""
    _ = state.tokenizer


def make_corpora(state: Pretraining) -> None:
    """Pack every language's corpus by the vocabulary."""
    state.corpora = prepare_corpora(state.recipe, state.run, state.tokenizer)


def train_model(state: Pretraining) -> None:
    """Train on gold labels, with new masks in every epoch."""
    recipe = state.recipe
    inputs = {
        "stage": "pretrained",
        "steps": STEPS_VERSION,
        "corpora": fingerprints(state.corpora),
        "tokenizer": state.tokenizer.fingerprint,
        "model": recipe.model.model_dump(mode="json"),
        "start_version": START_VERSION,
        "masking": masks_identity(recipe.masking),
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        "training": portable(state.arguments),
        "seed": recipe.seed,
    }
    train_into(
        state.run, "student/final", inputs, lambda: model_training(state), seed=recipe.seed, stage="train"
    )


def model_training(state: Pretraining) -> Training:
    """The inputs of the model's training."""
    recipe, run = state.recipe, state.run
    model = random_model(recipe, state.tokenizer)
    data: dict[str, LanguageData] = {}
    texts: dict[str, list[ReadText]] = {}
    sizes = {}
    for language, corpus in state.corpora.items():
        examples = Examples(corpus.path / "train.arrow")
        sizes[language] = len(examples)
        texts[language] = [ReadText(examples, state.tokenizer)]
        data[language] = MaskedTexts(
            examples, state.tokenizer, recipe.masking, max_length=recipe.corpora.max_length, seed=recipe.seed
        )
    probabilities = smoothed_probabilities(sizes, recipe.corpora.smoothing_alpha)
    start_weights(run, model, texts, probabilities, start=recipe.model.start, seed=recipe.seed)
    run.say(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")

    def write_beside(folder: Path) -> None:
        copy_tokenizer(run.path / "tokenizer", folder)
        write_text(folder / "README.md", pretrain_card(recipe))

    objective = StoredLabels(Distillation(labels="gold"), list(data))
    return Training(
        model,
        data,
        probabilities,
        objective,
        state.arguments,
        state.tokenizer.special_ids["pad"],
        recipe.corpora.max_length,
        write_beside,
    )


def evaluate_model(state: Pretraining) -> None:
    """Evaluate the model and the unigram baseline on held-out text, to evaluation/mlm.json."""
    recipe, run = state.recipe, state.run
    inputs = {
        "stage": "evaluation",
        "model": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": evaluation_masks_identity(recipe.masking),
        "tokenizer": state.tokenizer.fingerprint,
        "seed": recipe.seed,
        "corpora": fingerprints(state.corpora),
    }
    evaluate(run, "evaluation", inputs, recipe, lambda: _readings(state), _summary)
    # On every run: a retrained model has a card without results.
    rows = read_json(run.path / "evaluation" / "mlm.json")["languages"]
    card = with_results(pretrain_card(recipe), rows, "student")
    write_text(run.path / "student" / "final" / "README.md", card)


def _readings(state: Pretraining) -> Iterator[Reading]:
    model = load_masked_lm(str(state.run.path / "student" / "final"), name="student").to(device())
    for language, corpus in state.corpora.items():
        readers = [Reader("student", model, state.tokenizer, "own", state.recipe.name)]
        yield Reading(language, readers, Examples(corpus.path / "train.arrow"), text_files(corpus.path))


def _summary(measured: Measured) -> Json:
    languages = {
        language: HeldOut({"student": 1.0 / measures.ranks}, measures.counts)
        for language, of_language in measured.items()
        for place, measures in of_language.items()
        if place.startswith("held_out/")
    }
    return summarise(languages, {})


def write_report(state: Pretraining) -> None:
    """Write the report."""
    with state.run.stage("report"):
        write_page(state.run)


def plan_pretrain(recipe: PretrainRecipe, console: Console, _: Pipelines) -> list[Conflict]:
    """Print settings, sizes and times of a pre-training; returns the errors that a run would raise."""
    arguments = check_arguments(recipe.training)
    print_settings(recipe, console, training=arguments)
    console.print("a pre-training recipe: its vocabulary and model are made from the text, gold labels only")
    conflicts = [*further_texts(recipe), *wrong_languages(recipe)]
    sizes = collect(
        recipe.languages,
        lambda name, s: measure_text(s.text, f"languages.{name}.text", [], recipe.corpora.block_lines),
        conflicts,
    )
    for language, size in sizes.items():
        tokens = size.characters / CHARACTERS_OF_A_TOKEN
        console.print(f"{language}: {size.characters:,} characters, about {tokens:,.0f} tokens", markup=False)
    models = collect({"model": recipe}, lambda _, r: random_model(r, Planned(r.tokenizer.size)), conflicts)
    # A refused run trains nothing.
    if models and len(sizes) == len(recipe.languages):
        model = models["model"]
        console.print(
            f"model: {recipe.model.model_type}, {recipe.tokenizer.size:,} pieces, "
            f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters",
            markup=False,
        )
        seconds = step_seconds(recipe, model, arguments, 0) * arguments["gradient_accumulation_steps"]
        steps = int(arguments["max_steps"])
        kind = "bfloat16" if arguments["bf16"] else "float32"
        console.print(
            f"train {steps:,} steps in {kind}: {seconds:.2f} s each, {clock(seconds * steps)}", markup=False
        )
    return report_conflicts(conflicts, console)


PIPELINE = Pipeline(
    PretrainRecipe,
    check_training,
    prepare,
    (
        # Examples are packed by the vocabulary, so `corpora` makes that too.
        Stage("tokenizer", make_tokenizer, "leader_first"),
        Stage("corpora", make_corpora, "leader_first"),
        Stage("train", train_model, "all"),
        Stage("evaluate", evaluate_model),
        Stage("report", write_report),
    ),
    plan_pretrain,
    model_training,
)
