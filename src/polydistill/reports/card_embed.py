"""The card of a distilled sentence encoder, and its results."""

from __future__ import annotations

from polydistill.config.embed import EmbedRecipe
from polydistill.disk import Json
from polydistill.reports.card_results import LICENCE, RESULTS
from polydistill.reports.card_sections import front_matter, licence_section, shown_name
from polydistill.version import __version__


def embed_card(recipe: EmbedRecipe) -> str:
    """Markdown of a distilled sentence encoder, with the hub's metadata block."""
    languages = list(recipe.languages)
    loss = {"cosine": "1 - cosine", "mse": "the mean squared difference"}[recipe.loss]
    translated = [name for name, language in recipe.languages.items() if language.translations]
    return "\n".join(
        [
            *front_matter(
                languages,
                recipe.card,
                [recipe.student.model],
                relation="finetune",
                pipeline="sentence-similarity",
                library="sentence-transformers",
            ),
            f"# {recipe.name}",
            "",
            f"A sentence encoder for {', '.join(languages)}: {shown_name(recipe.student.model)}, trained by "
            f"polydistill {__version__} to make the vectors of {shown_name(recipe.teacher.model)} (loss: "
            f"{loss}).",
            "",
            *(
                [f"Translations learned the vectors of their originals ({', '.join(translated)}).", ""]
                if translated
                else []
            ),
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("FOLDER")',
            'vectors = model.encode(["TEXT", "TEXT"])',
            "```",
            "",
            "## Training",
            "",
            f"- sentences: up to {recipe.sentences.max_length} tokens, smoothing "
            f"{recipe.sentences.smoothing_alpha:g}",
            *(
                f"- {name.replace('_', ' ')}: {value}"
                for name, value in recipe.training.items()
                if isinstance(value, int | float | str)
            ),
            f"- seed: {recipe.seed}",
            "",
            *licence_section(
                recipe.card,
                "A student inherits the terms of the weights that it starts from, of its teacher's and of "
                "its training text.",
            ),
        ]
    )


def with_embed_results(card: str, results: Json) -> str:
    """A card with a table of an evaluation's results ahead of its licence.

    results  the contents of evaluation/embed.json
    """
    before, licence, after = card.partition(LICENCE)
    lines = [
        RESULTS,
        "",
        "Start: the student before training, with its linear layer fitted if it has one.",
        "",
        "| measure | on | teacher | start | student |",
        "|---|---|---|---|---|",
    ]
    for row in embed_rows(results):
        cells = " | ".join(shown(row["values"].get(model)) for model in results["models"])
        lines.append(f"| {row['measure']} | {row['on']} | {cells} |")
    return "\n".join([before.rstrip(), "", *lines, "", licence + after])


def shown(value: float | None) -> str:
    """A figure in three digits; a dash for one that there is not."""
    return "–" if value is None else f"{value:.3f}"


def embed_rows(results: Json) -> list[Json]:
    """Every measure as a row: `measure`, `on` (what), `items` (how many) and `values` by model.

    The cosine has no value for the teacher, whose vectors are the measure.
    """
    rows = [
        {
            "measure": "cosine with the teacher",
            "on": f"{language}, held out",
            "items": row["sentences"],
            "values": {model: cell["cosine"] for model, cell in row["models"].items()},
        }
        for language, row in results["languages"].items()
    ]
    rows += [
        {"measure": "retrieval accuracy", "on": name, "items": row["sentences"], "values": row["means"]}
        for name, row in results["retrieval"].items()
    ]
    rows += [
        {"measure": "Spearman", "on": name, "items": row["pairs"], "values": row["models"]}
        for name, row in results["similarity"].items()
    ]
    return rows
