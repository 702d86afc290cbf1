"""What the pages' commands read: small models, texts and labelled data at the paths that the pages name."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from tests.conftest import bundled_lines, make_teacher
from tests.finetuning import columns, squad, treebank

# A page's language → the bundled one that stands for it.
TEXTS = {"ko": "ru", "sw": "en", "es": "fr", "tr": "de", "eu": "en"}
LINES = 250
# Page → the student of another page that it takes up.
STUDENTS = {"finetune.md": "runs/ko-zh/student/final", "trim-and-export.md": "runs/mbert-sw/student/final"}


def write_files(root: Path) -> None:
    """Fill a folder with everything that pages take as given."""
    lines = {language: bundled_lines(language, LINES) for language in ("de", "en", "fr", "ru")}
    for name in ("text/zh", "text/az", "ner/ko", "ner/zh", "ud/ko", "ud/zh", "qa/ko", "qa/zh"):
        (root / name).mkdir(parents=True)
    for language, bundled in TEXTS.items():
        with lzma.open(root / f"text/{language}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines[bundled]))
    rows = [json.dumps({"text": line}, ensure_ascii=False) for line in lines["fr"]]
    (root / "text/zh/one.jsonl").write_text("\n".join(rows), "utf-8")
    (root / "text/az/one.txt").write_text("\n".join(lines["ru"]), "utf-8")
    make_teacher(root / "models/korean-bert", lines["ru"], seed=1)
    make_teacher(root / "models/chinese-bert", lines["fr"], seed=2)
    both = [line for some in lines.values() for line in some]
    make_teacher(root / "models/multilingual-bert", both, seed=3, size=600, num_layers=4)
    sentence_files(root, lines)
    for page, ours in {"ko": "ru", "zh": "en"}.items():
        for seed, split in enumerate(("train", "dev", "test")):
            columns(root / f"ner/{page}/{split}.bio", ours, seed)
            treebank(root / f"ud/{page}/{split}.conllu", ours, seed)
            squad(root / f"qa/{page}/{split}.json", ours, seed)


def sentence_files(root: Path, lines: dict[str, list[str]]) -> None:
    """A sentence encoder, parallel sentences and scored pairs."""
    encoder = make_teacher(root / "models/sentence-encoder", lines["ru"] + lines["en"], seed=4)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    entries = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in modules]
    (encoder / "modules.json").write_text(json.dumps(entries), "utf-8")
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}', "utf-8")
    (root / "parallel").mkdir()
    (root / "sts").mkdir()
    pairs = list(zip(lines["ru"], lines["en"], strict=True))
    (root / "parallel/ko-en.tsv").write_text("\n".join("\t".join(pair) for pair in pairs[:150]), "utf-8")
    for index, language in enumerate(("ko", "en")):
        texts = [pair[index] for pair in pairs[150:160]]
        (root / f"parallel/{language}.txt").write_text("\n".join(texts), "utf-8")
    rows = [f"{pairs[i][0]}\t{pairs[i + 1][0]}\t{i % 6}" for i in range(160, 180)]
    (root / "sts/ko.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]), "utf-8")
