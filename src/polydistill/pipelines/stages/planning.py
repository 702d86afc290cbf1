"""Times and sizes for plans, estimated from a few batches and a sample of the text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.markup import escape

from polydistill.config.extract import ExtractRecipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.shared import Arguments, Masking, RunRecipe, Source, TextRecipe
from polydistill.corpora.corpus import sample_texts
from polydistill.corpora.counting import TokenCounter
from polydistill.corpora.sources import check_sources
from polydistill.losses.sparse import sparse_soft_cross_entropy
from polydistill.masking import Masked, mask_texts
from polydistill.models.attention import attention_for
from polydistill.models.features import masked_features, output_layer
from polydistill.models.inputs import length_batches, pad_batch
from polydistill.models.memory import keep_freed_memory
from polydistill.models.precision import device, resolve_dtype
from polydistill.pipelines.stages.conflicts import Conflict, collect
from polydistill.scoring.crossing import UNCUT, Coverage, Crossing, cross
from polydistill.scoring.predict import Predictions, predict
from polydistill.store.reader import StoreRow
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Characters per token, assumed before a vocabulary exists.
CHARACTERS_OF_A_TOKEN = 4.0
TIMED_BATCHES = 3
# Sequences of the largest batch that is timed.
TIMED_SEQUENCES = 8
# A call that takes longer is timed once.
SLOW_SECONDS = 2.0
# The share of masks of BERT and of most models after it.
USUAL_MASKS = 0.15
# Nats by which a teacher's loss may rise at another share.
LARGE_RISE = 0.5


def scoring_speed(
    recipe: MergeRecipe | ExtractRecipe, model: PreTrainedModel, tokenizer: LoadedTokenizer, texts: list[str]
) -> float:
    """Tokens scored per second, the median of a few small batches."""
    chosen = _masked_batch(recipe, tokenizer, texts, recipe.masking)
    tokens = sum(len(example.input_ids) for example in chosen)
    return tokens / median_seconds(lambda: _predicted(recipe, model, tokenizer, chosen))


def mask_conflicts(
    recipe: MergeRecipe | ExtractRecipe,
    model: PreTrainedModel,
    tokenizer: LoadedTokenizer,
    texts: list[str],
    language: str,
) -> list[Conflict]:
    """A conflict if a teacher predicts a language much worse at the recipe's share of masks than at 0.15.

    Most published models were trained at 0.15, and some predict nothing at twice as many.
    """
    if recipe.masking.probability <= USUAL_MASKS:
        return []
    losses = {}
    for share in (USUAL_MASKS, recipe.masking.probability):
        masking = recipe.masking.model_copy(update={"probability": share})
        chosen = _masked_batch(recipe, tokenizer, texts, masking)
        gold = [p.gold_logprobs for p in _predicted(recipe, model, tokenizer, chosen)]
        losses[share] = -float(np.concatenate(gold).mean())
    if losses[recipe.masking.probability] <= losses[USUAL_MASKS] + LARGE_RISE:
        return []
    return [
        Conflict(
            f"masking.probability {recipe.masking.probability:g}: teacher {tokenizer.name} has a loss of "
            f"{losses[recipe.masking.probability]:.1f} nats on {language}, and {losses[USUAL_MASKS]:.1f} at "
            f"{USUAL_MASKS:g}",
            f"set masking.probability to {USUAL_MASKS:g}, or to the share that the teacher was trained with",
        )
    ]


def label_coverage(
    recipe: MergeRecipe,
    model: PreTrainedModel,
    tokenizer: LoadedTokenizer,
    student: LoadedTokenizer,
    texts: list[str],
) -> Coverage:
    """What becomes of a teacher's labels in a student's own vocabulary, by a small batch."""
    pieces, chosen = _masked_pieces(recipe, tokenizer, texts, recipe.masking)
    rows = [
        StoreRow(
            index,
            0.0,
            masked.input_ids.astype(np.uint32),
            masked.positions.astype(np.uint32),
            masked.gold.astype(np.uint32),
            made.gold_logprobs.astype(np.float16),
            made.top_ids.astype(np.uint32),
            made.top_logprobs.astype(np.float16),
        )
        for index, (masked, made) in enumerate(
            zip(chosen, _predicted(recipe, model, tokenizer, chosen), strict=True)
        )
    ]
    crossing = Crossing.prepare(tokenizer, student, (recipe.corpora.max_length, UNCUT))
    return cross(rows, pieces, crossing, seed=recipe.seed)[1]


def _masked_batch(
    recipe: MergeRecipe | ExtractRecipe, tokenizer: LoadedTokenizer, texts: list[str], masking: Masking
) -> list[Masked]:
    return _masked_pieces(recipe, tokenizer, texts, masking)[1]


def _masked_pieces(
    recipe: MergeRecipe | ExtractRecipe, tokenizer: LoadedTokenizer, texts: list[str], masking: Masking
) -> tuple[list[str], list[Masked]]:
    """A small batch of pieces of text about as long as an example: (the pieces, masked)."""
    length = recipe.corpora.max_length
    joined = "\n".join(texts)
    step = max(1, round(len(joined) / max(1, sum(TokenCounter([tokenizer.backend])(texts))) * length))
    pieces = [joined[place : place + step] for place in range(0, min(len(joined), 200 * step), step)]
    masked = mask_texts(
        pieces, range(len(pieces)), tokenizer, max_length=length, masking=masking, seed=recipe.seed
    )
    batch = length_batches(
        [len(example.input_ids) for example in masked], min(2048, recipe.scoring.batch_tokens)
    )[0]
    kept = [row for row in batch if len(masked[row].positions)]
    return [pieces[row] for row in kept], [masked[row] for row in kept]


def _predicted(
    recipe: MergeRecipe | ExtractRecipe,
    model: PreTrainedModel,
    tokenizer: LoadedTokenizer,
    chosen: list[Masked],
) -> list[Predictions]:
    """A teacher's predictions of a batch, as scoring makes them."""
    return predict(
        model,
        chosen,
        ids=list(range(len(chosen))),
        pad_id=tokenizer.special_ids["pad"],
        vocabulary_size=tokenizer.size,
        top_k=recipe.scoring.top_k,
        sampling=recipe.scoring.sampling,
        dtype=resolve_dtype(recipe.scoring.precision),
        seed=recipe.seed,
    )


