"""The command line's parts for stores and vocabularies: `polydistill store` and `polydistill vocab`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polydistill.errors import RecipeError

store_app = typer.Typer(no_args_is_help=True, help="Inspect and check stores of teachers' predictions.")
vocab_app = typer.Typer(no_args_is_help=True, help="Inspect, learn, unite and trim vocabularies.")
console = Console(highlight=False, soft_wrap=True)


@store_app.command("inspect")
def store_inspect(
    folder: Annotated[Path, typer.Argument(help="A store: runs/NAME/store/LANGUAGE/TEACHER.")],
    examples: Annotated[int, typer.Option(help="Number of examples to show.")] = 3,
    tokenizer: Annotated[
        str, typer.Option(help="The teacher's folder or hub name; empty: from the run's recipe.")
    ] = "",
    vocabulary: Annotated[
        str,
        typer.Option(
            help="A tokenizer's folder: show how much of the labels it can say, for each store below the "
            "folder."
        ),
    ] = "",
) -> None:
    """Show a store: its manifest, and examples with their masks and the teacher's top k as words."""
    if vocabulary:
        from polydistill.tools.crossing import inspect_crossing

        inspect_crossing(folder, vocabulary, examples, tokenizer, console)
        return
    from polydistill.tools.inspect import inspect_store

    inspect_store(folder, examples, tokenizer, console)


@store_app.command("verify")
def store_verify(folder: Annotated[Path, typer.Argument(help="A store, or a folder with stores.")]) -> None:
    """Check every checksum."""
    from polydistill.tools.verify import verify_stores

    for line in verify_stores(folder):
        console.print(line, markup=False)


@store_app.command("upload")
def store_upload(
    run: Annotated[Path, typer.Argument(help="A run's folder: runs/NAME.")],
    url: Annotated[str, typer.Argument(help="Where to: a URL that fsspec knows, s3://bucket/runs/NAME.")],
) -> None:
    """Put a run's corpora and stores on storage: another machine trains with `reuse: [URL]`."""
    from polydistill.tools.upload import upload_run

    upload_run(run, url, console)


@vocab_app.command("union")
def vocab_union(
    models: Annotated[
        list[str], typer.Argument(help="Folders or hub names of models; their order determines the ids.")
    ],
    output: Annotated[
        Path, typer.Option(help="Folder for the union tokenizer and each model's renumbered one.")
    ],
) -> None:
    """Unite the vocabularies of models and write the tokenizers."""
    from polydistill.tools.inspect import unite_models

    unite_models(models, output, console)


@vocab_app.command("inspect")
def vocab_inspect(model: Annotated[str, typer.Argument(help="A folder or hub name of a model.")]) -> None:
    """Show a model's vocabulary: kind, size, roles, casing, odd entries."""
    from polydistill.tools.inspect import inspect_vocabulary

    inspect_vocabulary(model, console)


@vocab_app.command("trim")
def vocab_trim(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder or hub name: a masked language model, an encoder, a classifier of texts or "
            "tokens, a question answerer, a sentence-transformers folder or GLiNER's."
        ),
    ],
    text: Annotated[
        list[str],
        typer.Option(
            help="LANGUAGE=PATH: a file, folder or glob; each line is a document. Repeat it for several."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the trimmed model and its tokenizer.")],
    min_document_share: Annotated[
        float | None,
        typer.Option(help="Keep pieces in at least this share of a language's lines; default: in one line."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Keep at most N pieces, the most frequent.")] = None,
    drop_scripts: Annotated[
        bool,
        typer.Option(
            "--drop-scripts",
            help="Give up single characters of scripts that the text does not write: text in them becomes "
            "unknown.",
        ),
    ] = False,
    keep_script: Annotated[
        list[str],
        typer.Option(help="With --drop-scripts: a script that stays all the same, such as Greek. Repeat it."),
    ] = [],  # noqa: B006
    verify_lines: Annotated[
        int, typer.Option(help="Lines per language, left out of the selection, to verify the trim on.")
    ] = 500,
    revision: Annotated[
        str | None, typer.Option(help="Revision on the hub: a branch, a tag or a commit.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option(help="Accept weights that exist only as a pickle.")] = False,
) -> None:
    """Trim a model's vocabulary to the pieces that text uses, and verify that nothing else changes."""
    from polydistill.tools.trim import trim_vocabulary

    trim_vocabulary(
        model,
        paths_by_language(text),
        output,
        console,
        min_document_share=min_document_share,
        size=size,
        verify_lines=verify_lines,
        drop_scripts=drop_scripts,
        keep_scripts=keep_script,
        revision=revision,
        allow_pickle=allow_pickle,
    )


@vocab_app.command("learn")
def vocab_learn(
    text: Annotated[
        list[str],
        typer.Option(
            help="LANGUAGE=PATH: a file, folder or glob; each line is a document. Repeat it for several."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the tokenizer.")],
    size: Annotated[int, typer.Option(min=100, help="Number of pieces.")] = 16_000,
    lowercase: Annotated[bool, typer.Option(help="Lowercase text.")] = True,
    alpha: Annotated[
        float,
        typer.Option(min=0, max=1, help="Smoothing of the languages' shares: 1 as in the text, 0 all alike."),
    ] = 0.7,
) -> None:
    """Learn one WordPiece for several languages, with accents stripped in Latin, Greek and Cyrillic only."""
    from polydistill.tools.crossing import learn_vocabulary

    learn_vocabulary(
        paths_by_language(text), output, console, size=size, lowercase=lowercase, smoothing_alpha=alpha
    )


def paths_by_language(given: list[str], option: str = "--text") -> dict[str, list[str]]:
    """Name → its values, from options of the form NAME=VALUE."""
    texts: dict[str, list[str]] = {}
    for each in given:
        language, _, path = each.partition("=")
        if not language or not path:
            raise RecipeError(
                option, each, "is not of the form NAME=VALUE", f"write it like `{option} tr=text/tr.txt.xz`"
            )
        texts.setdefault(language, []).append(path)
    return texts
