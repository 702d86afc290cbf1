"""Model cards of students, trimmed and exported models: what a model is, its sources, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.shared import LossWeight
from polydistill.disk import Json
from polydistill.reports.card_sections import (
    READS_ALL,
    TERMS,
    front_matter,
    is_local,
    licence_section,
    loading_section,
    metadata_block,
    shown_name,
    split_card,
    training_section,
)
from polydistill.reports.trim_card import CLASSES
from polydistill.version import __version__


def extract_card(recipe: ExtractRecipe, record: Json) -> str:
    """Markdown of an extracted student's card, with the hub's metadata block.

    record  the contents of initialisation.json
    """
    lines = front_matter([recipe.language], recipe.card, [recipe.teacher.model])
    name = shown_name(recipe.teacher.model)
    teacher, student = record["models"]["teacher"], record["models"]["student"]
    layers = (
        "random weights"
        if record["layers"] is None
        else f"its layers {', '.join(map(str, record['layers']))}"
    )
    weights = ", ".join(
        f"{loss} {_shown_weight(getattr(recipe.losses, loss))}"
        for loss in ("kd", "mlm", "cosine", "relation", "logits")
        if getattr(recipe.losses, loss).highest
    )
    adapting = []
    if "adapted" in record:
        steps = record["adapted"]["steps"]
        adapting = [f"The teacher was first trained on the language's text by MLM, {steps:,} steps.", ""]
    lines += [
        f"# {recipe.name}",
        "",
        f"A masked language model for {recipe.language}, extracted from {name} by polydistill {__version__} "
        f"(after Eliquare, 2022): {student['layers']} of {teacher['layers']} layers, {student['rows']:,} of "
        f"{teacher['rows']:,} pieces, {student['parameters']:,} of {teacher['parameters']:,} parameters.",
        "",
        *adapting,
        f"Started from {layers}; losses {weights}; temperature {recipe.losses.temperature:g}; vocabulary "
        f"cut: {recipe.trim.when}.",
        "",
    ]
    if "narrowed" in record:
        kept = ", ".join(
            f"{name} {row['kept']:,} of {row['of']:,}" for name, row in record["narrowed"].items()
        )
        lines += [f"The layers were narrowed to the parts of largest importance: {kept}.", ""]
    if "token_types" in record:
        lines += ["It has a single token type: only the separator divides the two texts of a pair.", ""]
    lines += [
        *loading_section(),
        *licence_section(
            recipe.card, "A student inherits the terms of its teacher's weights and of its training text."
        ),
    ]
    return "\n".join(lines)


def _shown_weight(weight: LossWeight) -> str:
    changes = weight.last not in (None, weight.first) and weight.schedule != "constant"
    return f"{weight.first:g} to {weight.last:g}" if changes else f"{weight.first:g}"


def adapted_card(recipe: ExtractRecipe) -> str:
    """Markdown of the card of a teacher that was trained on the student's language first."""
    name = shown_name(recipe.teacher.model)
    return "\n".join(
        [
            *front_matter([recipe.language], recipe.card, [recipe.teacher.model], relation="finetune"),
            f"# {recipe.name}: the adapted teacher",
            "",
            f"{name}, trained by MLM on text in {recipe.language} by polydistill {__version__} before it "
            f"teaches {recipe.name}.",
            "",
            *loading_section(),
            *licence_section(
                recipe.card,
                "A model inherits the terms of the weights that it starts from and of its training text.",
            ),
        ]
    )


def merge_card(recipe: MergeRecipe, record: Json) -> str:
    """Markdown of a merge's student, with the hub's metadata block.

    record  where the initial weights came from
    Two runs of the same recipe give the same card.
    """
    languages = list(recipe.languages)
    teachers = [teacher.model for teacher in recipe.teachers.values()]
    names = {name: shown_name(teacher.model) for name, teacher in recipe.teachers.items()}
    rows = [
        f"| {language} | {', '.join(names[teacher] for teacher in s.teachers)} |"
        for language, s in recipe.languages.items()
    ]
    own = [
        f'own = AutoTokenizer.from_pretrained("FOLDER", subfolder="tokenizer/{languages[0]}")  '
        f"# splits {languages[0]} as its teacher does"
    ]
    if recipe.student.has_own_vocabulary:
        own = []
    return "\n".join(
        [
            *front_matter(languages, recipe.card, teachers, relation="merge"),
            f"# {recipe.name}",
            "",
            f"A multilingual masked language model for {', '.join(languages)}, merged from "
            f"{len(recipe.teachers)} teachers by polydistill {__version__} (MergeDistill, Khanuja et al. "
            "2021).",
            "",
            "| language | teachers |",
            "|---|---|",
            *rows,
            "",
            f"Labels: {recipe.distillation.labels}; initial weights: {record['init']}; vocabulary: "
            f"{shown_name(recipe.student.vocabulary)}.",
            "",
            *loading_section(READS_ALL, *own),
            *training_section(
                recipe,
                {
                    "masking": f"{recipe.masking.probability:g} of {recipe.masking.unit}",
                    "teachers' labels": f"{recipe.scoring.top_k} pieces a position, weight "
                    f"{recipe.distillation.teacher_weight:g} to {recipe.distillation.final_teacher_weight:g}",
                },
            ),
            *licence_section(recipe.card, TERMS),
        ]
    )


