"""YAML as recipes have it: plain values alone, bounded before they cost anything."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 64
# Values of a recipe, counted as often as aliases repeat them; long texts count as several. The largest recipe of a hundred
# languages has some thousands.
MAX_VALUES = 50_000
# What a run writes down holds every default as well.
MAX_RESOLVED_VALUES = 4 * MAX_VALUES
MAX_RESOLVED_BYTES = 1 << 24
_CHARACTERS_OF_A_VALUE = 200
# Numbers in base 60, which YAML 1.1 has (1:30:00), take quadratic time.
_MAX_NUMBER_CHARACTERS = 100
# No setting needs a larger number, and NumPy and PyTorch take none.
_MAX_INTEGER = 2**63 - 1
_NAMESPACE = "tag:yaml.org,2002:"


class RefusedYamlError(yaml.YAMLError):
    """What is YAML, and yet nothing that a recipe can hold."""


def parse_yaml(text: str, *, max_values: int = MAX_VALUES) -> Any:
    """The value of a YAML text: mappings, lists, strings, numbers, booleans and null. A date is a string.

    Raises RefusedYamlError for values of other types, numbers of more than 64 bits, texts that UTF-8 cannot carry, an anchor
    that holds itself, nesting deeper than MAX_DEPTH and more than `max_values`, however few lines say so; yaml.YAMLError
    for what is no YAML. No other exception, and no time or memory beyond that of so many values.
    """
    _check_characters(text)
    loader = _Loader(text, max_values)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, max_values)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_resolved(path: Path) -> Any:
    """The value of the recipe.yaml that a run has written, which holds every default.

    Raises what `parse_yaml` does; OSError and UnicodeDecodeError for a file that cannot be read.
    """
    if path.stat().st_size > MAX_RESOLVED_BYTES:
        raise RefusedYamlError(f"it has more than {MAX_RESOLVED_BYTES >> 20} MiB")
    return parse_yaml(path.read_text("utf-8"), max_values=MAX_RESOLVED_VALUES)


class _Loader(yaml.SafeLoader):
    """The safe loader; values are counted while they are read, and repeated keys are refused."""

    def __init__(self, text: str, max_values: int) -> None:
        super().__init__(text)
        self._max_values = max_values
        self._num_values = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(_NAMESPACE)
        if kind in ("int", "float") and len(node.value) > _MAX_NUMBER_CHARACTERS:
            raise RefusedYamlError(
                f"the number {_shown(node)} has {len(node.value):,} characters{_line(node)}"
            )
        try:
            found = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError) as error:
            # An explicit tag of a number or a boolean before a text that is none, such as `!!int abc`.
            raise RefusedYamlError(f"{_shown(node)} is no value of the type {kind}{_line(node)}") from error
        if isinstance(found, int) and not -_MAX_INTEGER <= found <= _MAX_INTEGER:
            raise RefusedYamlError(f"the number {_shown(node)} has more than 64 bits{_line(node)}")
        if isinstance(found, str):
            _check_characters(found, _line(node))
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise RefusedYamlError(f"a value of the type map is none{_line(node)}")
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise RefusedYamlError(f"the key {key!r:.80} is there twice, again{_line(key_node)}")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_refused(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_NAMESPACE)
        if kind == "merge":
            raise RefusedYamlError(f"`<<` is not taken{_line(node)}: use `extends`, or write the values out")
        raise RefusedYamlError(f"no setting is of the type {kind!r:.80}{_line(node)}")


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag in {_NAMESPACE + kind for kind in _PLAIN}
}
_Loader.add_constructor(None, _Loader.construct_refused)
# Dates are names or texts here, and one that no calendar has would be an error.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != f"{_NAMESPACE}timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 1e-4 as a string, and people mean a number.
_Loader.add_implicit_resolver(
    f"{_NAMESPACE}float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _count(node: yaml.Node, most: int) -> None:
    """Raise RefusedYamlError if a node stands for too much with its aliases expanded, or holds itself.

    Each node of the graph is visited once: an alias is a node that was seen before it.
    """
    # (values, depth) of each node; None while it is being visited.
    known: dict[int, tuple[int, int] | None] = {}

    def visit(one: yaml.Node) -> tuple[int, int]:
        if id(one) not in known:
            known[id(one)] = None
            if isinstance(one, yaml.ScalarNode):
                found = (1 + len(one.value) // _CHARACTERS_OF_A_VALUE, 1)
            else:
                pairs = isinstance(one, yaml.MappingNode)
                parts = [visit(part) for part in (chain(*one.value) if pairs else one.value)]
                found = (
                    1 + sum(size for size, _ in parts),
                    1 + max((depth for _, depth in parts), default=0),
                )
            if found[0] > most:
                raise _too_many(most)
            if found[1] > MAX_DEPTH:
                raise _too_deep()
            known[id(one)] = found
        whole = known[id(one)]
        if whole is None:
            raise RefusedYamlError(f"an anchor holds itself{_line(one)}")
        return whole

    visit(node)


def _check_characters(text: str, where: str = "") -> None:
    """Raise RefusedYamlError for half characters, which no file can hold, and for NUL, which no path can."""
    found = re.search("[\0\ud800-\udfff]", text)
    if found is not None:
        what = "NUL" if found.group() == "\0" else "half a character (a surrogate without the other)"
        raise RefusedYamlError(f"a text holds {what}{where}")


def _too_many(most: int) -> RefusedYamlError:
    return RefusedYamlError(f"it stands for more than {most:,} values")


def _too_deep() -> RefusedYamlError:
    return RefusedYamlError(f"it is nested more than {MAX_DEPTH} deep")


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value!r:.40}"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


def _line(node: yaml.Node) -> str:
    return f" in line {node.start_mark.line + 1}"
