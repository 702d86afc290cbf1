"""The code blocks of a page, and how a test runs them as a reader would, in one folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from typer.testing import CliRunner

from polydistill.cli import app
from polydistill.config import load

ROOT = Path(__file__).parent.parent.parent
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
# A training of a page is one of moments here: a number under one of these names is at most this.
MOST = {
    "max_steps": 3,
    "epochs": 0.01,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "max_length": 32,
    "max_characters": 10_000,
    "max_examples": 16,
    "num_seeds": 1,
    "size": 400,
    "rounds": 0,
}
# What recipes of these kinds are given where they leave it out.
STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "save_steps": 3, "bf16": False, "report_to": []}
TRAINED = {"training": STEPS, "evaluation": {"max_examples": 16, "precision": "float32"}}
TEXT = {**TRAINED, "corpora": {"max_length": 32}}
LEARNED = {**TEXT, "tokenizer": {"size": 400}}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "merge": {**TEXT, "scoring": {"precision": "float32"}},
    "extract": {**TEXT, "cost": {"rounds": 0}},
    "balance": {**LEARNED, "teachers": {"evaluations": 1}},
    "pretrain": LEARNED,
    "embed": {"training": STEPS, "sentences": {"max_length": 32}, "vectors": {"precision": "float32"}},
    "probe": {"probing": {"num_seeds": 1, "epochs": 1}},
    "finetune": {
        "training": {name: STEPS[name] for name in ("max_steps", "per_device_train_batch_size", "bf16")},
        "num_seeds": 1,
        "bootstrap_samples": 100,
    },
    "grid": {"base": TEXT},
}
# Options that a command gets besides the page's: latency is measured in fresh processes, which take minutes.
MORE = {"export": ["--no-latency"], "learn": ["--size", "400"]}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    language  the fence's first word; "" for output and trees
    title     the file that the block is, if the fence names one
    not_run   why no test can run it, from the comment before it
    """

    language: str
    text: str
    title: str
    not_run: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page in order."""
    blocks, comment = [], ""
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map:
            language, _, attributes = token.info.partition(" ")
            title = re.search(r'title="([^"]+)"', attributes)
            found = NOT_RUN.fullmatch(comment)
            blocks.append(
                Block(
                    language,
                    token.content,
                    title[1] if title else "",
                    " ".join(found[1].split()) if found else "",
                    token.map[0] + 1,
                )
            )
        comment = token.content.strip() if token.type == "html_block" else ""
    return blocks


def commands_of(text: str) -> list[list[str]]:
    """The commands of a shell block, as words: lines that end in a backslash continue, comments are gone."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def smaller(values: Any) -> Any:
    """A recipe's values with every number at most what MOST allows under its name, at any depth."""
    if isinstance(values, list):
        return [smaller(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        key: min(value, MOST[key])
        if key in MOST and isinstance(value, (int, float)) and not isinstance(value, bool)
        else smaller(value)
        for key, value in values.items()
    }


def small_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe that runs in moments."""
    return load.grid_values(LEFT_OUT[values.get("recipe", "merge")], smaller(values))


class Reader:
    """Works through a page in a folder: state passes from block to block, by files and by variables."""

    def __init__(self, page: str, monkeypatch: Any) -> None:
        read = load.read_recipe
        monkeypatch.setattr(load, "read_recipe", lambda path: small_recipe(read(path)))
        self.page = page
        self.variables: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> list[str]:
        """Run a block as its language says, up to its first fault; returns that, with its place.

        Python that fails raises: its traceback names the block.
        """
        place = f"{self.page}:{block.line}"
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, "utf-8")
        if block.language == "sh":
            for words in commands_of(block.text):
                fault = self._command(words)
                if fault:
                    return [f"{place}: {shlex.join(words)}\n{fault}"]
        elif block.language == "python":
            exec(compile(block.text, place, "exec"), self.variables)
        elif block.language == "yaml":
            if not block.title:
                return [f'{place}: name the recipe\'s file, as in ```yaml title="mine.yaml"']
            load.load_recipe(block.title)
        elif block.language:
            return [f"{place}: no way to run {block.language}"]
        return []

    def _command(self, words: list[str]) -> str:
        """Run a command; returns what it printed if it failed."""
        if words[0] != "polydistill":
            path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
            plain = subprocess.run(words, env=path, capture_output=True, text=True, check=False)
            return f"exit code {plain.returncode}: {plain.stderr}" if plain.returncode else ""
        more = [option for word in words[1:3] for option in MORE.get(word, [])]
        done = CliRunner().invoke(app, [*words[1:], *more])
        return f"{done.output}\n{done.exception!r}" if done.exit_code else ""
