"""docs/performance.md, written from what the benches measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Performance

Written by `python -m benchmarks` from what it measured; do not edit. Every figure is a median over rounds in which ours
and its peers took turns on one machine, in fresh processes where memory is compared. These machines are shared: look at
the ratios.
"""


def write_page() -> Path:
    """Write the page from every result that there is."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        measured = json.loads(path.read_text("utf-8"))
        where = measured["where"]
        parts.append(
            f"## {path.stem}\n\n`python -m benchmarks {measured['command']}`, {measured['date']}: "
            f"{where['cores']} cores, {where['processor']}, {where['gpu'] or 'no GPU'}, torch {where['torch']}.\n"
        )
        parts += _tables(measured["measured"])
    PAGE.write_text("\n".join(parts), "utf-8")
    return PAGE


def _tables(measured: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """A list of rows as one table. Facts in a list; dictionaries over the same things as the columns of one table, others as one of their own."""
    if isinstance(measured, list):
        columns = list(measured[0])
        lines = ["| " + " | ".join(map(_name, columns)) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_value(row[column]) for column in columns) + " |" for row in measured]
        return ["\n".join(lines) + "\n"]
    facts = [
        f"- {_name(key)}: {_value(value)}" for key, value in measured.items() if not isinstance(value, dict)
    ]
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for key, value in measured.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            columns = {
                name: {row: value[row].get(name) for row in value} for row in value for name in value[row]
            }
            groups[(key,)] = columns
        elif isinstance(value, dict):
            groups.setdefault(tuple(value), {})[key] = value
    tables = []
    for columns in groups.values():
        rows = list(next(iter(columns.values())))
        lines = ["| | " + " | ".join(map(_name, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [
            f"| {_name(row)} | " + " | ".join(_value(values[row]) for values in columns.values()) + " |"
            for row in rows
        ]
        tables.append("\n".join(lines) + "\n")
    return (["\n".join(facts) + "\n"] if facts else []) + tables


def _name(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
