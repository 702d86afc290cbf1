"""The recipe `grid`: related recipes that run one after another and share one table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from polydistill.config.groups import MARGIN, Margin
from polydistill.config.settings import Name, check_names
from polydistill.config.shared import RunRecipe


def _as_changes(value: object) -> object:
    return {} if value is None else value


# What a grid's folder contains beside its runs, and a row of its table.
RUNS_RESERVED = {
    "evaluation": "a folder of the grid's own",
    "report": "a folder of the grid's own",
    "words": "a folder of the grid's own",
    "run.log.1": "the grid's earlier log",
    "teacher": "the teachers in the grid's table",
}
# A grid's seeds are multiplied by a recipe's own number of seeds (`RunRecipe.seeds_each`).
MAX_SEED = 1 << 24
Changes = Annotated[dict[str, Any], BeforeValidator(_as_changes)]


class GridRecipe(RunRecipe):
    """Recipes of any kind, run in order: they share corpora and stores, and one table shows their results."""

    recipe: Literal["grid"] = "grid"
    name: Name = Field(description="The grid's name.")
    output: str = Field("", description="The grid's folder, which contains each run's; empty: `runs/<name>`.")
    reuse: list[str] = Field(
        default_factory=list,
        description="Folders of other runs whose corpora, stores and students are reused where they match; "
        "earlier runs of the grid are always included.",
    )
    base: Changes = Field(
        default_factory=dict, description="The settings of all recipes; may include `extends`."
    )
    runs: dict[Name, Changes] = Field(
        min_length=1,
        description="Name → what this recipe changes in the base: settings, or `extends` and settings. A "
        "leading `$grid` in a path is the grid's folder: `$grid/RUN/student/final` is the student of an "
        "earlier run.",
    )
    variants: dict[Name, Changes] = Field(
        default_factory=dict,
        description="Name → further changes; if given, every run is made in each variant, as RUN-VARIANT.",
    )
    after: dict[Name, Changes] = Field(
        default_factory=dict,
        description="Name → a whole recipe, without base and variants, that runs once after all runs: for "
        "example a probe or a fine-tuning of their models, by their folders: `$grid/RUN/student/final`.",
    )

    seeds: list[Annotated[int, Field(ge=0, lt=MAX_SEED)]] = Field(
        default_factory=list,
        description="Every run, and every recipe of `after`, is made with each of these seeds, as "
        "NAME-seed0: `$grid/RUN` is then the run of the same seed. A fine-tuning or probe takes its own "
        "seeds from seed × `num_seeds` on. Tables show means and intervals that reflect seeds. Empty: each "
        "recipe's own seed.",
    )
    baseline: Name | None = Field(
        None, description="The run (RUN or RUN-VARIANT) that the others are compared with; empty: the first."
    )
    equivalence_margin: Margin = Field(None, description=MARGIN)

    @property
    def makes(self) -> dict[str, tuple[Changes, Changes]]:
        """The names of the runs, in each variant, without seeds → what the run and the variant change."""
        return {
            run if variant is None else f"{run}-{variant}": (
                changes,
                self.variants[variant] if variant else {},
            )
            for run, changes in self.runs.items()
            for variant in (self.variants or [None])
        }

    @model_validator(mode="after")
    def _reserved(self) -> GridRecipe:
        for place, changes in {
            "base": self.base,
            **{f"runs.{k}": v for k, v in self.runs.items()},
            **{f"variants.{k}": v for k, v in self.variants.items()},
            **{f"after.{k}": v for k, v in self.after.items()},
        }.items():
            for key in ("name", "output"):
                if key in changes:
                    raise ValueError(f"{place}.{key} {changes[key]!r}: the grid names its runs; leave it out")
            if self.seeds and "seed" in changes:
                raise ValueError(
                    f"{place}.seed {changes['seed']!r}: the grid's `seeds` set it; leave one of the two out"
                )
            if place.startswith("variants.") and "extends" in changes:
                raise ValueError(f"{place}.extends: only base, runs and after can extend; leave it out")
        made = self.makes
        if len(made) < len(self.runs) * max(1, len(self.variants)):
            raise ValueError("runs, variants: two runs get the same name RUN-VARIANT; rename one of them")
        check_names(self.runs, RUNS_RESERVED, "runs")
        check_names(self.after, RUNS_RESERVED, "after")
        for name in self.after:
            if name in made:
                raise ValueError(f"after.{name}: a run has this name already; choose another")
        for index, seed in enumerate(self.seeds):
            if seed in self.seeds[:index]:
                raise ValueError(f"seeds[{index}] {seed}: is named twice; leave one out")
        if self.baseline is not None and self.baseline not in made:
            raise ValueError(
                f"baseline {self.baseline!r}: no run of that name; the grid makes {', '.join(made)}"
            )
        return self
