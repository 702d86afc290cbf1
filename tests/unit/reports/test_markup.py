"""Names of models and folders on the console are shown verbatim, even if they look like rich's markup."""

import io
import shutil

import pytest
from rich.console import Console

from polydistill.disk import write_json
from polydistill.reports.tables import cost_tables, results_table
from polydistill.tools.inspect import inspect_vocabulary, unite_models

# A closing tag without an opening one ended the command in a traceback; a tag in a name was taken for a
# style.
NAMES = ["m[/b]", "m[bold]x", "m[/]", "[red]", "m\\[b]", "m[link=x]y"]


def printed(show) -> str:
    file = io.StringIO()
    show(Console(file=file, width=300, highlight=False, soft_wrap=True))
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_models_name(teachers, tmp_path, name) -> None:
    folder = tmp_path / name
    shutil.copytree(teachers["ru"], folder)
    assert str(folder) in printed(lambda console: inspect_vocabulary(str(folder), console))
    said = printed(lambda console: unite_models([str(folder)], tmp_path / "out", console))
    assert f"0-{folder.name}" in said


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_folder(tmp_path, name) -> None:
    folder = tmp_path / name
    row = {
        "text": "held_out",
        "tokenizer": "own",
        "teacher": "a",
        "model": "student",
        "mrr": 0.5,
        "unigram_mrr": 0.1,
        "top1": 0.2,
        "top5": 0.3,
        "loss": 1.0,
        "num_masked": 9999,
    }
    write_json(folder / "evaluation" / "mlm.json", {"languages": {"en": [row]}, "summary": {}}, sealed=True)
    assert str(folder) in printed(lambda console: console.print(results_table(folder)))
    ranked = {
        "run": "a",
        "language": "en",
        "text": "held_out",
        "model": "student",
        "tokenizer": "own",
        "teacher": "a",
        "value": 0.5,
    }
    probed = {"run": "a", "place": "pos", "measure": "accuracy", "model": "student", "value": 0.5}
    grid = {"runs": ["a"], "rows": [ranked, probed]}
    write_json(folder / "evaluation" / "grid.json", grid, sealed=True)
    assert str(folder) in printed(lambda console: console.print(results_table(folder)))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_whose_cost_was_measured(name) -> None:
    row = {
        "model": name,
        "parameters": 1,
        "embedding_parameters": 1,
        "pieces": 1,
        "file_bytes": 1,
        "batch": 1,
        "length": 1,
        "part": "encoder",
        "seconds": 1.0,
        "peak_bytes": 1,
    }
    assert name in printed(lambda console: console.print(cost_tables([row])))