def step_seconds(recipe: TextRecipe, student: PreTrainedModel, arguments: Arguments, top_k: int) -> float:
    """Seconds of one micro-batch of random tokens: forward pass, backward pass and optimizer step.

    top_k  stored predictions of a position; 0 without a teacher
    """
    size = int(arguments["per_device_train_batch_size"])
    if size > TIMED_SEQUENCES:
        # A step takes a time of its own and one for each sequence: small batches tell both, in little memory.
        half, whole = (
            _step_seconds(recipe, student, arguments, top_k, number)
            for number in (TIMED_SEQUENCES // 2, TIMED_SEQUENCES)
        )
        each = max(0.0, whole - half) / (TIMED_SEQUENCES - TIMED_SEQUENCES // 2)
        return whole + each * (size - TIMED_SEQUENCES)
    return _step_seconds(recipe, student, arguments, top_k, size)


def _step_seconds(
    recipe: TextRecipe, student: PreTrainedModel, arguments: Arguments, top_k: int, size: int
) -> float:
    length = recipe.corpora.max_length
    model = student.to(device()).train()
    draw = np.random.default_rng(0)
    ids, attention = pad_batch(list(draw.integers(5, 50, (size, length))), 0)
    positions = torch.arange(0, ids.numel(), max(1, round(1 / recipe.masking.probability)))
    columns = top_k + 1
    top = torch.randint(5, 50, (len(positions), columns))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    where = device()

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=bool(arguments["bf16"])):
            features = masked_features(
                model,
                {"input_ids": ids.to(where), "attention_mask": attention.to(where)},
                positions.to(where),
            )
        weight, bias = output_layer(model)
        target = torch.full((len(positions), columns), 1.0 / columns, device=where)
        sparse_soft_cross_entropy(features, weight, bias, top.to(where), target / len(target)).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    if where.type == "cpu":
        keep_freed_memory()
    with attention_for(where, length):
        return median_seconds(step)


def median_seconds(work: Callable[[], object], calls: int = TIMED_BATCHES) -> float:
    """The median time of some calls, after a warm-up call; of one call where that is slow."""
    started = time.perf_counter()
    work()
    if time.perf_counter() - started > SLOW_SECONDS:
        calls = 1
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


SAMPLE_CHARACTERS = 400_000


def further_texts(recipe: TextRecipe) -> list[Conflict]:
    """Errors of evaluation texts that are not there; `measure_text` finds those of training texts."""
    conflicts: list[Conflict] = []
    collect(recipe.further_texts, lambda place, sources: check_sources(sources, place), conflicts)
    return conflicts


@dataclass(frozen=True)
class LanguageSize:
    """The size of a language's text: characters are counted, tokens estimated from a sample."""

    characters: int
    tokens: int
    texts: list[str]


def measure_text(
    sources: Sequence[Source], field: str, tokenizers: Sequence[LoadedTokenizer], block_lines: int
) -> LanguageSize:
    """Read a sample of a language's text and scale its counts up to the size of the files."""
    texts, characters = sample_texts(
        sources, field=field, max_characters=SAMPLE_CHARACTERS, block_lines=block_lines
    )
    backends = [tokenizer.backend for tokenizer in tokenizers]
    counted = sum(TokenCounter(backends)(texts)) if backends else 0
    sampled = max(1, sum(map(len, texts)))
    return LanguageSize(characters, round(counted * characters / sampled), texts)


# Whether plans print every setting before what they found.
FULL: ContextVar[bool] = ContextVar("full", default=False)


def print_settings(recipe: RunRecipe, console: Console, **resolved: object) -> None:
    """In a full plan, print a recipe with every setting; `resolved` holds what several places decide."""
    if not FULL.get():
        return
    values = recipe.model_dump(mode="json") | resolved
    console.print(escape(yaml.safe_dump(values, allow_unicode=True, sort_keys=False)))
