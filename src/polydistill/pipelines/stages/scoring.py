"""The store of one teacher over one language: reused if it exists, else scored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.shared import Arguments
from polydistill.corpora.examples import Examples
from polydistill.disk import Json, fingerprint
from polydistill.masking import masks_identity
from polydistill.models.precision import resolve_dtype
from polydistill.pipelines.run_folder import Artefact, Run
from polydistill.reports.progress import clock
from polydistill.scoring.local import score
from polydistill.scoring.shards import HasTexts, Job
from polydistill.store.reader import Store
from polydistill.store.schema import store_bytes
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# With `scoring.examples: needed`, shares of the text are multiples of one part: a training that is a little
# longer reuses the store.
PARTS_OF_TEXT = 16
# So few examples are always scored, if the text has them.
MIN_SCORED = 1024


class Score(Protocol):
    """`scoring.local.score`, or its equivalent on other machines."""

    def __call__(
        self,
        folder: Path,
        job: Job,
        examples: HasTexts,
        model: PreTrainedModel,
        *,
        progress: Callable[[int, int], None],
    ) -> Json: ...


@contextmanager
def scoring_engine(recipe: MergeRecipe | ExtractRecipe | BalanceRecipe, run: Run) -> Iterator[Score]:
    """What scores a stage's stores: this process, or workers on Ray, started on first use and stopped at the
    end.
    """
    if recipe.scoring.engine == "local":
        yield score
        return
    # Imported here: local scoring needs no Ray.
    from polydistill.scoring.ray_engine import Workers, score_on_ray

    workers = Workers(recipe.scoring.ray, run.say)
    try:
        yield partial(score_on_ray, workers=workers)
    finally:
        workers.close()


def scored_store(
    recipe: MergeRecipe | ExtractRecipe | BalanceRecipe,
    run: Run,
    *,
    language: str,
    teacher: str,
    weights: str,
    tokenizer: LoadedTokenizer,
    corpus: Artefact,
    load: Callable[[], PreTrainedModel],
    score: Score,
    rows: npt.NDArray[np.int64] | None = None,
    share: float = 1.0,
    draw: int = 0,
    beside: Sequence[LoadedTokenizer] = (),
) -> Artefact:
    """The store; scored if neither this run nor one that it may reuse has it, or one of a larger share.

    weights  the fingerprint of the teacher's weights
    load     returns the model, on the processor; called only if something is left to score
    score    from `scoring_engine`
    rows     [n] the examples to score; by default all
    share    of the examples to score (`needed_shares`), where `rows` is not given
    draw     number of the draw of masks; every draw has a store of its own
    beside   the tokenizers of the language's other teachers, whose copies mask the same words
    """
    stored = teacher if draw == 0 else f"{teacher}@{draw}"
    place, name, seed = f"store/{language}/{stored}", f"score/{language}/{stored}", recipe.seed + (draw << 32)
    # Its own share first, then larger ones.
    shares = [part / PARTS_OF_TEXT for part in range(round(share * PARTS_OF_TEXT), PARTS_OF_TEXT + 1)]
    known = [
        (part, identity)
        for part in shares
        for identity in _identities(
            recipe, language, teacher, weights, tokenizer, _made_from(corpus, rows, part), beside, seed
        )
    ]
    share, identity = next((pair for pair in known if run.find(place, pair[1]) is not None), known[0])
    examples = Examples(corpus.path / "train.arrow")
    chosen = needed_rows(examples, share) if rows is None else rows
    if chosen is not None:
        examples = examples.take(chosen)

    def needs_bytes() -> float:
        return estimated_store(recipe, float(examples.num_tokens.sum()), tokenizer.size)

    def write(folder: Path) -> None:
        job = Job(
            identity,
            tokenizer,
            recipe.scoring,
            recipe.masking,
            max_length=recipe.corpora.max_length,
            dtype=resolve_dtype(recipe.scoring.precision),
            seed=seed,
            beside=tuple(beside),
        )
        result = score(folder, job, examples, load(), progress=_counter(run, name, len(examples)))
        store = Store(folder)
        speed = result["tokens_scored"] / result["seconds"] if result["seconds"] else 0
        run.say(
            f"{place}: {store.num_masked:,} masked positions, {store.num_bytes / 2**20:.1f} MiB, "
            f"{speed:,.0f} tokens/s"
        )

    made = run.make(
        place, identity, write, reuse=True, stage=name, needs_bytes=needs_bytes, keep_partial=True
    )
    Store(made.path).check_identity(identity, field=f"languages.{language}")
    return made


def needed_shares(
    recipe: MergeRecipe | ExtractRecipe,
    arguments: Arguments,
    examples: float,
    *,
    steps: int | None = None,
    share: float = 1.0,
    copies: int = 1,
    draws: int = 1,
) -> list[float]:
    """For each draw of masks, the share of a language's examples to score: in all what training draws.

    examples  of the language
    steps     of the training that draw from what is scored; by default all
    share     of the training's draws that are from the language
    copies    of each example that training draws from
    draws     of masks, at most
    Shares are whole parts of the text. The last draw may have less than all of it.
    """
    if recipe.scoring.examples == "all":
        return [1.0] * draws
    steps = arguments["max_steps"] if steps is None else steps
    batch = arguments["gradient_accumulation_steps"] * arguments["per_device_train_batch_size"]
    drawn = steps * batch * share / copies
    parts = math.ceil(PARTS_OF_TEXT * max(drawn, MIN_SCORED) / max(1.0, examples))
    parts = min(parts, draws * PARTS_OF_TEXT)
    whole, rest = divmod(parts, PARTS_OF_TEXT)
    return [1.0] * whole + ([rest / PARTS_OF_TEXT] if rest else [])


def needed_rows(examples: Examples, share: float) -> npt.NDArray[np.int64] | None:
    """[n] the rows to score, ascending; None for all. A larger share has the rows of a smaller one."""
    if share >= 1:
        return None
    return np.sort(examples.first(math.ceil(share * len(examples))))


def estimated_store(
    recipe: MergeRecipe | ExtractRecipe | BalanceRecipe, tokens: float, vocabulary_size: int
) -> float:
    """Estimated bytes of a teacher's store over that many tokens."""
    return store_bytes(
        tokens,
        vocabulary_size=vocabulary_size,
        max_length=recipe.corpora.max_length,
        top_k=recipe.scoring.top_k,
        masked_share=recipe.masking.probability,
    )


