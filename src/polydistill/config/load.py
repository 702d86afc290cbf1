"""Reading recipes: YAML with the safe loader, `extends`, `--set`, and errors with a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from polydistill.config.balance import BalanceRecipe
from polydistill.config.embed import EmbedRecipe
from polydistill.config.extract import ExtractRecipe
from polydistill.config.finetune import FinetuneRecipe
from polydistill.config.grid import GridRecipe
from polydistill.config.merge import MergeRecipe
from polydistill.config.paths import expand_home, with_data, with_home
from polydistill.config.pretrain import PretrainRecipe
from polydistill.config.probe import ProbeRecipe
from polydistill.config.shared import RunRecipe
from polydistill.config.yaml_text import MAX_DEPTH, RefusedYamlError, parse_yaml
from polydistill.errors import RecipeError

# A recipe, or a part of one, before it is validated.
Values = dict[str, Any]

# Settings whose keys are names that the recipe chooses (in `balance` the keys of `teachers` are settings,
# none a text).
NAMED = {
    "teachers",
    "students",
    "languages",
    "models",
    "tasks",
    "groups",
    "runs",
    "variants",
    "after",
    "evaluation",
    "evaluation_texts",
    "retrieval",
    "similarity",
}
MAX_RECIPE_BYTES = 1 << 20
KINDS: dict[str, type[RunRecipe]] = {
    "merge": MergeRecipe,
    "extract": ExtractRecipe,
    "balance": BalanceRecipe,
    "pretrain": PretrainRecipe,
    "probe": ProbeRecipe,
    "grid": GridRecipe,
    "finetune": FinetuneRecipe,
    "embed": EmbedRecipe,
}
# Settings of a grid that are recipes: each is loaded by itself.
WITHIN_GRID = ("base", "runs", "variants", "after")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunRecipe:
    """Load a recipe from a YAML file, or a preset by its name.

    overrides  `a.b=c` strings, the value read as YAML; they override the file
    Relative paths in a recipe are relative to the working folder.
    Raises RecipeError for anything that the user can fix.
    """
    return parse_recipe(read_recipe(path), overrides, origin=str(path))


def parse_recipe(values: Values, overrides: Sequence[str] = (), *, origin: str = "recipe") -> RunRecipe:
    """Validate a recipe given as a dictionary."""
    values = dict(values)
    for override in overrides:
        _apply_override(values, override)
    values = {key: with_home(value, str(key)) for key, value in values.items()}
    kind = values.get("recipe")
    kind = "merge" if kind is None else kind
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(
            "recipe", f"{kind!s:.80}", "no recipe of that kind", f"use one of {', '.join(KINDS)}"
        )
    values = with_data(values, keep=WITHIN_GRID if kind == "grid" else ())
    # An empty group in YAML is None and means the defaults. Unknown keys stay, to be reported.
    known = KINDS[kind].model_fields
    values = {key: value for key, value in values.items() if value is not None or key not in known}
    try:
        return KINDS[kind].model_validate(values)
    except ValidationError as error:
        if "recipe" not in values:
            likely = [name for name, model in KINDS.items() if values.keys() <= model.model_fields.keys()]
            if likely and kind not in likely:
                raise RecipeError(
                    f"recipe {origin}",
                    None,
                    f"does not name its kind; its keys are those of {' or '.join(likely)}",
                    f"add `recipe: {likely[0]}`",
                ) from None
        raise _explain(error, KINDS[kind], origin) from None


def read_recipe(path: str | Path) -> Values:
    """The dictionary in a recipe's file or preset, merged with what it extends."""
    path = expand_home(str(path), "recipe")
    values = _extended(_read_yaml(path), path)
    if values.get("recipe") == "grid":
        within = [
            (values[key], name, changes)
            for key in ("runs", "after")
            for name, changes in _entries(values.get(key))
        ]
        for target, place, changes in [(values, "base", values.get("base")), *within]:
            if isinstance(changes, dict) and "extends" in changes:
                # A path in a run of a grid is relative to the grid's own folder, as with `extends`
                # everywhere. The grid does not take over that file's name and output.
                target[place] = {
                    key: value
                    for key, value in _extended(changes, str(path)).items()
                    if key not in ("name", "output") or key in changes
                }
    return values


def grid_values(base: Values, *changes: Values) -> Values:
    """The values of one recipe of a grid: the base with changes, each of which overrides those before it."""
    for layer in changes:
        base = _merge(base, layer)
    return base


def _entries(values: object) -> list[tuple[str, object]]:
    return list(values.items()) if isinstance(values, dict) else []


def _extended(values: Values, origin: str) -> Values:
    """Values merged with what they extend.

    origin  the file or preset that contains them
    """
    chain = [_identity(origin)]
    layers = [values]
    current = _parent(values, origin)
    while current is not None:
        if _identity(current) in chain:
            raise RecipeError("extends", f"{current:.300}", "the recipe extends itself", "break the cycle")
        chain.append(_identity(current))
        layers.append(_read_yaml(current))
        current = _parent(layers[-1], current)
    merged: Values = {}
    for layer in reversed(layers):
        merged = _merge(merged, {key: value for key, value in layer.items() if key != "extends"})
    return merged


def _identity(name: str) -> str:
    """A preset, or one string for all spellings of a file's path (`x/../a.yaml`, links to `a.yaml`)."""
    try:
        # A file takes precedence over a preset of the same name.
        return str(Path(name).resolve()) if Path(name).is_file() else name
    except (OSError, ValueError):  # an impossible file name: reading it raises the error
        return name


