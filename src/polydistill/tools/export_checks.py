"""Prove an exported model: logits on the same batches, and MRR on the same masked tokens."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from polydistill.config.shared import Evaluation, Masking, Source
from polydistill.corpora.sources import read_texts
from polydistill.disk import Json, hash_text
from polydistill.errors import CorpusError, ModelError
from polydistill.evaluation.mlm import measure, measure_logits
from polydistill.evaluation.readers import EVALUATION_SEED, hidden
from polydistill.evaluation.uncertainty import paired_difference
from polydistill.masking import mask_texts
from polydistill.models.inputs import length_batches
from polydistill.models.kinds import MASKED_LM, Kind
from polydistill.models.onnx_export import Inputs, compare_onnx, compare_outputs
from polydistill.models.onnx_runtime import OnnxModel
from polydistill.tokenization.encode import encode
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (texts, tokens) that logits are compared at, and one text as long as the model takes, up to a limit.
SHAPES, LONGEST = ((1, 8), (3, 17), (8, 64)), 1024
# Relative to the largest logit.
TOLERANCE = 1e-4
# What an int8 model may lose. Real models keep 0.85 to 0.98 of the likeliest pieces and at least 97 % of MRR;
# a model whose products saturate keeps 0.1 and half.
INT8_SAME, INT8_MRR_LOSS = 0.6, 0.05
# Least mean cosine of a text's outputs with the float model's, where outputs are no pieces.
INT8_COSINE = 0.9
MASKED_ONE_IN = 7
# Tokens of a line for MRR, and of a batch: an exported model makes logits for all of them.
MRR_TOKENS, BATCH_TOKENS = 128, 1024


def choose_lines(paths: Sequence[str], number: int) -> list[str]:
    """At most `number` distinct lines of text files, chosen by their hash, whatever their order."""
    sources = [Source(path=path, documents="lines") for path in paths]
    chosen = heapq.nlargest(number, {(hash_text(text), text) for text in read_texts(sources, "text")})
    if not chosen:
        raise CorpusError("text", paths[0], "no line has text", "give text that the model is meant for")
    return [text for _, text in chosen]


def proof_batches(
    tokenizer: LoadedTokenizer, texts: Sequence[str], *, token_types: bool, seed: int = 0
) -> list[Inputs]:
    """Batches of `SHAPES` and of the longest text, rows of a batch of falling lengths, every seventh token
    masked.

    texts  if empty, random pieces are used
    Shapes longer than the model takes are cut.
    """
    longest = min(tokenizer.max_length, LONGEST)
    shapes = [(rows, min(length, longest)) for rows, length in SHAPES] + [(1, longest)]
    stream = _stream(tokenizer, texts, sum(rows * length for rows, length in shapes), seed)
    return [_batch(tokenizer, stream, *shape, token_types=token_types) for shape in shapes]


def prove_logits(
    model: PreTrainedModel,
    name: str,
    exported: Mapping[str, OnnxModel],
    batches: Sequence[Inputs],
    kind: Kind = MASKED_LM,
) -> list[Json]:
    """How far exported models' outputs are from the model's own, a row for each batch.

    kind      of the model: its logits, or other outputs
    exported  by name; the one called `onnx` must be within the tolerance
    Raises ModelError where it is not.
    """
    rows = []
    for inputs in batches:
        graphs = list(exported.values())
        agreed = (
            compare_onnx(model, graphs, inputs)
            if kind == MASKED_LM
            else compare_outputs(model, graphs, inputs, kind.exported, pooled=kind.pooled)
        )
        comparisons = dict(zip(exported, agreed, strict=True))
        own = comparisons["onnx"]
        shape = " x ".join(map(str, inputs.ids.shape))
        if not own.relative <= TOLERANCE:
            raise ModelError(
                "model",
                name,
                f"the exported model's {' and '.join(kind.exported)} differ by {own.relative:.2g} of the "
                f"largest one at {shape} "
                f"tokens (allowed: {TOLERANCE:g})",
                "please report this architecture; nothing was written",
            )
        batch, tokens = inputs.ids.shape
        row: Json = {
            "batch": batch,
            "tokens": tokens,
            "attended": int(inputs.attention.sum()),
            "max_logit": own.largest,
        }
        for key, comparison in comparisons.items():
            row[key] = {
                "max_difference": comparison.difference,
                "relative_difference": comparison.relative,
                "same_argmax" if kind == MASKED_LM else "cosine": comparison.same,
            }
        rows.append(row)
    return rows


def prove_int8(name: str, logits: Sequence[Json], mrr: Mapping[str, Json] | None, *, bits: int) -> Json:
    """What the int8 model keeps, with what it must keep. Raises ModelError where it keeps less.

    logits  of `prove_logits`; mrr  of `compare_mrr`, if there is text; both with rows of `int8`
    bits    of its weights
    A loss of MRR is refused only if its whole 95 % interval is beyond the tolerance.
    """
    attended = sum(row["attended"] for row in logits)
    if "cosine" in logits[0]["int8"]:
        return _prove_cosine(name, logits, bits=bits)
    same = sum(row["int8"]["same_argmax"] * row["attended"] for row in logits) / attended
    remedy = "leave --int8 out; nothing was written"
    if bits > 7:
        remedy = f"take --int8-bits 7, which is right on every processor, or {remedy}"
    if same < INT8_SAME:
        raise ModelError(
            "int8",
            name,
            f"on this processor it has the float model's likeliest piece at {same:.0%} of {attended:,} "
            f"positions (at least: {INT8_SAME:.0%})",
            remedy,
        )
    if mrr is not None:
        before = mrr["pytorch"]["mrr"]
        change, _, high = mrr["int8"]["mrr_minus_pytorch"]
        if high < -INT8_MRR_LOSS * before:
            raise ModelError(
                "int8",
                name,
                f"on this processor its MRR is {mrr['int8']['mrr']:.3f} and the float model's {before:.3f} "
                f"({change / before:+.0%}; allowed: {-INT8_MRR_LOSS:.0%})",
                remedy,
            )
    return {
        "weight_bits": bits,
        "same_argmax": same,
        "least_same_argmax": INT8_SAME,
        "allowed_mrr_loss": INT8_MRR_LOSS,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def _prove_cosine(name: str, rows: Sequence[Json], *, bits: int) -> Json:
    """`prove_int8` for outputs that are no pieces: the texts' mean cosine with the float model's."""
    texts = sum(row["batch"] for row in rows)
    cosine = sum(row["int8"]["cosine"] * row["batch"] for row in rows) / texts
    if not cosine >= INT8_COSINE:
        raise ModelError(
            "int8",
            name,
            f"on this processor its outputs have a mean cosine of {cosine:.3f} with the float model's on "
            f"{texts} texts (at least: {INT8_COSINE:g})",
            "leave --int8 out; nothing was written",
        )
    return {
        "weight_bits": bits,
        "cosine": cosine,
        "least_cosine": INT8_COSINE,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def compare_mrr(
    model: PreTrainedModel,
    exported: Mapping[str, OnnxModel],
    tokenizer: LoadedTokenizer,
    texts: Sequence[str],
) -> dict[str, Json]:
    """MRR and the other measures of a model (`pytorch`) and its exports on the same masked tokens, all in
    float32.

    Exports have `mrr_minus_pytorch` too: the difference and its interval of 95 % (paired bootstrap over
    lines).
    """
    examples = mask_texts(
        texts,
        [hash_text(text) for text in texts],
        tokenizer,
        max_length=min(tokenizer.max_length, MRR_TOKENS),
        masking=hidden(Masking(), Evaluation().mask_probability),
        seed=EVALUATION_SEED,
    )
    shared: Json = {
        "pad_id": tokenizer.special_ids["pad"],
        "batches": length_batches([len(example.input_ids) for example in examples], BATCH_TOKENS),
    }
    own = measure(model, examples, **shared)
    if not len(own.ranks):
        raise CorpusError("text", None, "none of its tokens is masked", "give more lines, or longer ones")
    rows: dict[str, Json] = {"pytorch": own.summary()}
    for name, graph in exported.items():
        other = measure_logits(graph.logits_at, examples, **shared)
        difference = paired_difference(1.0 / other.ranks, 1.0 / own.ranks, own.counts)
        rows[name] = other.summary() | {"mrr_minus_pytorch": list(difference)}
    return rows


def _stream(
    tokenizer: LoadedTokenizer, texts: Sequence[str], number: int, seed: int
) -> npt.NDArray[np.int64]:
    """[number] or more ordinary tokens."""
    generator = np.random.default_rng(seed)
    if texts:
        # Offsets are -1 for special tokens; unknown words stay, as in any text.
        pieces = [encoded.ids[encoded.starts >= 0] for encoded in encode(tokenizer, texts)]
        ids = np.concatenate(pieces)
        if len(ids):
            return np.resize(ids, max(number, len(ids)))
    return generator.choice(tokenizer.ordinary_ids, number)


def _batch(
    tokenizer: LoadedTokenizer, stream: npt.NDArray[np.int64], rows: int, length: int, *, token_types: bool
) -> Inputs:
    roles = tokenizer.special_ids
    ids = np.full((rows, length), roles["pad"], dtype=np.int64)
    attention, types = np.zeros_like(ids), np.zeros_like(ids)
    for row in range(rows):
        # From the whole length down to about half, so that each row has another padding.
        taken = max(3, length - row * length // (2 * rows))
        inner = stream[row * length : row * length + taken - 2].copy()
        if "mask" in roles:
            inner[MASKED_ONE_IN // 2 :: MASKED_ONE_IN] = roles["mask"]
        ids[row, :taken] = [roles["cls"], *inner, roles["sep"]]
        attention[row, :taken] = 1
        types[row, taken // 2 : taken] = 1
    tensors = [torch.from_numpy(array) for array in (ids, attention, types)]
    return Inputs(tensors[0], tensors[1], tensors[2] if token_types else None)