def _made_from(corpus: Artefact, rows: npt.NDArray[np.int64] | None, share: float) -> object:
    """What a store's examples depend on; a share stands for its rows (`needed_rows`)."""
    if rows is not None:
        return [corpus.inputs, rows.tolist()]
    return corpus.inputs if share >= 1 else [corpus.inputs, {"share": share}]


def _identities(
    recipe: MergeRecipe | ExtractRecipe | BalanceRecipe,
    language: str,
    teacher: str,
    weights: str,
    tokenizer: LoadedTokenizer,
    made_from: object,
    beside: Sequence[LoadedTokenizer],
    seed: int,
) -> list[Json]:
    """The identities that the store may have, the preferred one first.

    With `precision: auto`, a store that another machine computed in the other precision is accepted too.
    """
    same = {
        "language": language,
        "teacher": teacher,
        "weights": weights,
        "tokenizer": tokenizer.fingerprint,
        "corpus": fingerprint(made_from),
        "masking": masks_identity(recipe.masking),
        "beside": sorted(other.fingerprint for other in beside),
        "top_k": recipe.scoring.top_k,
        "sampling": recipe.scoring.sampling,
        "max_length": recipe.corpora.max_length,
        "vocabulary_size": tokenizer.size,
        "shard_examples": recipe.scoring.shard_examples,
        "batch_tokens": recipe.scoring.batch_tokens,
        "seed": seed,
    }
    wanted = resolve_dtype(recipe.scoring.precision)
    others = [dtype for dtype in (torch.bfloat16, torch.float32) if dtype != wanted]
    return [
        same | {"precision": str(dtype).removeprefix("torch.")}
        for dtype in (wanted, *(others if recipe.scoring.precision == "auto" else []))
    ]


def _counter(run: Run, name: str, total: int) -> Callable[[int, int], None]:
    """A progress callback that reports every tenth of the examples, with the time left."""
    state = {"done": 0, "fresh": 0, "reported": 0, "started": time.perf_counter()}

    def progress(examples: int, tokens: int) -> None:
        state["done"] += examples
        if tokens:
            state["fresh"] += examples
        seconds = time.perf_counter() - state["started"]
        left = seconds / max(1, state["fresh"]) * (total - state["done"])
        known = left if state["fresh"] else None
        run.count(name.partition("/")[2], round(state["done"]), total, "examples", left=known)
        tenth = state["done"] * 10 // max(1, total)
        if tenth > state["reported"] and state["fresh"]:
            state["reported"] = tenth
            run.say(f"{name}: {state['done']:,}/{total:,} examples, {clock(left)} left")

    return progress
