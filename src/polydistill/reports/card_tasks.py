"""The card of a fine-tuned model."""

from __future__ import annotations

from huggingface_hub import EvalResult

from polydistill.config.shared import Card
from polydistill.disk import Json
from polydistill.reports.card_results import model_index
from polydistill.reports.card_sections import front_matter, metadata_block, shown_name, split_card
from polydistill.version import __version__

# Kind of task → (the hub's name, the class of transformers).
HUB = {
    "ner": ("token-classification", "AutoModelForTokenClassification"),
    "pos": ("token-classification", "AutoModelForTokenClassification"),
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "pairs": ("text-classification", "AutoModelForSequenceClassification"),
    "choice": ("multiple-choice", "AutoModelForMultipleChoice"),
    "qa": ("question-answering", "AutoModelForQuestionAnswering"),
}


def task_card(facts: Json) -> str:
    """Markdown of a fine-tuned model's card, with the hub's metadata block.

    facts  the contents of finetuned.json
    """
    pipeline, loader = HUB[facts["kind"]]
    base = shown_name(facts["model"])
    languages = list(facts["scores"])
    front, _ = split_card(
        "\n".join(front_matter(languages, Card(), [facts["model"]], relation="finetune", pipeline=pipeline))
    )
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=facts["task"],
            dataset_name=f"{facts['task']}, {language}",
            metric_type=facts["metric"],
            metric_value=round(float(scores[facts["metric"]]), 4),
        )
        for language, scores in facts["scores"].items()
    ]
    metric = facts["metric"].replace("_", " ")
    settings = {"seed": facts["seed"], **facts["training"]}
    return "\n".join(
        [
            *metadata_block(front | {"model-index": model_index(facts["name"], results)}),
            "",
            f"# {facts['name']}",
            "",
            f"{base}, fine-tuned for {facts['task']} on {facts['source']} by polydistill {__version__}. Of "
            "all seeds, the one with the highest score on the dev set.",
            "",
            f"| language | {metric} | items |",
            "|---|---|---|",
            *(
                f"| {language} | {scores[facts['metric']]:.3f} | {scores['items']:,} |"
                for language, scores in facts["scores"].items()
            ),
            "",
            f"- {metric} on dev: {facts['dev']:.3f}",
            f"- sequences of up to {facts['max_length']} tokens",
            *(f"- {name.replace('_', ' ')}: {value}" for name, value in settings.items()),
            "",
            "```python",
            f"from transformers import {loader}, AutoTokenizer",
            "",
            f'model = {loader}.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            "```",
            "",
            "## Licence and data",
            "",
            f"The terms of {base} and of the task's data apply. State them here before you publish it.",
            "",
        ]
    )
