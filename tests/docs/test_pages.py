"""Every code block of the documentation runs, page by page and in order, in a folder with its files."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt
from tests.docs.files import STUDENTS, write_files
from tests.docs.pages import ROOT, Reader, blocks_of, commands_of

from polydistill.cli import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page.name: blocks_of(page.read_text("utf-8")) for page in PAGES}
# A page that takes up another page's recipes.
CONTINUES = {"cluster.md": "merge.md"}
SLOW = {"cluster.md": "starts Ray"}
MOST_NOT_RUN = 12


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages") / "files"
    write_files(root)
    return root


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name, blocks in BLOCKS.items()
        if any(block.language and not block.not_run for block in blocks)
    ],
)
def test_a_page_does_what_it_says(name, files, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(files, tmp_path / "here")
    if name in STUDENTS:
        shutil.copytree(folder / "models/multilingual-bert", folder / STUDENTS[name])
    monkeypatch.chdir(folder)
    reader = Reader(name, monkeypatch)
    before = [block for block in BLOCKS.get(CONTINUES.get(name, ""), []) if block.title]
    own = [block for block in BLOCKS[name] if not block.not_run]
    for block in (*before, *own):
        assert reader.run(block) == []


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left = [
        f"{name}:{block.line}: {block.not_run}"
        for name, blocks in BLOCKS.items()
        for block in blocks
        if block.not_run
    ]
    print(*left, sep="\n")
    assert len(left) <= MOST_NOT_RUN
    tokens = [token for page in PAGES for token in MarkdownIt().parse(page.read_text("utf-8"))]
    written = sum(token.type == "html_block" and "not run" in token.content for token in tokens)
    assert len(left) == written, "a comment that stands before no block, or has no reason"


def check_command(words: list[str]) -> None:
    """AssertionError for a command, option, extra or target that does not exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if words[:2] in (["pip", "install"], ["uv", "tool"]):
        extras = words[-1].partition("[")[2].rstrip("]").split(",")
        assert set(extras) <= {"", *project["optional-dependencies"]}, words
    elif words[0] == "make":
        targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text("utf-8").splitlines()}
        assert words[1] in " ".join(targets).split(), words
    elif "polydistill" in words:
        parse(words[words.index("polydistill") + 1 :])


def parse(arguments: list[str]) -> None:
    """Parse a command's arguments without running it; UsageError for an unknown command or option."""
    command = typer.main.get_command(app)
    context = command.context_class(command)
    while hasattr(command, "resolve_command") and arguments and not arguments[0].startswith("-"):
        _, command, arguments = command.resolve_command(context, arguments)
    if arguments:
        command.make_context(command.name, [*arguments])


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if any(b.not_run for b in blocks)])
def test_commands_that_are_not_run_exist(name) -> None:
    for block in BLOCKS[name]:
        for words in commands_of(block.text) if block.not_run else []:
            check_command(words)


def test_the_readme_names_every_command() -> None:
    listed = (ROOT / "README.md").read_text("utf-8").split("## Commands")[1].split("Exit code")[0]
    assert set(re.findall(r"[a-z]+", listed)) == set(commands(typer.main.get_command(app)))


def commands(group: Any) -> list[str]:
    """The names of commands and groups, below a group too."""
    below = getattr(group, "commands", {})
    return [name for each, command in below.items() for name in (each, *commands(command))]


def inline_commands(text: str) -> list[str]:
    """The commands of polydistill, make and pip in the sentences of a page."""
    tokens = [child for token in MarkdownIt().enable("table").parse(text) for child in token.children or []]
    code = [" ".join(token.content.split()) for token in tokens if token.type == "code_inline"]
    return [each for each in code if each.startswith(("polydistill ", "make ", "pip install "))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page) -> None:
    for command in inline_commands(page.read_text("utf-8")):
        for words in commands_of(command):
            check_command(words)
