"""The papers' claims: a verdict of the list in every row, figures behind it, and commands that exist."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec

import pytest
from markdown_it import MarkdownIt
from tests.docs.pages import ROOT
from tests.docs.test_pages import check_command

from polydistill.config.load import load_recipe
from polydistill.pipelines.grid.children import children_of

PAGE = ROOT / "docs" / "results" / "claims.md"
COLUMNS = ["claim", "the paper", "here", "seeds", "verdict", "what differs", "command"]
# What one pre-training seed can say, and what a count or a cost can.
ONE_SEED = {"holds for one seed", "does not hold for one seed"}
THREE_SEEDS = {"holds for three seeds", "does not hold for three seeds"}
BY_COUNT = {"holds", "does not hold"}
VERDICTS = ONE_SEED | THREE_SEEDS | BY_COUNT | {"not settled", "not tested"}
# Figures of probes have no interval: their seeds are the probes'.
INTERVAL = re.compile(r"\(.?\.?\d.* to .*\)|±|settled|sooner")


def rows() -> list[dict[str, str]]:
    """The rows of the page's tables by column, cells as Markdown."""
    found, header = [], False
    cells: list[str] = []
    for token in MarkdownIt().enable("table").parse(PAGE.read_text("utf-8")):
        if token.type in ("thead_open", "tbody_open"):
            header = token.type == "thead_open"
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content)
        elif token.type == "tr_close" and header:
            assert cells == COLUMNS
        elif token.type == "tr_close":
            found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


ROWS = rows()
COMMANDS = sorted({command for row in ROWS for command in re.findall(r"`([^`]+)`", row["command"])})


def test_every_row_has_a_verdict_no_stronger_than_what_is_behind_it() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        verdict = row["verdict"]
        assert verdict in VERDICTS, row
        if verdict == "not tested":
            # What was not measured has no seeds and no command, and shows no interval.
            assert not row["command"], row
            assert not row["seeds"], row
            assert not INTERVAL.search(row["here"]), row
        else:
            assert row["here"], row
            assert row["command"], row
        if verdict in BY_COUNT:
            assert not row["seeds"], row
        if verdict in ONE_SEED:
            assert row["seeds"].startswith("one"), row
            assert INTERVAL.search(row["here"]) or "of probing" in row["seeds"], row
        if verdict in THREE_SEEDS:
            assert row["seeds"].startswith("three"), row
            assert INTERVAL.search(row["here"]), row


def test_every_figure_of_ours_stands_on_a_page_of_results() -> None:
    pages = [page for page in PAGE.parent.glob("*.md") if page != PAGE]
    known = set(re.findall(r"\d*\.\d+", " ".join(page.read_text("utf-8") for page in pages)))
    for row in ROWS:
        unknown = set(re.findall(r"\d*\.\d+", row["here"])) - known
        # Some pages write .5 for 0.5.
        assert not {figure for figure in unknown if figure.removeprefix("0") not in known}, row


def test_the_page_explains_every_verdict() -> None:
    explained = set(re.findall(r"\*\*([a-z ]+)\*\*", PAGE.read_text("utf-8").split("## ")[0]))
    assert explained == VERDICTS


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_recipes_exist(command) -> None:
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), command
    elif words[:2] == ["polydistill", "run"]:
        check_command(words)
        overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        recipe = load_recipe(ROOT / words[2], [*overrides, "data=/somewhere"])
        if recipe.recipe == "grid":
            assert children_of(recipe)
    elif words[0] == "--set":
        # A further run of the row's recipe.
        assert words[::2] == ["--set"] * (len(words) // 2), command
    else:
        # Another recipe beside the row's.
        assert [path for path in (ROOT / "recipes").rglob(command) if path.suffix == ".yaml"], command