def _parent(values: Values, origin: str) -> str | None:
    """The file or preset that values extend; a file is relative to the folder of the one that names it."""
    parent = values.get("extends")
    if parent is None:
        return None
    if not isinstance(parent, str):
        raise RecipeError("extends", str(parent), "not a name", "name one preset or one file")
    parent = expand_home(parent, "extends")
    if _is_preset(parent) or Path(parent).is_absolute():
        return parent
    return str(Path(origin).parent / parent)


def presets() -> dict[str, str]:
    """The presets that ship with the package: name → first comment line."""
    folder = resources.files("polydistill.config") / "presets"
    return {
        entry.name[:-5]: entry.read_text("utf-8").splitlines()[0].lstrip("# ")
        for entry in sorted(folder.iterdir(), key=lambda item: item.name)
        if entry.name.endswith(".yaml")
    }


def _is_preset(name: str) -> bool:
    return name in presets()


def _read_yaml(name: str) -> Values:
    path = Path(name)
    try:
        is_file = path.is_file()
        if is_file and path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(
                "recipe", name, "larger than 1 MiB", "a recipe is a page of YAML; is this the right file?"
            )
        text = path.read_text("utf-8") if is_file else None
    except UnicodeDecodeError as error:
        raise RecipeError("recipe", name, f"not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except (OSError, UnicodeEncodeError) as error:  # no permission, or a name that is too long or invalid
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise RecipeError(
            "recipe", f"{name:.300}", f"cannot be read ({reason})", "check the path and who may read it"
        ) from error
    if text is None and _is_preset(name):
        text = (resources.files("polydistill.config") / "presets" / f"{name}.yaml").read_text("utf-8")
    if text is None:
        known = ", ".join(presets()) or "none"
        raise RecipeError("recipe", name, "no such file or preset", f"check the path; presets: {known}")
    try:
        values = parse_yaml(text)
    except RefusedYamlError as error:
        raise RecipeError(
            "recipe",
            name,
            f"is not a recipe: {error}",
            "write out the values that it needs; the recipe reference of the documentation lists them",
        ) from None
    except yaml.YAMLError as error:
        raise RecipeError(
            "recipe", name, f"not valid YAML: {' '.join(str(error).split())}", "fix that line"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(
            "recipe",
            name,
            "not a mapping of settings",
            "write `key: value` lines, as `polydistill init` does",
        )
    return values


def _merge(base: Values, top: Values, *, named: bool = False) -> Values:
    """Two layers of settings merged; the top one overrides the base.

    named  whether the keys are names that the recipe chooses, such as teachers: null removes an entry, also
           if it is in its short form, a path or a list of paths
    """
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if _removes(old, value, named=named):
            del merged[key]
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value, named=not named and key in NAMED)
        else:
            merged[key] = value
    return merged


def _removes(old: object, value: object, *, named: bool) -> bool:
    """Whether a value is the null that removes an entry, as `ours: null` does."""
    return value is None and isinstance(old, (dict, str, list) if named else dict)


def _apply_override(values: Values, override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise RecipeError(
            "--set", override, "not of the form a.b=c", "use, for example, --set training.max_steps=100"
        )
    try:
        value = parse_yaml(text)
    except RefusedYamlError as error:
        raise RecipeError(
            "--set", f"{override:.80}", f"is not a setting: {error}", "use a number, a text or a short list"
        ) from None
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH:
        raise RecipeError(
            "--set", f"{override:.80}", f"has more than {MAX_DEPTH} parts", "check the name of the setting"
        )
    target = values
    for parent in parents:
        child = target.get(parent)
        child = {} if child is None else child
        if not isinstance(child, dict):
            raise RecipeError(
                "--set", override, f"`{parent}` is a value, not a group of settings", "check the name"
            )
        # Copied on the way down, so that the caller's dictionary does not change.
        target[parent] = child = dict(child)
        target = child
    if _removes(target.get(last), value, named=bool(parents) and parents[-1] in NAMED):
        del target[last]
    else:
        target[last] = value


def _explain(error: ValidationError, model: type[BaseModel], origin: str) -> RecipeError:
    """The first few problems of a recipe as one message."""
    messages = []
    for problem in error.errors()[:5]:
        location = _location(problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            messages.append(f"{location}: unknown key; {remedy}")
        elif problem["loc"] and problem["loc"][-1] == "[key]" and isinstance(problem["input"], bool):
            # The Norwegian problem: YAML 1.1 reads no, yes, on and off as true and false.
            messages.append(
                f"{location}: YAML reads this name as {problem['input']}; put it in quotes, such as 'no'"
            )
        elif problem["type"] == "missing":
            messages.append(f"{location}: missing; add it")
        elif not problem["loc"]:
            messages.append(reason)
        else:
            messages.append(f"{location} {problem['input']!r:.80}: {reason[0].lower() + reason[1:]}")
    more = len(error.errors()) - len(messages)
    if more > 0:
        messages.append(f"and {more} more")
    return RecipeError(
        f"recipe {origin}",
        None,
        "\n  ".join(["cannot be used:", *messages]),
        "fix this and run the command again; the recipe reference of the documentation lists every key",
    )


def _location(parts: tuple[int | str, ...]) -> str:
    text = ""
    for part in parts:
        if part == "[key]":
            # pydantic's marker for an invalid key; the key is the part before it.
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part:.80}" if text else f"{part:.80}"
    return text or "recipe"


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the model at `location`."""
    current: object = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            current = next(iter(_models_in(current)), None)
    innermost = next(iter(_models_in(current)), None)
    return list(innermost.model_fields) if innermost else []


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    if get_origin(annotation) is Literal:
        return
    for argument in get_args(annotation):
        yield from _models_in(argument)
