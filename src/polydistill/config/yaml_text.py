"""The YAML of recipes: only plain values, with limits that are checked before they cost time or memory."""

from __future__ import annotations

import re
from collections.abc import Hashable
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import yaml

MAX_DEPTH = 64
# Values of a recipe, with every repetition by aliases; long texts count as several. The largest recipe, of a
# hundred languages, has a few thousand.
MAX_VALUES = 50_000
# A run's own recipe.yaml contains every default as well.
MAX_RESOLVED_VALUES = 4 * MAX_VALUES
MAX_RESOLVED_BYTES = 1 << 24
_CHARACTERS_OF_A_VALUE = 200
# Numbers in base 60, which YAML 1.1 allows (1:30:00), take quadratic time.
_MAX_NUMBER_CHARACTERS = 100
# No setting needs a larger number, and NumPy and PyTorch accept none.
_MAX_INTEGER = 2**63 - 1
_NAMESPACE = "tag:yaml.org,2002:"


class RefusedYamlError(yaml.YAMLError):
    """Valid YAML that a recipe cannot contain."""


def parse_yaml(text: str, *, max_values: int = MAX_VALUES) -> Any:
    """The value of a YAML text: mappings, lists, strings, numbers, booleans and null. A date is a string.

    Raises RefusedYamlError for values of other types, numbers of more than 64 bits, texts that UTF-8 cannot
    encode, an anchor that contains itself, nesting deeper than MAX_DEPTH and more than `max_values` values,
    even from few lines; yaml.YAMLError for invalid YAML. Raises no other exception; `max_values` bounds its
    time and memory.
    """
    _check_characters(text)
    loader = BoundedLoader(text, max_values)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, max_values)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_resolved(path: Path) -> Any:
    """The value of the recipe.yaml that a run wrote, which contains every default.

    Raises what `parse_yaml` does, and OSError and UnicodeDecodeError for a file that cannot be read.
    """
    if path.stat().st_size > MAX_RESOLVED_BYTES:
        raise RefusedYamlError(f"it has more than {MAX_RESOLVED_BYTES >> 20} MiB")
    return parse_yaml(path.read_text("utf-8"), max_values=MAX_RESOLVED_VALUES)


class BoundedLoader(yaml.SafeLoader):
    """The safe loader, which counts values while it reads them and refuses repeated keys."""

    def __init__(self, text: str, max_values: int) -> None:
        super().__init__(text)
        self._max_values = max_values
        self._num_values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._num_values += 1
        self._depth += 1
        if self._num_values > self._max_values:
            raise _too_many(self._max_values)
        if self._depth > MAX_DEPTH:
            raise _too_deep()
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        kind = node.tag.removeprefix(_NAMESPACE)
        if kind in ("int", "float") and len(node.value) > _MAX_NUMBER_CHARACTERS:
            raise RefusedYamlError(
                f"the number {_shown(node)} has {len(node.value):,} characters{_line(node)}"
            )
        try:
            value: object = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError) as error:
            # An explicit tag of a number or a boolean before another text, such as `!!int abc`.
            raise RefusedYamlError(
                f"{_shown(node)} is not a value of the type {kind}{_line(node)}"
            ) from error
        if isinstance(value, int) and not -_MAX_INTEGER <= value <= _MAX_INTEGER:
            raise RefusedYamlError(f"the number {_shown(node)} has more than 64 bits{_line(node)}")
        if isinstance(value, str):
            _check_characters(value, _line(node))
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise RefusedYamlError(f"a value with the tag map is not a mapping{_line(node)}")
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise RefusedYamlError(f"the key {key!r:.80} is repeated{_line(key_node)}")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_refused(self, node: yaml.Node) -> NoReturn:
        kind = node.tag.removeprefix(_NAMESPACE)
        if kind == "merge":
            raise RefusedYamlError(
                f"`<<` is not supported{_line(node)}: use `extends`, or write out the values"
            )
        raise RefusedYamlError(f"no setting is of the type {kind!r:.80}{_line(node)}")


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
BoundedLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag in {_NAMESPACE + kind for kind in _PLAIN}
}
BoundedLoader.add_constructor(None, BoundedLoader.construct_refused)
# Dates are names or texts here, and an invalid date would raise an error.
BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_NAMESPACE}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 1e-4 as a string, and people mean a number.
BoundedLoader.add_implicit_resolver(
    f"{_NAMESPACE}float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _count(node: yaml.Node, most: int) -> None:
    """Raise RefusedYamlError if a node is too large with its aliases expanded, or contains itself.

    Each node of the graph is visited once: an alias is a node that was seen before.
    """
    # (values, depth) of each node; None while it is being visited.
    known: dict[int, tuple[int, int] | None] = {}

    def visit(current: yaml.Node) -> tuple[int, int]:
        if id(current) not in known:
            known[id(current)] = None
            if isinstance(current, yaml.ScalarNode):
                size, depth = 1 + len(current.value) // _CHARACTERS_OF_A_VALUE, 1
            else:
                pairs = isinstance(current, yaml.MappingNode)
                parts = [visit(part) for part in (chain(*current.value) if pairs else current.value)]
                size = 1 + sum(part_size for part_size, _ in parts)
                depth = 1 + max((part_depth for _, part_depth in parts), default=0)
            if size > most:
                raise _too_many(most)
            if depth > MAX_DEPTH:
                raise _too_deep()
            known[id(current)] = size, depth
        measured = known[id(current)]
        if measured is None:
            raise RefusedYamlError(f"an anchor contains itself{_line(current)}")
        return measured

    visit(node)


def _check_characters(text: str, where: str = "") -> None:
    """Raise RefusedYamlError for lone surrogates (impossible in files) and NUL (impossible in paths)."""
    match = re.search("[\0\ud800-\udfff]", text)
    if match is not None:
        what = "NUL" if match.group() == "\0" else "half a character (a lone surrogate)"
        raise RefusedYamlError(f"a text contains {what}{where}")


def _too_many(most: int) -> RefusedYamlError:
    return RefusedYamlError(f"it expands to more than {most:,} values")


def _too_deep() -> RefusedYamlError:
    return RefusedYamlError(f"it is nested more than {MAX_DEPTH} deep")


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value!r:.40}"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


def _line(node: yaml.Node) -> str:
    return f" on line {node.start_mark.line + 1}"
