"""The import graph of polydistill: packages, their shares, circles between files, and imports that point up.

`python scripts/import_graph.py [SOURCE]` reads the source tree SOURCE (by default `src`). Imports within
functions and for type checkers count. A circle is a group of files that import each other, directly or by way
of one another.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "polydistill"


def module_of(path: Path, source: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of the package that a file imports, at any place in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan 1972), the largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(groups, key=len, reverse=True)


def upward(graph: dict[str, set[str]], layers: list[list[str]]) -> list[tuple[str, str]]:
    """Imports of a module in a layer above."""
    height = {name: place for place, layer in enumerate(layers) for name in layer}

    def layer_of(module: str) -> int | None:
        parts = module.split(".")
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((height[name] for name in names if name in height), None)

    pairs = [(one, other) for one, others in graph.items() for other in others]
    placed = [(pair, layer_of(pair[0]), layer_of(pair[1])) for pair in pairs]
    return sorted(
        pair for pair, one, other in placed if one is not None and other is not None and other < one
    )


def main(source: Path) -> int:
    """Print the graph; returns 1 where there is a circle or an import that points up."""
    paths = {module_of(path, source): path for path in sorted((source / PACKAGE).rglob("*.py"))}
    graph = {name: {*imports_of(path, set(paths))} & set(paths) - {name} for name, path in paths.items()}
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in paths.items()}
    rooms: Counter[str] = Counter()
    for name, number in lines.items():
        parts = name.split(".")
        rooms[parts[1] if len(parts) > 1 and paths[name].parent != source / PACKAGE else "(top)"] += number
    total = sum(lines.values())
    print(f"{len(paths)} files, {total:,} lines, {sum(map(len, graph.values()))} imports between files")
    for room, number in rooms.most_common():
        files = sum(name.split(".")[1:2] == [room] for name in paths)
        print(f"  {room:14} {files or '':>3} files {number:6,} lines {number / total:6.1%}")
    groups = circles(graph)
    print(
        f"{len(groups)} circles", *(f"  {len(group)} files: {', '.join(group)}" for group in groups), sep="\n"
    )
    settings = tomllib.loads((source.parent / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    up = upward(graph, [[name.strip() for name in layer.split("|")] for layer in layers])
    print(
        f"{len(up)} imports that point up", *(f"  {module} imports {other}" for module, other in up), sep="\n"
    )
    return bool(groups or up)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "src")))
