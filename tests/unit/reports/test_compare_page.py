"""A page that compares runs: what differs between recipes, and rows with their intervals."""

import json

import pytest

from polydistill.reports.compare_page import changes, write_comparison

ROWS = [
    {
        "language": "ko",
        "text": "held_out",
        "tokenizer": "bert",
        "masked": 1234,
        "teacher": 0.5,
        "teacher - a": {"value": 0.1, "low": 0.05, "high": 0.15},
        "a": 0.4,
        "b": 0.41,
        "b - a": {"value": 0.01, "low": -0.02, "high": 0.04},
    }
]


def test_only_settings_that_differ_are_shown() -> None:
    """Names and places of runs differ by nature."""
    first = {"name": "a", "output": "runs/a", "training": {"max_steps": 5, "seed": 1}, "teachers": ["x"]}
    second = {
        "name": "b",
        "training": {"max_steps": 9, "seed": 1},
        "teachers": ["x"],
        "student": {"init": None},
    }
    assert changes([first, second]) == {"training.max_steps": ["5", "9"]}
    assert changes([first, second | {"student": {"init": "random"}}])["student.init"] == ["", "random"]


@pytest.fixture
def runs(tmp_path):
    for name, steps in (("a", 5), ("b", 9)):
        folder = tmp_path / name
        (folder / "student").mkdir(parents=True)
        (folder / "recipe.yaml").write_text(f"name: {name}\ntraining: {{max_steps: {steps}}}\n")
        log = {"log": [{"step": 1, "mlm_loss": 3.0}, {"step": 2, "mlm_loss": 2.0}]}
        (folder / "student" / "log.json").write_text(json.dumps(log))
    (tmp_path / "a" / "report").mkdir()
    (tmp_path / "a" / "report" / "index.html").write_text("<p>")
    return [tmp_path / "a", tmp_path / "b"]


def test_a_difference_is_bold_where_its_interval_excludes_zero(runs, tmp_path) -> None:
    """And each run's own page is linked, if it has one."""
    page = write_comparison(tmp_path / "out" / "c.html", runs, ["a", "b"], ROWS, "").read_text("utf-8")
    assert "<b>+0.100 (+0.050 to +0.150)</b>" in page
    assert "<b>+0.010" not in page
    assert "+0.010 (-0.020 to +0.040)" in page
    assert '<a href="../a/report/index.html">a</a> · b' in page
    assert "<th>training.max_steps</th><td>5</td><td>9</td>" in page
    assert page.count("<svg") == 2


def test_what_students_cost_is_beside_and_tables_can_be_ordered(runs, tmp_path) -> None:
    known = {"seconds": 12.0, "flops": 3.5e12}
    compute = {
        "a": {"steps": 1500, "training": known, "scoring": None, "teachers": None, "total": known},
        "b": {
            "steps": 9,
            "training": {"seconds": 4.0, "flops": None},
            "scoring": None,
            "teachers": None,
            "total": {"seconds": 4.0, "flops": None},
        },
    }
    page = write_comparison(tmp_path / "c.html", runs, ["a", "b"], ROWS, "", compute).read_text("utf-8")
    row = page.split("<h2>Compute</h2>")[1].split("<tr><td>a</td>")[1].split("</tr>")[0]
    assert row.startswith('<td class="n">1,500</td><td class="n">12.0</td><td class="n">3.50e+12</td>')
    # None was made here: not counted. Not known: said so.
    assert row.count('<td class="n">') == 1 + 2 * 2
    assert "No scoring was made there, so none is counted. No teachers was made there" in page
    assert '<td class="n">4.0</td><td class="n">?</td>' in page
    assert page.count('<table class="sortable">') == 2
    assert page.count("<script>") == 1
    # The page stays whole by itself.
    assert "src=" not in page
    assert "<link" not in page


def test_runs_of_other_kinds_show_what_was_printed(runs, tmp_path) -> None:
    """Escaped: names come from folders."""
    page = write_comparison(tmp_path / "c.html", runs, ["a", "<b>"], [], "D <of> groups").read_text("utf-8")
    assert "<pre>D &lt;of&gt; groups</pre>" in page
    assert "<b>" not in page.split("</style>")[1]
