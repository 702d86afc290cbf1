"""The quickstart's notebook runs from its first cell to its last."""

import nbformat
import pytest
from nbclient import NotebookClient
from tests.docs.pages import ROOT


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    head = notebook.cells[1]
    assert head.source.startswith("STEPS = ")
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    head.source += "\nSTEPS, LINES = 3, 500"
    done = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "student" in str(done.cells)
    assert (tmp_path / "quickstart-runs" / "merge" / "report" / "index.html").is_file()
