"""What a plan reports: errors that a run would raise, settings that do not fit together, and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from rich.console import Console

from polydistill.errors import UserError

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Conflict:
    """Something that the user should know before a run starts.

    level  `error`: the run would refuse it; `conflict`: the run accepts it, but its results may not be the
           intended ones; `note`: counted and reported, as the recipe asks
    """

    what: str
    remedy: str
    level: Literal["error", "conflict", "note"] = "conflict"


def refusal(error: UserError) -> Conflict:
    """The conflict for an error that would end a run."""
    value = "" if error.value is None else f" {error.value!r}"
    return Conflict(f"{error.field}{value}: {error.reason}", error.remedy, "error")


def collect(
    items: Mapping[str, Item], work: Callable[[str, Item], Made], conflicts: list[Conflict]
) -> dict[str, Made]:
    """Results by name; an error that the user can fix is added to `conflicts` and does not end the plan."""
    made = {}
    for name, item in items.items():
        try:
            made[name] = work(name, item)
        except UserError as error:
            conflicts.append(refusal(error))
    return made


def report_conflicts(conflicts: list[Conflict], console: Console) -> list[Conflict]:
    """Print the conflicts and their counts."""
    for conflict in conflicts:
        console.print(f"{conflict.level}: {conflict.what}\n  remedy: {conflict.remedy}", markup=False)
    console.print(counted(conflicts), markup=False)
    return conflicts


def counted(conflicts: Sequence[Conflict]) -> str:
    """The counts by level, such as `1 error, 2 conflicts`."""
    numbers = {
        level: sum(conflict.level == level for conflict in conflicts)
        for level in ("error", "conflict", "note")
    }
    parts = [f"{n} {level}{'s' * (n > 1)}" for level, n in numbers.items() if n]
    if not numbers["error"] and not numbers["conflict"]:
        parts.insert(0, "no conflicts")
    return ", ".join(parts)
