"""Pre-train: text in, one masked language model with its own WordPiece out. The same engine, gold labels only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polydistill.artefacts import artefact, is_current
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import Distillation
from polydistill.corpora.examples import Examples
from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.disk import fingerprint, hash_folder, read_json, write_json, write_text
from polydistill.evaluation.readers import Reader, evaluate_language, text_files
from polydistill.masking import masks_identity
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device, resolve_dtype
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.corpora import prepare_corpora
from polydistill.pipelines.stages.tokenizer import build_tokenizer, copy_tokenizer
from polydistill.pipelines.stages.training import initial_model, train_into
from polydistill.processes import leader_first, leads
from polydistill.reports.card import model_card, with_results
from polydistill.reports.page import report_run
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.training.arguments import check_arguments, portable, training_arguments
from polydistill.training.data import STEPS_VERSION, MaskedTexts, Masker

STAGES = ("corpora", "tokenizer", "train", "evaluate", "report")


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
