"""Hooks of mkdocs.yml: the repository's address from pyproject.toml, and links that leave docs/."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def on_config(config: Any) -> Any:
    """Set edit links and the repository's icon.

    `repo_url` would do both, and let every reader's browser ask GitHub for the repository's stars.
    """
    config["edit_uri"] = f"{REPOSITORY}/edit/main/docs/"
    config["extra"]["social"] = [{"icon": "fontawesome/brands/github", "link": REPOSITORY}]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links from docs/ to other files of the repository into addresses."""
    return re.sub(r"\]\(\.\./(?=[A-Z])", f"]({REPOSITORY}/blob/main/", markdown)
