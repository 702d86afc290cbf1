"""The command line: parse, call, print, set the exit code; nothing else.

Exit codes: 0 success, 2 an error that the user can fix (one message, no traceback), 1 a bug in polydistill.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polydistill.cli_models import compare, cost, export, push
from polydistill.cli_stores import console, paths_by_language, store_app, vocab_app
from polydistill.errors import PolydistillError, UserError
from polydistill.limits import explain_limits
from polydistill.version import __version__

if TYPE_CHECKING:
    from polydistill.config.shared import RunRecipe

app = typer.Typer(
    name="polydistill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Merge, extract and balance multilingual masked language models by distillation.\n\nStart with "
    "`polydistill demo`. Then write a recipe with `polydistill init`, check it with `polydistill plan "
    "RECIPE`, and run it with `polydistill run RECIPE`. Rerun the command after a crash: it resumes.",
)
app.add_typer(store_app, name="store")
app.add_typer(vocab_app, name="vocab")


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options of the command line itself."""
    if version:
        console.print(f"polydistill {__version__}", markup=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.print(context.get_help(), markup=False)
        raise typer.Exit(2)


RecipeArgument = Annotated[str, typer.Argument(help="A recipe's YAML file, or a preset's name.")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="Override a setting: `--set training.max_steps=100`.")
]
UpdateOption = Annotated[bool, typer.Option(help="Accept a changed recipe for an existing run.")]


def _loaded(recipe: str, overrides: list[str]) -> RunRecipe:
    """A recipe whose texts and local models are there. What is wrong is told before PyTorch is imported."""
    from polydistill.config.load import load_recipe
    from polydistill.config.paths import check_models
    from polydistill.config.shared import TextRecipe

    loaded = load_recipe(recipe, overrides)
    check_models(loaded)
    _without_hub(loaded)
    if isinstance(loaded, TextRecipe):
        from polydistill.corpora.sources import check_texts

        check_texts(loaded)
    return loaded


def _without_hub(recipe: RunRecipe) -> None:
    from polydistill.config.paths import without_hub

    note = without_hub(recipe)
    if note:
        console.print(note, markup=False)


def _run(recipe: str, overrides: list[str], until: str, update: bool, probe: list[str] | None = None) -> Path:
    loaded = _loaded(recipe, overrides)
    from polydistill.pipelines.run import run_recipe
    from polydistill.processes import leads
    from polydistill.reports.progress import bars

    with bars(console if leads() else None) as watch:
        path = run_recipe(
            loaded,
            until=until,
            update=update,
            probe=probe or None,
            show=lambda line: console.print(line, markup=False),
            watch=watch,
        )
    if not leads():
        # Of several processes that trained together, only the first shows the results.
        raise typer.Exit
    return path


@app.command()
def run(recipe: RecipeArgument, set_: SetOption = [], update: UpdateOption = False) -> None:  # noqa: B006
    """Run a whole recipe, from text to report. Rerun the command after an interruption: it resumes."""
    path = _run(recipe, set_, "report", update)
    from polydistill.reports.tables import results_table

    console.print(results_table(path))
    report = path / "report" / "index.html"
    if report.is_file():
        console.print(f"report: {report.resolve()}", markup=False)


@app.command()
def init(
    output: Annotated[Path, typer.Argument(help="The recipe to write, such as mine.yaml.")],
    teacher: Annotated[
        list[str],
        typer.Option(help="NAME=MODEL: a folder or hub name of a masked language model. Repeat it."),
    ] = [],  # noqa: B006
    text: Annotated[
        list[str], typer.Option(help="LANGUAGE=PATH: a file, folder or glob of text. Repeat it.")
    ] = [],  # noqa: B006
    teaches: Annotated[
        list[str],
        typer.Option(help="LANGUAGE=NAME: a teacher of a language that is not named like it. Repeat it."),
    ] = [],  # noqa: B006
) -> None:
    """Write a first recipe from teachers and texts; asks for them on a terminal if none is given."""
    from polydistill.tools.init import write_first_recipe

    teachers = {name: paths[-1] for name, paths in paths_by_language(teacher, "--teacher").items()}
    texts = paths_by_language(text)
    if not teachers and not texts and sys.stdin.isatty():
        teachers, texts = _asked()
    path = write_first_recipe(output, teachers, texts, paths_by_language(teaches, "--teaches"))
    console.print(
        f"{path} is written. Next:\n  polydistill plan {path}\n  polydistill run {path}", markup=False
    )


