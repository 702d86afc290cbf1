"""Links of the Markdown files lead somewhere, and both of their renderers see the same page."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote

import markdown
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pymdownx.slugs import slugify
from tests.docs.pages import ROOT

LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
PAGES = [ROOT / name for name in LISTED.stdout.split()] or [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
SITE = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
GITHUB = MarkdownIt("commonmark").enable("table")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    tokens = GITHUB.parse(page.read_text("utf-8"))
    slug, seen, found = slugify(case="lower"), Counter(), set()
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(child.content for child in text.children or [])
            name = slug(words, "-")
            # GitHub numbers what is there twice by `-1`, the site by `_1`.
            found |= {name} if not seen[name] else {f"{name}{sign}{seen[name]}" for sign in "-_"}
            seen[name] += 1
    return found


def links(page: Path) -> list[str]:
    """The addresses of a page's links and images."""

    def within(token: Token) -> list[str]:
        own = [str(token.attrs[name]) for name in ("href", "src") if name in token.attrs]
        return own + [link for child in token.children or [] for link in within(child)]

    return [link for token in GITHUB.parse(page.read_text("utf-8")) for link in within(token)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_package_index_gets_absolute_links_of_the_repository() -> None:
    build = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / "README.md").read_text("utf-8")
    for each in build["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    made = [
        str(child.attrs["href"])
        for token in GITHUB.parse(text)
        for child in token.children or []
        if "href" in child.attrs
    ]
    assert len(made) > 10
    home = PROJECT["project"]["urls"]["Repository"]
    assert all(link.startswith(("https://", "#")) for link in made)
    own = [
        link.removeprefix(f"{home}/blob/main/").partition("#")[0] for link in made if "polydistill" in link
    ]
    assert len(own) > 10
    assert all((ROOT / path).exists() for path in own)


def tags(html: str) -> Counter[str]:
    """How many lists' items, cells, links and blocks of code a page has."""
    return Counter(re.findall(r"<(li|td|th|a|pre|h[1-6])[ >]", html))


@pytest.mark.parametrize("page", SITE, ids=lambda page: str(page.relative_to(ROOT)))
def test_github_and_the_site_see_the_same_page(page) -> None:
    """Their Markdown differs in lists without a blank line before, and in pipes within tables."""
    extensions = ["attr_list", "md_in_html", "tables", "pymdownx.superfences"]
    text = page.read_text("utf-8")
    site = markdown.markdown(text, extensions=extensions, extension_configs={"pymdownx.superfences": {}})
    assert tags(re.sub(r'<a id="[^"]*"[^>]*></a>|<div class="highlight">', "", site)) == tags(
        GITHUB.render(text)
    )


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """A loader that leaves Python objects alone."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    navigation = str(yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"])
    missing = [page.name for page in SITE if f"'{page.relative_to(ROOT / 'docs')}'" not in navigation]
    assert not missing


def code(page: Path) -> list[str]:
    """What a page has between backticks."""
    tokens = [child for token in GITHUB.parse(page.read_text("utf-8")) for child in token.children or []]
    return [token.content for token in tokens if token.type == "code_inline"]


# Decisions and logs are of their day: what they name may be gone.
MAINTAINED = [
    page for page in PAGES if page.parent.name == "docs" or page.name in ("README.md", "CONTRIBUTING.md")
]
FOLDERS = ("src/", "tests/", "recipes/", "scripts/", "docs/", ".ci/")


@pytest.mark.parametrize("page", MAINTAINED, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page) -> None:
    named = [name for name in code(page) if name.startswith(FOLDERS) and re.fullmatch(r"[\w./-]+", name)]
    assert not [name for name in named if not (ROOT / name).exists()]


def test_code_that_the_papers_name_exists() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "papers.md").read_text("utf-8").splitlines()]
    named = [name for row in rows if len(row) == 5 for name in re.findall(r"`([\w.]+)`", row[2])]
    assert len(named) > 20
    for name in named:
        resolve_name(f"polydistill.{name}")
