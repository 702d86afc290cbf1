"""Write the texts of other domains that ko-zh.yaml evaluates on: UD Korean (news, blogs), XQuAD Chinese
(Wikipedia).

Usage: python recipes/ko-zh/prepare.py [DATA] [OUT], by default POLYDISTILL_DATA and runs/ko-zh-domains.
"""

from __future__ import annotations

import json
import lzma
import os
import sys
from pathlib import Path


def main(data: Path, out: Path) -> None:
    """Read treebank and questions, write one text a line."""
    out.mkdir(parents=True, exist_ok=True)
    with lzma.open(data / "data/ud/ko/test.conllu.xz", "rt", encoding="utf-8") as handle:
        sentences = [
            line.removeprefix("# text = ").strip() for line in handle if line.startswith("# text = ")
        ]
    (out / "ko-news-blogs.txt").write_text("\n".join(sentences) + "\n", "utf-8")
    with lzma.open(next((data / "data/qa/xquad/zh").glob("test.json*")), "rt", encoding="utf-8") as handle:
        articles = json.load(handle)["data"]
    contexts = [" ".join(p["context"].split()) for article in articles for p in article["paragraphs"]]
    (out / "zh-wikipedia.txt").write_text("\n".join(dict.fromkeys(contexts)) + "\n", "utf-8")
    print(f"{out}: {len(sentences)} Korean sentences, {len(set(contexts))} Chinese paragraphs")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    root = arguments[0] if arguments else os.environ.get("POLYDISTILL_DATA")
    if not root:
        sys.exit("name the folder of public data, or set POLYDISTILL_DATA (docs/recipes-data.md)")
    main(Path(root), Path(arguments[1] if len(arguments) > 1 else "runs/ko-zh-domains"))
