"""The demo: four small teachers from bundled text, merged into one student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from polydistill.config.load import parse_recipe, read_recipe
from polydistill.disk import Json
from polydistill.pipelines.run import run_recipe
from polydistill.reports.progress import Watch

# The bundled text: sentences of Mozilla Common Voice (see NOTICE).
DATA = Path(str(resources.files("polydistill") / "demo_data"))
# Teacher → its languages. English has a teacher of its own and shares one with German.
TEACHERS = {"en": ("en",), "fr": ("fr",), "ru": ("ru",), "en-de": ("en", "de")}
LANGUAGES = ("en", "de", "fr", "ru")
# Two languages need more pieces than one, and more steps.
BILINGUAL: Json = {"tokenizer.size": 5000, "training.max_steps": 480}
# The quick demo: teachers, and what they and the merge have less of.
QUICK = ("en", "ru")
QUICK_SETTINGS = ("training.max_steps=110", "evaluation.max_examples=60")
QUICK_MERGE = (
    "training.max_steps=70",
    "evaluation.max_examples=120",
    "evaluation.num_samples=2",
    "student.encoder_from=en",
)


def run_demo(
    output: Path,
    overrides: Sequence[str] = (),
    *,
    quick: bool = False,
    show: Callable[[str], None] = print,
    watch: Watch | None = None,
) -> Path:
    """Pre-train the teachers under `output`/teachers and merge them under `output`/merge.

    overrides  `a.b=c` strings for the merge; those of `training.` and `corpora.` apply to the teachers too
    quick      two teachers, and few steps
    Returns the merge's folder. Finished work is reused.
    """
    shared = [override for override in overrides if override.startswith(("training.", "corpora."))]
    teachers = {name: languages for name, languages in TEACHERS.items() if not quick or name in QUICK}
    taught = [language for language in LANGUAGES if not quick or language in QUICK]
    shared = [*(QUICK_SETTINGS if quick else ()), *shared]
    for name, languages in teachers.items():
        show(f"teacher {name}")
        own = [f"{key}={value}" for key, value in BILINGUAL.items()] if len(languages) > 1 else []
        teacher = read_recipe("demo-teacher") | {
            "name": name,
            "output": str(output / "teachers" / name),
            "languages": {language: {"text": str(DATA / f"{language}.txt.xz")} for language in languages},
        }
        run_recipe(parse_recipe(teacher, [*own, *shared]), until="evaluate", show=show, watch=watch)
    show("merge")
    merge = read_recipe("demo-merge") | {
        "output": str(output / "merge"),
        "teachers": {name: str(output / "teachers" / name / "student" / "final") for name in teachers},
        "languages": {
            language: {
                "text": str(DATA / f"{language}.txt.xz"),
                "teachers": [name for name, known in teachers.items() if language in known],
            }
            for language in taught
        },
    }
    fewer = QUICK_MERGE if quick else ()
    return run_recipe(parse_recipe(merge, [*fewer, *overrides]), show=show, watch=watch)
