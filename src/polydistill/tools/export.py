"""Export a model to ONNX: write, prove, quantise, measure, print."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from polydistill.artefacts import artefact_or_nothing
from polydistill.config.shared import Source
from polydistill.corpora.sources import source_identity
from polydistill.disk import Json, free_folder, write_json, write_text
from polydistill.errors import ModelError, RecipeError
from polydistill.evaluation.cost import measure_in_turns
from polydistill.models.kinds import ENCODER, MASKED_LM
from polydistill.models.onnx_export import OPSET, check_opset, export_onnx, takes_token_types
from polydistill.models.onnx_int8 import WEIGHT_BITS, quantise_onnx
from polydistill.models.onnx_runtime import OnnxModel
from polydistill.reports.card import export_card, metadata
from polydistill.reports.progress import counting
from polydistill.tokenization.load import max_positions
from polydistill.tools.export_checks import (
    TOLERANCE,
    choose_lines,
    compare_mrr,
    proof_batches,
    prove_int8,
    prove_logits,
)
from polydistill.tools.export_layout import FILES, write_beside, write_browser_settings
from polydistill.tools.folders import ModelFolder, SentenceFolder, open_folder
from polydistill.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (texts, tokens): what a service sees, and what `cost` measures.
LATENCY_SHAPES = ((1, 128), (32, 512))


@dataclass(frozen=True)
class Latency:
    """How to time.

    rounds   fresh processes for each figure
    calls    passes in each process
    threads  of all processes; 0: PyTorch's default
    """

    rounds: int = 3
    calls: int = 5
    threads: int = 0


def export_model(
    model: str,
    output: Path,
    console: Console,
    *,
    int8: bool = False,
    int8_bits: int = WEIGHT_BITS,
    sentence_transformers: bool = False,
    texts: Sequence[str] = (),
    lines: int = 400,
    opset: int = OPSET,
    latency: Latency | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Json:
    """Write a model as ONNX with its tokenizer, prove that it computes what the model does, and print the
    proof.

    model    a folder or a hub name of a masked language model, an encoder without a head, a classifier of
             texts or tokens, a question answerer, or a sentence-transformers folder; in float32
    output   a new or empty folder
    int8     write a dynamically quantised model too
    int8_bits  of its matrices' weights, 7 or 8, see `quantise_onnx`
    sentence_transformers  write the encoder alone, as a folder that SentenceTransformer loads; a
             sentence-transformers folder stays one without it
    texts    files, folders or globs; on `lines` of their lines outputs and (of a masked language model) MRR
             are compared, else outputs alone, on random pieces
    latency  how to time; None: not at all
    Returns the record that export.json holds. Raises UserError for what cannot be read or exported, for
    missing packages and for outputs that differ; then nothing is written.
    """
    _check(opset, int8_bits, lines)
    output = free_folder(output)
    sources = [Source(path=path, documents="lines") for path in texts]
    identity = source_identity(sources, field="text") if sources else None
    source = _open(model, revision, allow_pickle, sentences=sentence_transformers)
    tokenizer, original = source.tokenizer, source.load(dtype=torch.float32)
    chosen = choose_lines(texts, lines) if texts else []
    sentences = sentence_transformers or source.layout == "sentence-transformers"
    facts = _facts(model, revision, original, source, sentences=sentences, opset=opset)
    facts |= {"lines": len(chosen)}
    inputs = facts | {"weights": source.identity(), "tokenizer": tokenizer.fingerprint, "text": identity}
    inputs |= {"int8": int8, "int8_bits": int8_bits}
    with artefact_or_nothing(output, inputs) as folder:
        _step(console, "writing the graphs")
        write_beside(folder, source, tokenizer, original, sentences=sentences)
        record = facts | _write(folder, source, original, int8_bits=int8_bits if int8 else None, opset=opset)
        exported = {name: OnnxModel(folder / FILES[name]) for name in record["files"]}
        record["tolerance"] = TOLERANCE
        masked = source.kind == MASKED_LM
        _step(console, "comparing logits and guesses" if masked else "comparing outputs")
        batches = proof_batches(tokenizer, chosen, token_types="token_type_ids" in record["inputs"])
        record["logits"] = prove_logits(original, record["model"], exported, batches, source.kind)
        record["mrr"] = compare_mrr(original, exported, tokenizer, chosen) if chosen and masked else None
        if int8:
            record["int8"] = prove_int8(record["model"], record["logits"], record["mrr"], bits=int8_bits)
        del exported
        record["latency"] = (
            None if latency is None else _time(folder, original, record["files"], latency, console)
        )
        record["metadata"] = metadata(model)
        write_json(folder / "export.json", record)
        write_text(folder / "README.md", export_card(record))
    _print(record, console)
    console.print(f"written to {output}", markup=False)
    return record


def _open(model: str, revision: str | None, allow_pickle: bool, *, sentences: bool) -> ModelFolder:
    """What is exported; ModelError for what cannot be."""
    source = open_folder(
        model, revision=revision, allow_pickle=allow_pickle, kind=ENCODER if sentences else None
    )
    if source.layout == "GLiNER":
        raise ModelError(
            "model", model, "is a GLiNER model, whose export its own package writes", "use GLiNER's to_onnx"
        )
    if isinstance(source, SentenceFolder) and source.inside:
        raise ModelError(
            "model",
            model,
            f"keeps its encoder in {source.inside}, where transformers.js does not look",
            "load and save it with sentence-transformers 5 or later, which writes it beside modules.json",
        )
    return source


def _step(console: Console, what: str) -> None:
    console.print(f"{what} …", markup=False)


def _check(opset: int, int8_bits: int, lines: int) -> None:
    check_opset(opset)
    if int8_bits not in (7, 8):
        raise RecipeError(
            "int8_bits",
            int8_bits,
            "weights have 7 or 8 bits",
            "give 7, which is right on every processor; 8 needs VNNI or an ARM processor",
        )
    if lines < 1:
        raise RecipeError("lines", lines, "leaves no text to compare on", "give 1 or more")


def _facts(
    model: str,
    revision: str | None,
    original: PreTrainedModel,
    source: ModelFolder,
    *,
    sentences: bool,
    opset: int,
) -> Json:
    """What the record says of the model and of the packages that wrote it."""
    packages = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")
    return {
        "model": Path(model).name if Path(model).exists() else model,
        "revision": revision,
        "opset": opset,
        "architecture": original.config.model_type,
        "task": source.kind.name,
        "outputs": list(source.kind.exported),
        "layout": source.layout,
        "sentences": sentences,
        "parameters": original.num_parameters(),
        "original_weight_bytes": source.size(),
        "versions": {"polydistill": __version__} | {name: version(name) for name in packages},
    }


def _write(
    folder: Path, source: ModelFolder, original: PreTrainedModel, *, int8_bits: int | None, opset: int
) -> Json:
    """Write the graphs; returns their inputs and bytes."""
    token_types = takes_token_types(original, source.tokenizer.settings["model_input_names"])
    (folder / FILES["onnx"]).parent.mkdir()
    export_onnx(
        original, folder / FILES["onnx"], token_types=token_types, outputs=source.kind.exported, opset=opset
    )
    names = ["onnx"]
    if int8_bits is not None:
        quantise_onnx(
            folder / FILES["onnx"], folder / FILES["int8"], rows=original.config.vocab_size, bits=int8_bits
        )
        names.append("int8")
    write_browser_settings(folder, int8=int8_bits is not None)
    sizes = {name: sum(path.stat().st_size for path in folder.glob(FILES[name] + "*")) for name in names}
    return {
        "inputs": ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else [])],
        "files": sizes,
    }


def _time(
    folder: Path, original: PreTrainedModel, names: Sequence[str], latency: Latency, console: Console
) -> Json:
    """Seconds and memory of a pass with its head: PyTorch and exported models in turns, each in its own
    process.
    """
    threads = latency.threads or torch.get_num_threads()
    shared = {"pieces": original.config.vocab_size, "max_tokens": max_positions(original.config)}
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        # The same float32 weights for all, wherever they came from.
        original.save_pretrained(temporary)
        models = {temporary: "pytorch"} | {str(folder / FILES[name]): name for name in names}
        with counting(console) as count:
            rows = measure_in_turns(
                dict.fromkeys(models, shared),
                shapes=LATENCY_SHAPES,
                rounds=latency.rounds,
                calls=latency.calls,
                parts=["model"],
                threads=threads,
                names=models,
                say=lambda line: console.print(line, markup=False),
                count=count,
            )
    kept = ("batch", "length", "seconds", "peak_bytes")
    return {
        "threads": threads,
        "rounds": latency.rounds,
        "calls": latency.calls,
        "rows": [{"model": models[row["model"]]} | {name: row[name] for name in kept} for row in rows],
    }


def _print(record: Json, console: Console) -> None:
    names = list(record["files"])
    console.print(
        f"{record['architecture']}, {record['parameters']:,} parameters, opset {record['opset']}; takes "
        f"{', '.join(record['inputs'])}; weights were {record['original_weight_bytes'] / 2**20:,.1f} MiB",
        markup=False,
    )
    for name, size in record["files"].items():
        console.print(f"{FILES[name]}: {size / 2**20:,.1f} MiB", markup=False)
    masked = record["task"] == MASKED_LM.name
    table = _table(
        f"{'logits' if masked else 'outputs'}: texts x tokens",
        "attended",
        *(f"{name} differs" for name in names),
        *(f"{name} {'same top 1' if masked else 'cosine'}" for name in names),
    )
    for row in record["logits"]:
        table.add_row(
            f"{row['batch']} x {row['tokens']}",
            str(row["attended"]),
            *(f"{row[name]['relative_difference']:.1e}" for name in names),
            *(
                f"{row[name]['same_argmax']:.2%}" if masked else f"{row[name]['cosine']:.4f}"
                for name in names
            ),
        )
    console.print(table)
    console.print(
        "largest difference over largest value, at attended positions; allowed for onnx: "
        f"{record['tolerance']:g}; "
        + (
            f"{record['lines']} lines of text"
            if record["lines"]
            else "random pieces: give --text for real text"
        ),
        markup=False,
    )
    if "int8" in record:
        kept = record["int8"]
        if masked:
            same = f"the float model's likeliest piece at {kept['same_argmax']:.1%} of positions (at least "
            same += f"{kept['least_same_argmax']:.0%})"
        else:
            same = f"mean cosine with the float model's outputs {kept['cosine']:.4f} (at least "
            same += f"{kept['least_cosine']:g})"
        console.print(f"int8: weights of {kept['weight_bits']} bits; {same}", markup=False)
    if record["mrr"]:
        console.print(_mrr_table(record["mrr"]))
    if record["latency"]:
        console.print(_latency_table(record["latency"]))
        timed = record["latency"]
        console.print(
            f"with {'the MLM head' if masked else 'its head'} at all positions; medians of "
            f"{timed['rounds']} fresh processes, in turns, "
            f"{timed['calls']} passes each; on the processor, threads for all: {timed['threads']}",
            markup=False,
        )


def _mrr_table(rows: Mapping[str, Json]) -> Table:
    table = _table("", "MRR", "standard error", "minus PyTorch", "95 % between", "top 1", "loss", "masked")
    for name, row in rows.items():
        value, low, high = row.get("mrr_minus_pytorch", (None, None, None))
        table.add_row(
            name,
            f"{row['mrr']:.4f}",
            f"{row['mrr_error']:.4f}",
            "" if value is None else f"{value:+.4f}",
            "" if value is None else f"{low:+.4f} {high:+.4f}",
            f"{row['top1']:.3f}",
            f"{row['loss']:.3f}",
            f"{row['num_masked']:,}",
        )
    return table


def _latency_table(timed: Json) -> Table:
    table = _table("texts x tokens", "model", "latency", "times as fast", "memory")
    first = {
        (row["batch"], row["length"]): row["seconds"] for row in timed["rows"] if row["model"] == "pytorch"
    }
    for row in timed["rows"]:
        seconds, base = row["seconds"], first[row["batch"], row["length"]]
        table.add_row(
            f"{row['batch']} x {row['length']}",
            row["model"],
            "no room" if seconds is None else f"{1000 * seconds:,.1f} ms",
            "" if seconds is None or base is None else f"{base / seconds:.2f}",
            "" if seconds is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "model" else "right")
    return table
