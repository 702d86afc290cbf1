"""The teacher that a student learns from: its own training on the language, if any, and its trim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from polydistill.config.shared import Arguments, Distillation
from polydistill.corpora.examples import Examples
from polydistill.disk import Json, read_json, write_json, write_text
from polydistill.masking import masks_identity
from polydistill.models.features import output_layer
from polydistill.models.importance import IMPORTANCE_VERSION, measure_importance, write_importance
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device
from polydistill.models.trim import prove_logits, trim_model
from polydistill.pipelines.extract.state import Extract, load_teacher
from polydistill.pipelines.extract.tokenizer import held_out_texts, save_teachers
from polydistill.pipelines.stages.tokenizer import copy_tokenizer
from polydistill.pipelines.stages.training import Training, train_into
from polydistill.reports.card import adapted_card
from polydistill.tokenization.selection import Selection
from polydistill.tokenization.trim import compare_trimmed
from polydistill.training.arguments import portable
from polydistill.training.data import STEPS_VERSION, MaskedTexts
from polydistill.training.objectives import StoredLabels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What an adapted teacher was made of.
ORIGIN = "origin.json"
# Examples that importances are measured on, and padded tokens of a batch.
IMPORTANCE_EXAMPLES, IMPORTANCE_TOKENS = 256, 4096
# Added to the seed: the student would otherwise see the masks that its teacher has seen answered.
ADAPT_SEED = 2_000_003


class TeachingModel(NamedTuple):
    """The teacher that the student learns from, with the vocabulary of training.

    sizes  of the recipe's teacher, see `model_size`
    trim   the proof of its trim; None if no piece is dropped before training
    """

    model: PreTrainedModel
    sizes: dict[str, int]
    trim: Json | None


def teaching_model(state: Extract) -> TeachingModel:
    """The adapted teacher if there is one, else the recipe's; trimmed if the trim precedes training."""
    if state.adapted is None:
        return _given_model(state)
    origin = read_json(state.adapted.path / ORIGIN, dict)
    model = load_masked_lm(str(state.adapted.path), field="teacher")
    return TeachingModel(model, origin["teacher"], origin["trim"])


def _given_model(state: Extract) -> TeachingModel:
    teacher = load_teacher(state.recipe)
    sizes = model_size(teacher)
    if state.recipe.trim.when != "before":
        return TeachingModel(teacher, sizes, None)
    trimmed, proof = cut(state, teacher)
    return TeachingModel(trimmed, sizes, proof)


def adapt_teacher(state: Extract) -> None:
    """Train the teacher on the language's text by MLM, into teacher/adapted; nothing without `adapt`.

    Gurgurov et al. 2025, where a teacher is adapted to its language before its student is made of it.
    """
    arguments, recipe = state.adapting, state.recipe
    if arguments is None:
        return
    inputs = {
        "stage": "adapted",
        "steps": STEPS_VERSION,
        "corpus": state.corpus.fingerprint,
        "teacher": state.weights,
        "tokenizer": state.trained_tokenizer.fingerprint,
        "masking": masks_identity(recipe.masking),
        "training": portable(arguments),
        "seed": recipe.seed,
    }
    state.made["adapted"] = train_into(
        state.run,
        "teacher/adapted",
        inputs,
        lambda: _adapting(state, arguments),
        seed=_seed(state),
        stage="adapt",
    )


def _seed(state: Extract) -> int:
    return (state.recipe.seed + ADAPT_SEED) % 2**32


def _adapting(state: Extract, arguments: Arguments) -> Training:
    """The inputs of the teacher's own training."""
    recipe, run = state.recipe, state.run
    teacher = _given_model(state)
    run.say(
        f"adapting the teacher to {recipe.language}: {arguments['max_steps']:,} steps, "
        f"{teacher.model.num_parameters():,} parameters"
    )

    def write_beside(folder: Path) -> None:
        if recipe.trim.when == "after":
            save_teachers(state.original, folder)
        else:
            copy_tokenizer(run.path / "tokenizer", folder)
        write_json(folder / ORIGIN, {"teacher": teacher.sizes, "trim": teacher.trim})
        write_text(folder / "README.md", adapted_card(recipe))

    data = MaskedTexts(
        Examples(state.corpus.path / "train.arrow"),
        state.trained_tokenizer,
        recipe.masking,
        max_length=recipe.corpora.max_length,
        seed=_seed(state),
    )
    return Training(
        teacher.model,
        {recipe.language: data},
        {recipe.language: 1.0},
        StoredLabels(Distillation(labels="gold"), [recipe.language]),
        arguments,
        state.trained_tokenizer.special_ids["pad"],
        recipe.corpora.max_length,
        write_beside,
    )


def measure_parts(state: Extract) -> None:
    """Measure what each part of the teacher adds to its loss, into teacher/importance.

    Nothing for a student of the teacher's widths.
    """
    if not state.narrows:
        return
    recipe = state.recipe
    inputs = {
        "stage": "importance",
        "version": IMPORTANCE_VERSION,
        "corpus": state.corpus.fingerprint,
        "teacher": state.teaching_weights,
        "tokenizer": state.trained_tokenizer.fingerprint,
        "masking": masks_identity(recipe.masking),
        "max_length": recipe.corpora.max_length,
        "seed": recipe.seed,
    }

    def write(folder: Path) -> None:
        examples = Examples(state.corpus.path / "train.arrow")
        rows = examples.first(IMPORTANCE_EXAMPLES)
        state.run.say(f"importance of the teacher's parts on {len(rows)} examples")
        texts = MaskedTexts(
            examples,
            state.trained_tokenizer,
            recipe.masking,
            max_length=recipe.corpora.max_length,
            seed=recipe.seed,
        ).masked(rows.tolist(), 0)
        importance = measure_importance(
            teaching_model(state).model.to(device()),
            texts,
            pad_id=state.trained_tokenizer.special_ids["pad"],
            batch_tokens=IMPORTANCE_TOKENS,
        )
        write_importance(importance, folder)

    state.made["importance"] = state.run.make(
        "teacher/importance", inputs, write, reuse="copy", stage="importance"
    )


def model_size(model: PreTrainedModel) -> dict[str, int]:
    """Layers, parameters, those of them that depend on the vocabulary's rows, and the rows."""
    tables = {
        id(table): table.numel() for table in (model.get_input_embeddings().weight, output_layer(model)[0])
    }
    return {
        "layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "embeddings": sum(tables.values()),
        "rows": model.config.vocab_size,
    }


def cut(state: Extract, model: PreTrainedModel) -> tuple[PreTrainedModel, Json]:
    """(the model with only the kept pieces, the proof on held-out text that nothing else changed)."""
    kept = state.kept
    assert kept is not None
    trimmed = trim_model(model, kept)
    selection = Selection(kept, {})
    texts = held_out_texts(state.corpus.path)
    _, held, _ = compare_trimmed(state.original, state.tokenizer.backend, selection, texts)
    if not held:
        return trimmed, {"texts": 0}
    language = state.recipe.language
    return trimmed, prove_logits(model, trimmed, state.original, selection, {language: held})
