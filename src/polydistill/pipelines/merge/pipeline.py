"""Merge: several teachers in, one multilingual student out (MergeDistill, section 3.1).

Corpora → tokenizers → scoring → training → evaluation → report; each stage reuses what was made from the
same inputs.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from polydistill.config.merge import MergeRecipe
from polydistill.corpora.examples import Examples
from polydistill.disk import read_json, write_json, write_text
from polydistill.models.load import masked_lm_config, weights_fingerprint
from polydistill.models.student import build_student
from polydistill.pipelines.merge.evaluation import evaluate_models
from polydistill.pipelines.merge.plan import plan_merge
from polydistill.pipelines.merge.state import Merge, check_teacher, load_teacher, scored_shares
from polydistill.pipelines.merge.student import resolve_student, student_training, train_student
from polydistill.pipelines.merge.vocabulary import build_own, cross_labels, planned_vocabulary
from polydistill.pipelines.pipeline import Command, Pipeline, Stage
from polydistill.pipelines.run_folder import Run, fingerprints
from polydistill.pipelines.stages.corpora import corpora_pool, prepare_corpus
from polydistill.pipelines.stages.evaluation import write_page
from polydistill.pipelines.stages.scoring import scored_store, scoring_engine
from polydistill.pipelines.stages.training import check_training
from polydistill.reports.card import merge_card
from polydistill.reports.card_results import with_results
from polydistill.tokenization.drift import segmentation
from polydistill.tokenization.load import load_tokenizer, max_positions
from polydistill.tokenization.student import language_tokenizer, union_tokenizer
from polydistill.tokenization.union import overlap, unite
from polydistill.tokenization.wordpiece import save_tokenizer, special_strings
from polydistill.training.arguments import check_arguments, training_arguments

SEGMENTATION_TEXTS = 2000


def prepare(recipe: MergeRecipe, run: Run, command: Command) -> Merge:
    """Load and unite the teachers' tokenizers; check all that can be checked before hours of scoring."""
    arguments = check_arguments(recipe.training)
    tokenizers = {
        name: load_tokenizer(t.model, name=name, tokenizer=t.tokenizer, revision=t.revision)
        for name, t in recipe.teachers.items()
    }
    for tokenizer in tokenizers.values():
        check_teacher(recipe, tokenizer)
    for name, teacher in recipe.teachers.items():
        masked_lm_config(teacher.model, name=name, revision=teacher.revision)
    merge = Merge(recipe, run, arguments, tokenizers, unite(list(tokenizers.values())))
    vocabulary = planned_vocabulary(merge) if recipe.student.has_own_vocabulary else merge.union
    config, _ = resolve_student(recipe, vocabulary)
    if recipe.student.has_own_vocabulary:
        merge.lengthen(max_positions(config))
    build_student(config, seed=recipe.seed, device="meta")
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    return merge


def build_corpora(merge: Merge) -> None:
    """Build every language's corpus."""
    recipe = merge.recipe
    with corpora_pool(recipe.corpora, merge.run) as pool:
        for number, (language, settings) in enumerate(recipe.languages.items()):
            place = number, len(recipe.languages)
            merge.run.count("corpora", *place, "languages")
            merge.corpora[language] = prepare_corpus(
                merge.run,
                language,
                text=settings.text,
                evaluation=settings.evaluation,
                settings=recipe.corpora,
                tokenizers=[merge.tokenizers[name] for name in settings.teachers],
                pool=pool,
                place=place,
            )


def build_tokenizers(merge: Merge) -> None:
    """Write the union tokenizer and each language's own, or the student's own, and measure how they split the
    languages' text.
    """
    recipe, run = merge.recipe, merge.run
    if recipe.student.has_own_vocabulary:
        build_own(merge)
        return
    inputs = {
        "stage": "tokenizer",
        # A list, because the order of teachers fixes the ids.
        "tokenizers": [[name, tokenizer.fingerprint] for name, tokenizer in merge.tokenizers.items()],
        "settings": recipe.student.tokenizer.model_dump(include={"lowercase", "strip_accents"}),
        "languages": {language: settings.teachers for language, settings in recipe.languages.items()},
        "corpora": fingerprints(merge.corpora),
        "max_length": recipe.corpora.max_length,
    }
    run.make("tokenizer", inputs, partial(_write_tokenizers, merge))


