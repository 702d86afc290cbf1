"""The report's page in headless Chromium, on a desktop and on a phone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from polydistill.config.load import parse_recipe
from polydistill.pipelines.run import run_recipe

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
# The page itself reports how far it overflows the window, and whether the corpus ran a script.
PROBE = """<script>addEventListener("load", () => {
const over = document.documentElement.scrollWidth - innerWidth;
document.title = `over ${over} hacked ${window.hacked === true}`})</script>"""


def browse(page: Path, profile: Path, *arguments: str) -> str:
    """Chromium's output for a page, without a network."""
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=3000",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_its_window_and_runs_nothing_from_the_corpus(tmp_path, recipe_values, width) -> None:
    hostile = (
        "<script>window.hacked = true</script> <img src=x onerror='window.hacked = true'> and so on it goes"
    )
    text = Path(recipe_values["languages"]["ru"]["text"])
    poisoned = tmp_path / "ru.txt"
    poisoned.write_text(
        "\n".join(
            f"{line} {hostile} {index}"
            for index, line in enumerate(text.read_text("utf-8").splitlines()[:400])
        ),
        "utf-8",
    )
    recipe_values["languages"] = {"ru": {"text": str(poisoned), "teachers": ["ru"]}}
    recipe_values["teachers"] = {"ru": recipe_values["teachers"]["ru"]}
    recipe_values["training"]["max_steps"] = 2
    run = run_recipe(parse_recipe(recipe_values), show=lambda line: None)
    page = run / "report" / "index.html"
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text("utf-8").replace("</head>", PROBE + "</head>"), "utf-8")
    shown = browse(probed, tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    assert "hacked false" in shown
    over = int(shown.split("<title>over ")[1].split()[0])
    # Chromium's window is at least 500 wide without a device: the page must not be wider.
    assert over <= 0
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--window-size={width},3000", f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000
