"""The command line's part for finished runs and models: `compare`, `cost`, `export` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polydistill.cli_stores import console


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of finished runs; the others are compared with the student of the first."
        ),
    ],
    words: Annotated[
        bool,
        typer.Option("--words", help="Compare by hidden words: for students with different vocabularies."),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page of the comparison to this file too.")
    ] = None,
) -> None:
    """Compare finished runs: MRR on the same masked tokens (for balance runs D by group, and probes)."""
    from rich.console import Console

    from polydistill.tools.compare import Comparison, compare_runs
    from polydistill.tools.compare_compute import compare_compute
    from polydistill.tools.compare_words import compare_words

    shown = Console(record=True, highlight=False, soft_wrap=True) if html else console
    compared = Comparison(compare_words(folders, shown), []) if words else compare_runs(folders, shown)
    compute = compare_compute(folders, compared.names, shown)
    if html:
        from polydistill.reports.compare_page import write_comparison

        page = write_comparison(html, folders, *compared, shown.export_text(), compute)
        console.print(f"page: {page.resolve()}", markup=False)


def cost(
    models: Annotated[
        list[str],
        typer.Argument(help="Folders or hub names of models; the others are compared with the first."),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes per figure.")] = 3,
    calls: Annotated[int, typer.Option(min=1, help="Timed passes per process.")] = 5,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Measure the cost of serving models: size, latency and peak memory at 32 x 512 and 1 x 128 tokens."""
    from polydistill.tools.cost import print_cost

    print_cost(models, console, rounds=rounds, calls=calls, output=output)


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder or hub name: a masked language model, an encoder, a classifier of texts or "
            "tokens, a question answerer or a sentence-transformers folder."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the exported model and its tokenizer.")],
    int8: Annotated[bool, typer.Option("--int8", help="Also write a model with int8 weights.")] = False,
    int8_bits: Annotated[
        int, typer.Option(help="Bits of int8 weights: 7 is correct on every CPU, 8 needs VNNI (x86) or ARM.")
    ] = 7,
    sentence_transformers: Annotated[
        bool,
        typer.Option(
            "--sentence-transformers",
            help="Write the encoder alone, with mean pooling, as a folder that SentenceTransformer loads.",
        ),
    ] = False,
    text: Annotated[
        list[str],
        typer.Option(
            help="A file, folder or glob of text for the comparison, MRR included. Repeat it for several."
        ),
    ] = [],  # noqa: B006
    lines: Annotated[int, typer.Option(help="Number of lines of text to compare on.")] = 400,
    opset: Annotated[int, typer.Option(help="ONNX opset version, at least 18.")] = 18,
    latency: Annotated[bool, typer.Option(help="Compare latency and memory with PyTorch.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes per latency.")] = 3,
    calls: Annotated[int, typer.Option(min=1, help="Timed passes per process.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Threads for all models; 0: PyTorch's default.")] = 0,
    revision: Annotated[
        str | None, typer.Option(help="Revision on the hub: a branch, a tag or a commit.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option(help="Accept weights that exist only as a pickle.")] = False,
) -> None:
    """Export a model to ONNX, check that it computes the same, and measure the savings."""
    from polydistill.tools.export import Latency, export_model

    export_model(
        model,
        output,
        console,
        int8=int8,
        int8_bits=int8_bits,
        sentence_transformers=sentence_transformers,
        texts=text,
        lines=lines,
        opset=opset,
        latency=Latency(rounds, calls, threads) if latency else None,
        revision=revision,
        allow_pickle=allow_pickle,
    )


def push(
    folder: Annotated[Path, typer.Argument(help="A model's folder, or a run's: then its student.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; it is created if need be.")],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is public; by default private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the card and show the files; upload nothing.")
    ] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload by polydistill",
) -> None:
    """Upload a model to the Hugging Face hub, with a card that passes the hub's check."""
    from polydistill.tools.push import push_model

    push_model(folder, repository, console, public=public, dry_run=dry_run, message=message)
