"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from rich.console import Console
from rich.markup import escape

from polydistill.config.balance import BalanceRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.load import AnyRecipe, load_recipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.probe import ProbeRecipe
from polydistill.pipelines.grid.children import awaited, check_child, children_of
from polydistill.pipelines.merge.pipeline import check_teacher
from polydistill.pipelines.merge.plan import _print_languages, _print_student, _print_times, conflicts
from polydistill.pipelines.probe.plan import plan_probe
from polydistill.pipelines.stages.conflicts import Conflict, collect, counted, report_conflicts
from polydistill.pipelines.stages.engine import plan_engine
from polydistill.pipelines.stages.planning import measure_text
from polydistill.tokenization.load import load_tokenizer
from polydistill.tokenization.union import unite
from polydistill.training.arguments import check_arguments


def plan_recipe(recipe: str | AnyRecipe, overrides: Sequence[str], console: Console) -> list[Conflict]:
    """Print the resolved settings, sizes, times and conflicts of a recipe; returns the conflicts."""
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe
    found: list[Conflict]
    if isinstance(loaded, ProbeRecipe):
        console.print(
            escape(yaml.safe_dump(loaded.model_dump(mode="json"), allow_unicode=True, sort_keys=False))
        )
        return report_conflicts(plan_probe(loaded, console), console)
    if isinstance(loaded, GridRecipe):
        return _plan_grid(loaded, console)
    if isinstance(loaded, FinetuneRecipe):
        from polydistill.pipelines.finetune.plan import plan_finetune

        return report_conflicts(plan_finetune(loaded, console), console)
    arguments = check_arguments(loaded.training)
    console.print(
        escape(
            yaml.safe_dump(
                loaded.model_dump(mode="json") | {"training": arguments}, allow_unicode=True, sort_keys=False
            )
        )
    )
    found = plan_engine(loaded, console)
    if isinstance(loaded, ExtractRecipe):
        # Here, for it takes its parts from this module.
        from polydistill.pipelines.extract.plan import plan_extract

        return report_conflicts(found + plan_extract(loaded, arguments, console), console)
    if isinstance(loaded, BalanceRecipe):
        from polydistill.pipelines.balance.plan import plan_balance

        return report_conflicts(found + plan_balance(loaded, console), console)
    if not isinstance(loaded, MergeRecipe):
        console.print(
            "a pre-training recipe: its vocabulary and model are made from the text, gold labels only"
        )
        collect({loaded.name: loaded}, lambda _, one: check_child(one), found)
        return report_conflicts(found, console)
    tokenizers = collect(
        loaded.teachers,
        lambda name, t: load_tokenizer(t.model, name=name, tokenizer=t.tokenizer, revision=t.revision),
        found,
    )
    sizes = collect(
        loaded.languages,
        lambda language, s: measure_text(
            s.text, f"languages.{language}.text", [tokenizers[t] for t in s.teachers if t in tokenizers]
        ),
        found,
    )
    # What cannot be loaded is listed with the rest, and what hangs on it is left out.
    if len(tokenizers) == len(loaded.teachers) and len(sizes) == len(loaded.languages):
        union = unite(list(tokenizers.values()))
        _print_languages(loaded, sizes, tokenizers, console)
        students = collect({"student": loaded}, lambda _, r: _print_student(r, union, console), found)
        refused: list[Conflict] = []
        collect(tokenizers, lambda _, tokenizer: check_teacher(loaded, tokenizer), refused)
        # A run would end before it scores, and so would its timing.
        if students and not refused:
            timed = {"times": students["student"]}
            collect(timed, lambda _, s: _print_times(loaded, tokenizers, sizes, s, arguments, console), found)
        texts = {language: size.texts for language, size in sizes.items()}
        found += conflicts(loaded, tokenizers, union, texts)
    return report_conflicts(found, console)


def _plan_grid(recipe: GridRecipe, console: Console) -> list[Conflict]:
    """Plan each run; of one that reads models which earlier ones make, what does not hang on them."""
    children = children_of(recipe)
    own: dict[str, list[Conflict]] = {}
    for number, (name, child) in enumerate(children.items()):
        console.rule(escape(name))
        earlier = dict(list(children.items())[:number])
        own[name] = []
        collect({name: child}, lambda _, one: check_child(one), own[name])
        if own[name]:
            report_conflicts(own[name], console)
        elif waits := awaited(child, earlier):
            console.print(f"planned when there are {', '.join(waits)}", markup=False)
        else:
            own[name] = plan_recipe(child, (), console)
    console.rule(escape(recipe.name))
    for name, found in own.items():
        console.print(f"{name}: {counted(found)}", markup=False)
    return [
        Conflict(f"{name}: {one.what}", one.remedy, one.level) for name, found in own.items() for one in found
    ]
