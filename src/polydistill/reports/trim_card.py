"""What is said of a trimmed model: lines for the console, and its card."""

from __future__ import annotations

from polydistill.config.shared import Card
from polydistill.disk import Json
from polydistill.reports.card_sections import front_matter, shown_name

# Task → (the hub's name of it, the class that loads it).
CLASSES = {
    "masked language model": ("fill-mask", "AutoModelForMaskedLM"),
    "encoder without a head": ("feature-extraction", "AutoModel"),
    "token classifier": ("token-classification", "AutoModelForTokenClassification"),
    "sequence classifier": ("text-classification", "AutoModelForSequenceClassification"),
    "question answerer": ("question-answering", "AutoModelForQuestionAnswering"),
}
# Layout → (the hub's name of the task, lines that load it).
LAYOUTS = {
    "sentence-transformers": (
        "sentence-similarity",
        [
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("FOLDER")',
        ],
    ),
    "GLiNER": (
        "token-classification",
        ["from gliner import GLiNER", "", 'model = GLiNER.from_pretrained("FOLDER")'],
    ),
}
# Names of weights that are listed, and scripts.
SHOWN = 6


def trim_lines(record: Json) -> list[str]:
    """The proof of a trim as lines of text.

    record  the contents of trim.json
    """
    reasons = record["reasons"]
    lines = [
        f"{what_it_is(record)}: {record['original_pieces']:,} pieces → {record['pieces']:,}: "
        + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()),
        f"parameters {record['original_parameters']:,} → {record['parameters']:,}; weights "
        f"{record['original_weight_bytes']:,} → {record['weight_bytes']:,} bytes",
        *script_lines(record),
    ]
    for language, counts in record["languages"].items():
        proven = counts["kept_texts"] + counts["shortened_texts"]
        lines += [
            f"{language}: chosen on {record['documents'][language]:,} lines; of {counts['num_texts']:,} "
            f"others {counts['kept_texts']:,} have kept pieces alone, {counts['shortened_texts']:,} more "
            f"with some words left out: {counts['identical_texts']:,} of these {proven:,} get the same "
            "pieces",
            f"    tokens kept {counts['kept_tokens']:.2%}; tokens a word {counts['fertility']:.3f} → "
            f"{counts['trimmed_fertility']:.3f}; unknown tokens {counts['unknown_share']:.4%} → "
            f"{counts['trimmed_unknown_share']:.4%}; characters under them "
            f"{counts['unknown_characters']:.4%} → {counts['trimmed_unknown_characters']:.4%}",
        ]
    return [*lines, *weight_lines(record), *output_lines(record)]


def what_it_is(record: Json) -> str:
    """`sequence classifier`, or `sentence-transformers folder`."""
    layout = record["layout"]
    return str(record["task"]) if layout == "model" else f"{layout} folder"


def script_lines(record: Json) -> list[str]:
    """The scripts that were given up, if they could be."""
    if "scripts" not in record:
        return []
    scripts = record["scripts"]
    if not scripts:
        return ["no script was given up: the text writes all that have single characters"]
    number = sum(each["pieces"] for each in scripts.values())
    unknown = sum(each["unknown"] for each in scripts.values())
    largest = [f"{script} {each['pieces']:,}" for script, each in list(scripts.items())[:SHOWN]]
    more = f", {len(scripts) - SHOWN} more" if len(scripts) > SHOWN else ""
    share = max(each["share"] for each in scripts.values())
    return [
        f"{number:,} single characters of {_count(len(scripts), 'script')} were given up "
        f"({', '.join(largest)}{more}), each at most {share:.3%} of the text's letters; {unknown:,} of them "
        "are unknown now, and so is text in these scripts"
    ]


def weight_lines(record: Json) -> list[str]:
    """What was cut, what is the same to the byte, and what was left out."""
    weights, elsewhere, left_out = record["weights"], record["elsewhere"], record["left_out"]
    cut = ", ".join(
        f"{name} {' x '.join(map(str, old))} → {' x '.join(map(str, new))}"
        for name, (old, new) in weights["cut"].items()
    )
    also = ""
    if "files" in elsewhere:
        also = f"; {elsewhere['files']} files of other modules too"
    elif "weights" in elsewhere:
        also = f"; {elsewhere['weights']} weights outside the encoder too"
    lines = [
        f"cut: {cut}",
        f"equal to the byte: {weights['unchanged']} other weights ({weights['unchanged_bytes']:,} "
        f"bytes){also}",
    ]
    if left_out:
        shown = ", ".join(left_out[:SHOWN]) + (" …" if len(left_out) > SHOWN else "")
        lines.append(f"left out, because its class does not use them: {len(left_out)} weights ({shown})")
    return lines


def output_lines(record: Json) -> list[str]:
    """How far the trimmed model's outputs are from the original's."""
    if "logits" in record:
        logits = record["logits"]
        return [
            f"logits of kept pieces: {logits['texts']} texts, {logits['tokens']:,} tokens, largest "
            f"difference {logits['max_difference']:.2g} (largest logit {logits['max_logit']:.1f}, float32)"
        ]
    outputs = record["outputs"]
    return [
        f"{name}: {outputs['texts']} texts, {outputs['tokens']:,} tokens, largest difference "
        f"{values['max_difference']:.2g} (largest value {values['max_value']:.1f}, float32)"
        for name, values in outputs["fields"].items()
    ]


def trim_card(record: Json) -> str:
    """Markdown of a trimmed model's card, with the hub's metadata block.

    record  the contents of trim.json
    """
    languages = record["languages"]
    task, loads = CLASSES[record["task"]]
    layout = LAYOUTS.get(record["layout"])
    name = shown_name(record["model"])
    lines = front_matter(
        list(languages),
        Card(),
        [record["model"]],
        pipeline=layout[0] if layout else task,
        library=record["layout"] if record["layout"] != "model" else "transformers",
    )
    lines += [
        f"# {name}, trimmed to {', '.join(languages)}",
        "",
        f"The weights of {name} with {record['pieces']:,} of its {record['original_pieces']:,} pieces, "
        f"chosen on text by polydistill {record['polydistill']}: {record['parameters']:,} of "
        f"{record['original_parameters']:,} parameters. Nothing was trained.",
        "",
        "Text whose pieces are all kept is split as before, with the same outputs. On lines that the "
        "selection did not see:",
        "",
        "| language | lines | all pieces kept | of these split the same | unknown tokens before | after | "
        "tokens per word before | after |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {language} | {counts['num_texts']} | {counts['kept_texts']} + {counts['shortened_texts']} "
            f"shortened | {counts['identical_texts']} | {counts['unknown_share']:.4%} | "
            f"{counts['trimmed_unknown_share']:.4%} | {counts['fertility']:.3f} | "
            f"{counts['trimmed_fertility']:.3f} |"
            for language, counts in languages.items()
        ),
        "",
        *(f"- {line}" for line in (*script_lines(record), *weight_lines(record), *output_lines(record))),
        "",
        "`trim.json` has all figures, `kept.json` the old id of each new id.",
        "",
        "```python",
        *(layout[1] if layout else _loading(loads)),
        "```",
        "",
        "## Licence",
        "",
        f"The terms of {name} apply to this part of it. State them here before you publish it.",
        "",
    ]
    return "\n".join(lines)


def _loading(loads: str) -> list[str]:
    return [
        f"from transformers import {loads}, AutoTokenizer",
        "",
        f'model = {loads}.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
