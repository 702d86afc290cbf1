"""Settings of reports: groups of languages, and the margin within which two models count as equal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from pydantic import Field

Margin = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
MARGIN = (
    "Margin of equivalence in percent of the score that others are compared with. A difference is `level` if "
    "its whole interval lies within it. State it before the run; empty: nothing is called level."
)
# The name of the group of all languages in results.
ALL = "all"


def check_groups(groups: Mapping[str, Sequence[str]], languages: Collection[str]) -> None:
    """Raise ValueError for an empty group, an unknown language, and one in two places.

    groups     name → its languages
    languages  that the recipe has
    """
    places: dict[str, str] = {}
    for group, members in groups.items():
        if group == ALL:
            raise ValueError(
                f"groups.{group}: the name is reserved for all languages in the results; choose another name"
            )
        if not members:
            raise ValueError(f"groups.{group} []: has no languages; name some, or remove the group")
        for index, language in enumerate(members):
            place = f"groups.{group}[{index}] {language!r}"
            if language not in languages:
                raise ValueError(
                    f"{place}: no task has this language; they have {', '.join(sorted(languages))}"
                )
            if language in places:
                raise ValueError(f"{place}: is in groups.{places[language]} too; leave it in one place")
            places[language] = group