def _write_tokenizers(merge: Merge, folder: Path) -> None:
    recipe, run = merge.recipe, merge.run
    loaded = list(merge.tokenizers.values())
    settings = recipe.student.tokenizer
    union = union_tokenizer(
        merge.union, loaded, lowercase=settings.lowercase, strip_accents=settings.stripped
    )
    length = max(recipe.corpora.max_length, min(512, *(tokenizer.max_length for tokenizer in loaded)))
    specials = {role: f"[{role.upper()}]" for role in merge.union.special_ids}
    save_tokenizer(union, folder, specials=specials, max_length=length)
    measured = {}
    for language, language_settings in recipe.languages.items():
        texts = _some_texts(merge.corpora[language].path)
        for place, name in enumerate(language_settings.teachers):
            teacher = merge.tokenizers[name]
            own = language_tokenizer(teacher, merge.maps[name], merge.union)
            if place == 0:
                save_tokenizer(own, folder / language, specials=special_strings(teacher), max_length=length)
            measured[f"{language}/{name}"] = segmentation(
                union, own, texts, unk_id=merge.union.special_ids["unk"]
            ).as_dict()
    vocabulary = {
        "size": merge.union.size,
        "teachers": {name: tokenizer.size for name, tokenizer in merge.tokenizers.items()},
        "overlap": overlap(loaded).tolist(),
        "segmentation": measured,
    }
    write_json(folder / "vocabulary.json", vocabulary)
    run.say(f"tokenizer: union of {merge.union.size:,} pieces")
    for name, values in measured.items():
        run.say(
            f"  {name}: drift {values['drift']:.1%}, {values['fertility']:.2f} tokens a word "
            f"(own {values['own_fertility']:.2f}), unknown {values['unknown_share']:.2%} (own "
            f"{values['own_unknown_share']:.2%})"
        )


def score_teachers(merge: Merge) -> None:
    """Score every teacher over each of its languages."""
    recipe = merge.recipe
    shares = scored_shares(recipe, merge.arguments, merge.num_examples)
    with scoring_engine(recipe, merge.run) as score:
        for name, teacher in recipe.teachers.items():
            languages = [
                language for language, settings in recipe.languages.items() if name in settings.teachers
            ]
            weights = weights_fingerprint(teacher.model, revision=teacher.revision) if languages else ""
            # Loaded once for all its languages, and not at all if every store exists.
            load = cache(partial(load_teacher, name, teacher))
            for language in languages:
                others = [t for t in recipe.languages[language].teachers if t != name]
                merge.stores[language, name] = [
                    scored_store(
                        recipe,
                        merge.run,
                        language=language,
                        teacher=name,
                        weights=weights,
                        tokenizer=merge.tokenizers[name],
                        corpus=merge.corpora[language],
                        load=load,
                        score=score,
                        share=share,
                        draw=draw,
                        beside=[merge.tokenizers[other] for other in others],
                    )
                    for draw, share in enumerate(shares[language])
                ]


def write_report(merge: Merge) -> None:
    """Write the card with the results, and the report."""
    recipe, run = merge.recipe, merge.run
    with run.stage("report"):
        final = run.path / "student" / "final"
        card = merge_card(recipe, read_json(final / "initialisation.json"))
        languages = read_json(run.path / "evaluation" / "mlm.json")["languages"]
        write_text(final / "README.md", with_results(card, languages, "student"))
        write_page(run)


def _some_texts(corpus: Path) -> list[str]:
    examples = Examples(corpus / "held_out.arrow")
    return examples.texts(examples.first(SEGMENTATION_TEXTS))


PIPELINE = Pipeline(
    MergeRecipe,
    check_training,
    prepare,
    (
        Stage("corpora", build_corpora, "leader_first"),
        Stage("tokenizer", build_tokenizers, "leader_first"),
        Stage("score", score_teachers, "leader_first"),
        Stage("score", cross_labels, "leader_first"),
        Stage("train", train_student, "all"),
        Stage("evaluate", evaluate_models),
        Stage("report", write_report),
    ),
    plan_merge,
    student_training,
)
