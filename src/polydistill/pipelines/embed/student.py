"""The student: its start, the linear layer to the teacher's vectors, its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from polydistill.corpora.sampling import smoothed_probabilities
from polydistill.corpora.sentences import read_split
from polydistill.disk import write_text
from polydistill.losses.vectors import least_squares_map
from polydistill.models.sentences import Dense, Normalise, SentenceEncoder, encode_ids
from polydistill.pipelines.embed.state import Embedding, needs_projection
from polydistill.pipelines.embed.vectors import stored_vectors
from polydistill.pipelines.run_folder import Artefact, fingerprints
from polydistill.pipelines.stages.training import Training, train_into
from polydistill.reports.card_embed import embed_card
from polydistill.tokenization.wordpiece import save_loaded
from polydistill.training.arguments import portable
from polydistill.training.data import STEPS_VERSION, LanguageData
from polydistill.training.vectors import SentenceTexts, VectorObjective

# Parts of identities: how the projection starts, and what a sentence's loss is.
PROJECTION_VERSION = TRAINING_VERSION = 1
BATCH_TOKENS = 4096


def projection(state: Embedding) -> Artefact | None:
    """The least-squares map from the student's first vectors to the teacher's; None if there is none."""
    recipe, run = state.recipe, state.run
    width = stored_vectors(next(iter(state.vectors.values())), "train").shape[1]
    if not needs_projection(recipe, state.student, width):
        return None
    inputs = {
        "stage": "projection",
        "version": PROJECTION_VERSION,
        "student": state.student.identity(),
        "vectors": fingerprints(state.vectors),
        "sentences": recipe.student.projection_sentences,
        "seed": recipe.seed,
    }

    def write(folder: Path) -> None:
        texts: list[str] = []
        targets = []
        splits = {name: read_split(each.path, "train") for name, each in state.sentences.items()}
        edges = np.cumsum([0, *(len(split.texts) for split in splits.values())])
        number = min(int(edges[-1]), recipe.student.projection_sentences)
        draw = np.random.default_rng([recipe.seed, 3])
        chosen = np.sort(draw.choice(edges[-1], number, replace=False))
        for (name, split), first, end in zip(splits.items(), edges[:-1], edges[1:], strict=True):
            rows = chosen[(chosen >= first) & (chosen < end)] - first
            texts += [split.texts[row] for row in rows.tolist()]
            targets.append(stored_vectors(state.vectors[name], "train")[split.rows[rows]])
        pooled = encode_ids(
            state.student.model,
            state.student.ids(texts),
            state.student.pad_id,
            batch_tokens=BATCH_TOKENS,
            dtype=torch.float32,
            pooled=True,
        )
        weight, bias = least_squares_map(pooled, np.concatenate(targets).astype(np.float32))
        np.savez(folder / "projection.npz", weight=weight, bias=bias)
        run.say(f"projection: {pooled.shape[1]} to {len(weight)} numbers, fitted on {number:,} sentences")

    return run.make("projection", inputs, write)


def first_student(state: Embedding) -> SentenceEncoder:
    """The student before training."""
    made = state.student.load()
    fitted = projection(state)
    tail: list[torch.nn.Module] = []
    if fitted is not None:
        with np.load(fitted.path / "projection.npz") as stored:
            weight, bias = torch.from_numpy(stored["weight"]), torch.from_numpy(stored["bias"])
        dense = Dense(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            dense.linear.weight.copy_(weight)
            dense.linear.bias.copy_(bias)
        tail.append(dense)
    if state.teacher.files.normalises:
        tail.append(Normalise())
    made.tail = torch.nn.ModuleList(tail).to(next(made.parameters()).device)
    return made


def train_student(state: Embedding) -> None:
    """Train the student on the teacher's stored vectors."""
    recipe = state.recipe
    fitted = projection(state)
    inputs = {
        "stage": "embedded",
        "version": TRAINING_VERSION,
        "steps": STEPS_VERSION,
        "student": state.student.identity(),
        "projection": None if fitted is None else fitted.fingerprint,
        "sentences": fingerprints(state.sentences),
        "vectors": fingerprints(state.vectors),
        "loss": recipe.loss,
        "smoothing_alpha": recipe.sentences.smoothing_alpha,
        "training": portable(state.arguments),
        "seed": recipe.seed,
    }
    train_into(
        state.run, "student/final", inputs, lambda: student_training(state), seed=recipe.seed, stage="train"
    )


def student_training(state: Embedding) -> Training:
    """The inputs of the student's training."""
    recipe, run, student = state.recipe, state.run, state.student
    data: dict[str, LanguageData] = {}
    vectors, rows = [], []
    for name, artefact in state.sentences.items():
        split = read_split(artefact.path, "train")
        data[name] = SentenceTexts(student.ids(split.texts), split.rows)
        vectors.append(stored_vectors(state.vectors[name], "train"))
        rows.append(split.rows)
    model = first_student(state)
    run.say(f"student: {model.num_parameters():,} parameters, vectors of {model.width} numbers")
    sizes = {name: len(each) for name, each in data.items()}

    def write_beside(folder: Path) -> None:
        save_loaded(student.tokenizer, folder)
        write_text(folder / "README.md", embed_card(recipe))

    return Training(
        model,
        data,
        smoothed_probabilities(sizes, recipe.sentences.smoothing_alpha),
        VectorObjective(list(data), vectors, rows, recipe.loss),
        state.arguments,
        student.pad_id,
        recipe.sentences.max_length,
        write_beside,
    )
