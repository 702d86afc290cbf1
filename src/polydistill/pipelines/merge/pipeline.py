"""Merge: several teachers in, one multilingual student out (MergeDistill, section 3.1).

Corpora → tokenizers → scoring → training → evaluation → report; each stage is skipped if its artefact is
there and was made from the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from polydistill.artefacts import artefact, is_current
from polydistill.config.merge import MergeRecipe
from polydistill.corpora.examples import Examples
from polydistill.disk import read_json, write_json, write_text
from polydistill.errors import RecipeError
from polydistill.models.student import build_student
from polydistill.pipelines.merge.evaluation import evaluate_models
from polydistill.pipelines.merge.scoring import score_teachers
from polydistill.pipelines.merge.state import Merge, corpora_fingerprints
from polydistill.pipelines.merge.student import resolve_student, train_student
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.corpora import prepare_corpus
from polydistill.processes import leader_first, leads
from polydistill.reports.card import model_card, with_results
from polydistill.reports.page import report_run
from polydistill.tokenization.build import (
    language_tokenizer,
    save_tokenizer,
    special_strings,
    union_tokenizer,
)
from polydistill.tokenization.drift import segmentation
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer
from polydistill.tokenization.union import overlap, unite
from polydistill.training.arguments import check_arguments, training_arguments

STAGES = ("corpora", "tokenizer", "score", "train", "evaluate", "report")
SEGMENTATION_TEXTS = 2000


def run_merge(recipe: MergeRecipe, run: Run, *, until: str = "report") -> Path:
    """Run a merge up to a stage of STAGES; returns the run's folder. What is done already is not done again."""
    last = STAGES.index(until)
    arguments = check_arguments(recipe.training)
    with run.claim():
        merge = prepare(recipe, run, arguments)
        run.record_recipe()
        stages: tuple[Callable[[Merge], None], ...] = (
            build_corpora,
            build_tokenizers,
            score_teachers,
            partial(train_student, arguments=arguments),
            evaluate_models,
            write_report,
        )
        training = STAGES.index("train")
        with leader_first():
            for stage in stages[: min(last + 1, training)]:
                stage(merge)
        for stage in stages[training : last + 1]:
            if stage is stages[training] or leads():
                stage(merge)
    return run.path


def prepare(recipe: MergeRecipe, run: Run, arguments: dict[str, Any]) -> Merge:
    """Load the teachers' tokenizers, unite them, and check all that can be checked before hours of scoring."""
    tokenizers = {
        name: load_tokenizer(t.model, name=name, tokenizer=t.tokenizer, revision=t.revision)
        for name, t in recipe.teachers.items()
    }
    for tokenizer in tokenizers.values():
        check_teacher(recipe, tokenizer)
    merge = Merge(recipe, run, tokenizers, unite(list(tokenizers.values())), {}, {})
    config, _ = resolve_student(recipe, merge.union)
    build_student(config, seed=recipe.seed, device="meta")
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    return merge


def check_teacher(recipe: MergeRecipe, tokenizer: LoadedTokenizer) -> None:
    """Raise RecipeError for a teacher that cannot take the recipe's sequences or give its k."""
    if tokenizer.max_length < recipe.corpora.max_length:
        raise RecipeError(
            "corpora.max_length",
            recipe.corpora.max_length,
            f"teacher {tokenizer.name} takes at most {tokenizer.max_length} tokens",
            f"set corpora.max_length to {tokenizer.max_length} or less",
        )
    if recipe.scoring.top_k > tokenizer.size:
        raise RecipeError(
            "scoring.top_k",
            recipe.scoring.top_k,
            f"larger than the vocabulary of teacher {tokenizer.name} ({tokenizer.size} pieces)",
            "choose a smaller k",
        )


def build_corpora(merge: Merge) -> None:
    """Every language's corpus."""
    recipe = merge.recipe
    for language, settings in recipe.languages.items():
        merge.corpora[language] = prepare_corpus(
            merge.run,
            language,
            text=settings.text,
            evaluation=settings.evaluation,
            settings=recipe.corpora,
            tokenizers=[merge.tokenizers[name] for name in settings.teachers],
        )


def build_tokenizers(merge: Merge) -> None:
    """The union tokenizer and each language's own, and how they treat the languages."""
    recipe, run = merge.recipe, merge.run
    inputs = {
        "stage": "tokenizer",
        # A list, for the order of teachers fixes the ids.
        "tokenizers": [[name, tokenizer.fingerprint] for name, tokenizer in merge.tokenizers.items()],
        "settings": recipe.student.tokenizer.model_dump(),
        "languages": {language: settings.teachers for language, settings in recipe.languages.items()},
        "corpora": corpora_fingerprints(merge),
        "max_length": recipe.corpora.max_length,
    }
    if is_current(run.path / "tokenizer", inputs):
        return
    with run.stage("tokenizer"), artefact(run.path / "tokenizer", inputs) as folder:
        loaded = list(merge.tokenizers.values())
        settings = recipe.student.tokenizer
        union = union_tokenizer(
            merge.union, loaded, lowercase=settings.lowercase, strip_accents=settings.strip_accents
        )
        length = max(recipe.corpora.max_length, min(512, *(tokenizer.max_length for tokenizer in loaded)))
        specials = {role: f"[{role.upper()}]" for role in merge.union.special_ids}
        save_tokenizer(union, folder, specials=specials, max_length=length)
        measured = {}
        for language, language_settings in recipe.languages.items():
            texts = _some_texts(merge.corpora[language][0])
            for place, name in enumerate(language_settings.teachers):
                teacher = merge.tokenizers[name]
                own = language_tokenizer(teacher, merge.maps[name], merge.union)
                if place == 0:
                    save_tokenizer(
                        own, folder / language, specials=special_strings(teacher), max_length=length
                    )
                measured[f"{language}/{name}"] = segmentation(
                    union, own, texts, unk_id=merge.union.special_ids["unk"]
                ).as_dict()
        write_json(
            folder / "vocabulary.json",
            {
                "size": merge.union.size,
                "teachers": {name: tokenizer.size for name, tokenizer in merge.tokenizers.items()},
                "overlap": overlap(loaded).tolist(),
                "segmentation": measured,
            },
        )
    run.say(f"tokenizer: union of {merge.union.size:,} pieces")
    for name, values in measured.items():
        run.say(
            f"  {name}: drift {values['drift']:.1%}, {values['fertility']:.2f} tokens a word "
            f"(own {values['own_fertility']:.2f}), unknown {values['unknown_share']:.2%} (own {values['own_unknown_share']:.2%})"
        )


def write_report(merge: Merge) -> None:
    """The report's page, and the card with what was measured."""
    recipe, run = merge.recipe, merge.run
    with run.stage("report"):
        final = run.path / "student" / "final"
        card = model_card(recipe, read_json(final / "initialisation.json"))
        languages = read_json(run.path / "evaluation" / "mlm.json")["languages"]
        write_text(final / "README.md", with_results(card, languages, "student"))
        path = report_run(run.path)
    merge.run.say(f"report: {path}")


def _some_texts(corpus: Path) -> list[str]:
    examples = Examples(corpus / "held_out.arrow")
    return examples.texts(examples.first(SEGMENTATION_TEXTS))
