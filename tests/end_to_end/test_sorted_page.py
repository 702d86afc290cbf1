"""Tables of a comparison's page, ordered by a click in headless Chromium."""

import re

import pytest
from tests.end_to_end.test_page import CHROMIUM, browse

from polydistill.reports.compare_page import write_comparison

CLICKS = """<script>addEventListener("load", () => {
const shown = [];
const table = document.querySelectorAll("table.sortable")[%d];
const head = table.tHead.rows[0].cells[%d];
for (let click = 0; click < 2; click++) {
  head.querySelector("button").click();
  const names = [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  shown.push(head.getAttribute("aria-sort") + ": " + names.join(" "));
}
document.body.replaceChildren(shown.join("; "))})</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (1, "descending: c a b d; ascending: d b a c"),
        # The one that is not known comes last, either way.
        (3, "descending: a b d c; ascending: d b a c"),
        (0, "ascending: a b c d; descending: d c b a"),
    ],
)
def test_a_table_is_ordered_by_any_column(tmp_path, column, wanted) -> None:
    figures = {"b": (900, 2.0e12), "a": (1500, 3.5e13), "c": (20_000, None), "d": (7, 5.0e9)}
    compute = {}
    for name, (steps, flops) in figures.items():
        part = {"seconds": 1.0, "flops": flops}
        compute[name] = {"steps": steps, "training": part, "scoring": None, "teachers": None, "total": part}
    folders = [tmp_path / name for name in figures]
    for folder in folders:
        folder.mkdir()
        (folder / "recipe.yaml").write_text(f"name: {folder.name}\n", "utf-8")
    page = write_comparison(tmp_path / "c.html", folders, list(figures), [], "", compute)
    text = page.read_text("utf-8").replace("</body>", CLICKS % (0, column) + "</body>")
    page.write_text(text, "utf-8")
    dom = browse(page, tmp_path / "profile", "--dump-dom")
    assert re.search(r"<body>(.*?)</body>", dom, re.DOTALL).group(1).strip() == wanted
