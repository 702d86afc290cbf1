"""A start without a teacher: embedding rows and output bias from the training text.

A student of random weights spends its first steps on learning how frequent each piece is and what its
neighbours are. Both can be counted. Rows are a factorisation of the pieces' positive pointwise mutual
information (Levy and Goldberg 2014), the bias is the logarithm of their frequencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from polydistill.corpora.examples import Examples
from polydistill.models.features import output_layer
from polydistill.models.teacher_start import PieceRows, teacher_rows, unit_rows
from polydistill.tokenization.encode import as_text
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Part of the identity of models that start from random weights.
START_VERSION = 1
# Contexts are the pieces at most this far away; one at distance d counts 1 / d.
WINDOW = 4
# Exponent of the contexts' frequencies: otherwise rare contexts get the largest values (Levy et al. 2015).
CONTEXT_SMOOTHING = 0.75
# Standard deviation of the rows, in that of the architecture's own initialisation. Adam's steps have a fixed
# size: the longer a row, the longer what it says lasts.
ROW_SCALE = 3.0
# A piece with fewer occurrences keeps its random row.
MIN_OCCURRENCES = 3
# Characters that are counted, over all languages.
COUNTED_CHARACTERS = 20_000_000
# Modules of a layer that make values (alone, or after queries and keys), and that mix the heads.
VALUE_AND_OUTPUT = (
    ("attention.self.value", "attention.output.dense"),  # BERT, RoBERTa, ELECTRA
    ("attention.self.value_proj", "attention.output.dense"),  # DeBERTa
    ("attention.v_lin", "attention.out_lin"),  # DistilBERT
    ("attention.value", "attention.dense"),  # ALBERT
    ("attn.Wqkv", "attn.Wo"),  # ModernBERT
)
# Product of an attention's output and value matrices, in identities.
ATTENTION_GAIN = 1.0
# Power iterations of the randomised decomposition (Halko et al. 2011).
POWER_ITERATIONS = 3
# Texts that are tokenised at once.
_BATCH = 1000

Ids = npt.NDArray[np.int64]
# Where a student's embedding rows come from.
RowSource = Literal["text", "teachers", "both", "random"]


@dataclass(frozen=True)
class PieceCounts:
    """How often pieces occur, and beside which others.

    occurrences    [V] float64
    cooccurrences  [V, V] symmetric, sparse float64: for each pair the sum of 1 / distance
    """

    occurrences: npt.NDArray[np.float64]
    cooccurrences: sparse.csr_matrix


def tokenised(
    examples: Examples,
    tokenizer: LoadedTokenizer,
    *,
    characters: int,
    rows: Ids | None = None,
    mapping: Ids | None = None,
) -> Iterator[list[Ids]]:
    """Batches of texts as ids, without special tokens: about so many characters, evenly spaced.

    rows     [n] the texts to read; by default all
    mapping  [tokenizer's size] its ids → the student's, None where they are equal
    """
    backend = as_text(tokenizer.backend)
    lengths = examples.num_characters if rows is None else examples.num_characters[rows]
    step = max(1, -(-int(lengths.sum()) // max(1, characters)))
    for start in range(0, len(lengths), _BATCH * step):
        part = slice(start, start + _BATCH)
        encodings = backend.encode_batch_fast(
            examples.texts(part if rows is None else rows[part]), add_special_tokens=False
        )
        batch = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        yield batch if mapping is None else [mapping[ids] for ids in batch]


def count_pieces(
    texts: Mapping[str, Iterable[Sequence[Ids]]], probabilities: Mapping[str, float], size: int
) -> PieceCounts:
    """Occurrences and co-occurrences of pieces, as a student meets them that draws languages by probability.

    texts  language → batches of texts as ids below `size`
    """
    counts = {language: _count(batches, size) for language, batches in texts.items()}
    total = sum(float(part.occurrences.sum()) for part in counts.values())
    occurrences, cooccurrences = np.zeros(size), sparse.csr_matrix((size, size))
    for language, part in counts.items():
        weight = probabilities[language] * total / max(1.0, float(part.occurrences.sum()))
        occurrences = occurrences + weight * part.occurrences
        cooccurrences = cooccurrences + weight * part.cooccurrences
    return PieceCounts(occurrences, cooccurrences)


def _count(batches: Iterable[Sequence[Ids]], size: int) -> PieceCounts:
    occurrences, above = np.zeros(size), sparse.csr_matrix((size, size))
    for batch in batches:
        if not batch:
            continue
        # Texts in a row, with a gap that no pair bridges.
        gap = np.full(WINDOW, -1, dtype=np.int64)
        flat = np.concatenate([part for ids in batch for part in (ids, gap)])
        occurrences += np.bincount(flat[flat >= 0], minlength=size)
        rows, columns, values = [], [], []
        for distance in range(1, WINDOW + 1):
            left, right = flat[:-distance], flat[distance:]
            both = (left >= 0) & (right >= 0)
            rows.append(left[both])
            columns.append(right[both])
            values.append(np.full(int(both.sum()), 1.0 / distance))
        pairs = (np.concatenate(rows), np.concatenate(columns))
        above = above + sparse.coo_matrix((np.concatenate(values), pairs), shape=(size, size)).tocsr()
    return PieceCounts(occurrences, (above + above.T).tocsr())


def positive_pmi(cooccurrences: sparse.csr_matrix, smoothing: float = CONTEXT_SMOOTHING) -> sparse.csr_matrix:
    """max(0, log(p(w, c) / (p(w) p_s(c)))) of each pair that occurs, with p_s(c) ∝ p(c) ** smoothing."""
    pairs = cooccurrences.tocoo()
    words = np.asarray(cooccurrences.sum(axis=1)).ravel()
    contexts = np.asarray(cooccurrences.sum(axis=0)).ravel() ** smoothing
    # p(w, c) / (p(w) p_s(c)) = n(w, c) * sum(n_s) / (n(w) n_s(c)).
    values = np.log(pairs.data * contexts.sum() / (words[pairs.row] * contexts[pairs.col]))
    positive = values > 0
    return sparse.csr_matrix(
        (values[positive], (pairs.row[positive], pairs.col[positive])), shape=cooccurrences.shape
    )


def text_rows(cooccurrences: sparse.csr_matrix, width: int, *, seed: int) -> npt.NDArray[np.float32]:
    """[V, width] rows of unit length from pieces' contexts; 0 where a piece has none.

    The truncated singular value decomposition U S V' of the positive pointwise mutual information gives
    U * sqrt(S) (Levy et al. 2015). A random rotation then spreads the leading directions over all columns, as
    an encoder's heads and normalisations expect.
    """
    size = cooccurrences.shape[0]
    rank = min(width, size - 1)
    table = positive_pmi(cooccurrences).astype(np.float32)
    left, singular, _ = randomized_svd(table, rank, n_iter=POWER_ITERATIONS, random_state=seed)
    rows = left * np.sqrt(singular)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    rotation, _ = np.linalg.qr(np.random.default_rng([seed, 3]).standard_normal((width, width)))
    return np.asarray(rows @ rotation[:rank], dtype=np.float32)


def starting_rows(
    counts: PieceCounts, width: int, source: RowSource, teachers: Iterable[PieceRows], *, seed: int
) -> npt.NDArray[np.float32]:
    """[V, width] rows of unit length from text, teachers or both; 0 for pieces that neither knows."""
    size = len(counts.occurrences)
    if source == "teachers":
        return teacher_rows(teachers, size, width, seed=seed)
    from_text = text_rows(counts.cooccurrences, width, seed=seed)
    from_text[counts.occurrences < MIN_OCCURRENCES] = 0
    if source == "text":
        return from_text
    return unit_rows(from_text + teacher_rows(teachers, size, width, seed=seed, frame=from_text))


def start_from_text(
    model: PreTrainedModel,
    counts: PieceCounts,
    *,
    seed: int,
    rows: RowSource = "text",
    bias: bool = True,
    scale: float = ROW_SCALE,
    teachers: Iterable[PieceRows] = (),
) -> dict[str, Any]:
    """Set a model's output bias to the logarithm of frequencies, and its embedding rows.

    rows      `text`: from co-occurrences; `teachers`: from the teachers' rows; `both`: the sum of the two;
              `random`: as they are
    bias      set it
    scale     standard deviation of the rows, in that of the architecture's own
    teachers  whose rows to take
    Returns a record of what was set.
    """
    embeddings = model.get_input_embeddings().weight
    output, output_bias = output_layer(model)
    record: dict[str, Any] = {"bias": bias and output_bias is not None, "known_pieces": 0}
    with torch.no_grad():
        if bias and output_bias is not None:
            frequencies = (counts.occurrences + 1) / (counts.occurrences + 1).sum()
            output_bias[: len(frequencies)] = torch.from_numpy(np.log(frequencies)).to(output_bias)
        if rows != "random":
            made = starting_rows(counts, embeddings.shape[1], rows, teachers, seed=seed)
            known = np.abs(made).max(axis=1) > 0
            where, values = torch.from_numpy(np.flatnonzero(known)), torch.from_numpy(made[known])
            record["known_pieces"] = len(where)
            if len(where):
                values = values * (scale * float(embeddings.std()) / float(values.std()))
                for table in (embeddings, output):
                    if table.shape[1] == values.shape[1]:
                        table[where] = values.to(table)
    return record


def pass_values(model: PreTrainedModel, *, seed: int, gain: float = ATTENTION_GAIN) -> int:
    """Make every attention pass `gain` times the mean of what it attends to; return the number of attentions.

    Output matrix times value matrix becomes a multiple of the identity (Trockman and Kolter 2023), in a
    random basis, so that heads share it. Random queries and keys attend evenly. With rows from
    co-occurrences, a masked position then starts near the mean of its context's rows, which says what occurs
    beside them. Attentions whose modules are not in VALUE_AND_OUTPUT stay as they are.
    """
    modules = dict(model.named_modules())
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for name, module in modules.items():
        for value_name, output_name in VALUE_AND_OUTPUT:
            output = modules.get(f"{name.removesuffix(value_name)}{output_name}")
            if not name.endswith(f".{value_name}") or output is None:
                continue
            basis = torch.empty(output.weight.shape[::-1])
            torch.nn.init.orthogonal_(basis, generator=generator)
            with torch.no_grad():
                module.weight[-len(basis) :].copy_(basis)
                output.weight.copy_(gain * basis.T)
            count += 1
    return count