def _asked() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Teachers and texts from a terminal, language by language; an empty answer ends it."""
    teachers: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    while language := typer.prompt("language (its code; empty: no more)", default="", show_default=False):
        texts[language] = [typer.prompt(f"text of {language} (a file, folder or glob)")]
        teachers[language] = typer.prompt(f"teacher of {language} (a folder or hub name)")
    return teachers, texts


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006
    full: Annotated[bool, typer.Option("--full", help="Print every resolved setting first.")] = False,
) -> None:
    """Show what a recipe would do and cost, and its conflicts, from samples and a few timed batches.

    Exit code 2: the recipe cannot be run.
    """
    from polydistill.config.load import load_recipe

    # A plan lists all that is wrong; what is wrong with the recipe itself it says at once.
    loaded = load_recipe(recipe, set_)
    _without_hub(loaded)
    from polydistill.pipelines.plan import plan_recipe

    if any(conflict.level == "error" for conflict in plan_recipe(loaded, (), console, full=full)):
        raise typer.Exit(2)


@app.command()
def score(recipe: RecipeArgument, set_: SetOption = [], update: UpdateOption = False) -> None:  # noqa: B006
    """Run a merge up to the stores of teachers' predictions."""
    _run(recipe, set_, "score", update)


@app.command()
def train(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006
    update: UpdateOption = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Train a few steps, show where the time goes, and keep nothing.")
    ] = False,
) -> None:
    """Run a recipe up to the trained student."""
    if not profile:
        _run(recipe, set_, "train", update)
        return
    from polydistill.pipelines.profile import print_profile, profile_recipe

    summary = profile_recipe(recipe, set_, update=update, show=lambda line: console.print(line, markup=False))
    print_profile(summary, console)


@app.command()
def evaluate(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006
    update: UpdateOption = False,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="A task of a balance recipe's probes, pos or ner; by default all. Repeat it for several."
        ),
    ] = None,
) -> None:
    """Run a recipe up to the evaluation, and print its table."""
    path = _run(recipe, set_, "evaluate", update, probe)
    from polydistill.reports.tables import results_table

    console.print(results_table(path))


# Commands on finished runs and on models.
for command in (compare, cost, export, push):
    app.command()(command)


@app.command()
def pretrain(recipe: RecipeArgument, set_: SetOption = [], update: UpdateOption = False) -> None:  # noqa: B006
    """Pre-train a small masked language model and its WordPiece from text (`recipe: pretrain`)."""
    path = _run(recipe, ["recipe=pretrain", *set_], "report", update)
    from polydistill.reports.tables import results_table

    console.print(results_table(path))


@app.command()
def finetune(recipe: RecipeArgument, set_: SetOption = [], update: UpdateOption = False) -> None:  # noqa: B006
    """Fine-tune models on tasks, with scores, RDT and a report (`recipe: finetune`); an alias of run."""
    run(recipe, ["recipe=finetune", *set_], update)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Rewrite the report of a finished run."""
    from polydistill.reports.page import report_run

    console.print(f"report: {report_run(folder).resolve()}", markup=False)


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Show how far a run is, also from another terminal: its stages, times, and last lines."""
    from polydistill.reports.progress import print_status

    print_status(folder, console)


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the runs; by default demo-run, or demo-quick.")
    ] = None,
    set_: SetOption = [],  # noqa: B006
    quick: Annotated[
        bool, typer.Option("--quick", help="Two teachers and few steps: a whole merge in two minutes.")
    ] = False,
) -> None:
    """Pre-train small teachers on bundled text, merge them, and write a report: about eight minutes, or two
    with `--quick`.
    """
    from polydistill.pipelines.demo import run_demo
    from polydistill.reports.progress import bars
    from polydistill.reports.tables import results_table

    show = partial(console.print, markup=False)
    folder = output or Path("demo-quick" if quick else "demo-run")
    with bars(console) as watch:
        path = run_demo(folder, set_, quick=quick, show=show, watch=watch)
    console.print(results_table(path))
    console.print(f"report: {(path / 'report' / 'index.html').resolve()}", markup=False)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Check every file of a run against its checksum; report the first damaged one."""
    from polydistill.tools.verify import verify_run

    for line in verify_run(folder):
        console.print(line, markup=False)


def explain_thread(failed: threading.ExceptHookArgs) -> None:
    """Report a full disk in TensorBoard's writer thread as one line: the run itself reports the rest."""
    if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"polydistill: a log is no longer written ({failed.exc_value.strerror})", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


def with_home_argument(argument: str) -> str:
    """An argument with a leading `~` expanded, also after `--option=`, where shells leave it."""
    from polydistill.config.paths import expand_home

    option, sign, value = argument.partition("=")
    if sign and option.startswith("--") and "=" not in value:
        return f"{option}={expand_home(value, option)}"
    return expand_home(argument, "argument")


def main() -> None:
    """Entry point: run the command and turn errors into messages and exit codes."""
    # Progress bars of weights that load in a second only push away the run's own lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    threading.excepthook = explain_thread
    # A Rust library that panics prints its stack before the panic can be caught.
    os.environ.setdefault("RUST_BACKTRACE", "0")
    try:
        with explain_limits():
            app([with_home_argument(argument) for argument in sys.argv[1:]])
    except UserError as error:
        print(f"polydistill: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except PolydistillError:
        raise
    except KeyboardInterrupt:
        print("polydistill: interrupted; the same command resumes here", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