def pretrain_card(recipe: PretrainRecipe) -> str:
    """Markdown of a pre-trained model, with the hub's metadata block."""
    languages = list(recipe.languages)
    return "\n".join(
        [
            *front_matter(languages, recipe.card, []),
            f"# {recipe.name}",
            "",
            f"A masked language model for {', '.join(languages)}, pre-trained by polydistill {__version__}.",
            "",
            *loading_section(READS_ALL),
            *training_section(
                recipe,
                {
                    "masking": f"{recipe.masking.probability:g} of {recipe.masking.unit}",
                    "vocabulary": f"WordPiece of {recipe.tokenizer.size:,} pieces",
                },
            ),
            *licence_section(recipe.card, TERMS),
        ]
    )


def balance_card(
    recipe: BalanceRecipe, languages: Sequence[str], what: str, characters: Mapping[str, int]
) -> str:
    """Markdown of the card of a balance run's teacher or student, with the hub's metadata block.

    characters  language → characters of the text that the model saw
    """
    lines = front_matter(languages, recipe.card, [])
    lines += [
        f"# {recipe.name}: {what}",
        "",
        f"A masked language model for {', '.join(languages)}, made by polydistill {__version__} (after "
        "Limisiewicz et al., 2022).",
        "",
        "| language | characters of text |",
        "|---|---|",
        *(f"| {language} | {characters[language]:,} |" for language in languages),
        "",
        *loading_section(),
        *licence_section(recipe.card, "A model inherits the terms of its training text."),
    ]
    return "\n".join(lines)


def metadata(model: str) -> Json:
    """Languages, licence and data stated on the card in a model's folder; {} if it has no card."""
    path = Path(model) / "README.md"
    if not path.is_file():
        return {}
    front, _ = split_card(path.read_text("utf-8", errors="replace"))
    kept = ("language", "license", "datasets")
    return {key: front[key] for key in kept if key in front}


JS_DTYPE = ', { dtype: "int8" }'
JS_POOLING = ', { pooling: "mean", normalize: true }'
SENTENCES = [
    "```python",
    "from sentence_transformers import SentenceTransformer",
    "",
    'model = SentenceTransformer("FOLDER")  # or backend="onnx"',
    "```",
    "",
]


def export_card(record: Json) -> str:
    """Markdown of an exported model's card, with the hub's metadata block.

    record  the contents of export.json
    """
    name = record["model"]
    task, _ = CLASSES[record["task"]]
    sentences = record["sentences"]
    metadata_of = record["metadata"] | {
        "library_name": "sentence-transformers" if sentences else "transformers.js",
        "pipeline_tag": "sentence-similarity" if sentences else task,
        "tags": ["polydistill", *(["masked-lm"] if task == "fill-mask" else []), "onnx"],
    }
    metadata_of |= {} if is_local(name) else {"base_model": [name]}
    worst = max(row["onnx"]["relative_difference"] for row in record["logits"])
    lines = [
        *metadata_block(metadata_of),
        "",
        f"# {name}, as ONNX",
        "",
        f"The weights of {name} ({record['architecture']}, {record['parameters']:,} parameters) as an ONNX "
        f"graph of opset {record['opset']}, exported by polydistill {record['versions']['polydistill']}. "
        f"It takes {', '.join(record['inputs'])} (int64, batch x tokens) and returns "
        f"{', '.join(record['outputs'])} (float32).",
        "",
        f"Outputs differ from PyTorch's by at most {worst:.1g} of the largest. `export.json` has all "
        "figures.",
        "",
    ]
    if "int8" in record["files"]:
        lines += [
            f"`onnx/model_int8.onnx` has int8 weights of {record['int8']['weight_bits']} bits. Activations "
            "are quantised dynamically, with one scale per batch: a text's outputs change slightly with the "
            "other texts of its batch.",
            "",
        ]
    if record["mrr"]:
        lines += ["| | MRR | top 1 | masked tokens |", "|---|---|---|---|"]
        lines += [
            f"| {key} | {row['mrr']:.4f} | {row['top1']:.3f} | {row['num_masked']} |"
            for key, row in record["mrr"].items()
        ]
        lines += [""]
    lines += [
        *(SENTENCES if sentences else []),
        "```python",
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'session = onnxruntime.InferenceSession("FOLDER/onnx/model.onnx")',
        'batch = dict(tokenizer(["TEXT"], return_tensors="np", padding=True))',
        "outputs = session.run(None, {i.name: batch[i.name] for i in session.get_inputs()})",
        "```",
        "",
        "```js",
        'import { pipeline } from "@huggingface/transformers";',
        "",
        f'const run = await pipeline("{task}", "FOLDER"{JS_DTYPE if "int8" in record["files"] else ""});',
        f'console.log(await run("TEXT"{JS_POOLING if task == "feature-extraction" else ""}));',
        "```",
        "",
        "## Licence",
        "",
        f"The terms of {name} apply to this form of it. State them here before you publish it.",
        "",
    ]
    return "\n".join(lines)
