"""Generated names for every place of every recipe that takes one: refused, or without clashes.

As in test_fuzz; POLYDISTILL_FUZZ sets the number of each.
"""

import copy
from itertools import permutations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.faults.fuzzing import fuzzed, outcome, pieces
from tests.faults.test_bad_names import BALANCE, EXTRACT, FINETUNE, GRID, MERGE, PRETRAIN, PROBE

from polydistill.config.load import parse_recipe
from polydistill.config.settings import Settings
from polydistill.errors import UserError

# Where recipes take names: keys of mappings, or values.
PLACES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (MERGE, ("teachers",)),
    (MERGE, ("languages",)),
    (
        MERGE | {"languages": {"de": MERGE["languages"]["de"] | {"evaluation": {"news": "b"}}}},
        ("languages", "de", "evaluation"),
    ),
    (EXTRACT | {"evaluation_texts": {"news": "b"}}, ("evaluation_texts",)),
    (PRETRAIN, ("languages",)),
    (BALANCE, ("languages",)),
    (BALANCE | {"students": {"ours": {}}}, ("students",)),
    (BALANCE | {"groups": {"low": ["de"]}}, ("groups",)),
    (PROBE, ("models",)),
    (PROBE, ("tasks", "pos")),
    (FINETUNE, ("models",)),
    (FINETUNE, ("tasks",)),
    (FINETUNE, ("tasks", "ner", "data")),
    (GRID, ("runs",)),
    (GRID | {"variants": {"v": {}}}, ("variants",)),
    (GRID | {"after": {"last": {}}}, ("after",)),
]
STEMS = [
    "de",
    "a",
    "student",
    "union",
    "counts",
    "all",
    "best",
    "teacher",
    "unigram",
    "held_out",
    "train",
    "tokenizer",
    "stamp",
    "vocabulary",
    "evaluation",
    "report",
    "checkpoints",
    "recipe",
    "run",
    "artefacts",
    "one",
    "m",
    "x",
    "ner",
    "De",
]
ENDINGS = [
    "",
    ".old",
    ".partial",
    ".tmp",
    ".lock",
    ".json",
    ".yaml",
    ".log",
    ".OLD",
    ".",
    "-v",
    "_",
    ".2",
    "/x",
    "\n",
    " ",
]
names = st.one_of(st.tuples(st.sampled_from(STEMS), st.sampled_from(ENDINGS)).map("".join), pieces)
# What a run writes for a name, and what it removes.
SIBLINGS = ("", ".partial", ".old", ".tmp")
# The run's own entries in each place: keys of results, and files in the folder that names are folders of.
TAKEN = {
    "teachers": {"student", "union", "counts", "all", "best"},
    "evaluation": {"held_out", "train"},
    "evaluation_texts": {"held_out", "train"},
    "students": {"teacher", "unigram", "counts"},
    "groups": {"all"},
    "data": {"all"},
    "runs": {"evaluation", "report", "recipe.yaml", "artefacts.json", "timing.json", "run.log"},
    "after": {"evaluation", "report", "recipe.yaml", "artefacts.json", "timing.json", "run.log"},
    "languages": {"tokenizer.json", "stamp.json", "vocabulary.json", "checkpoints"},
}


@fuzzed
@given(st.sampled_from(PLACES), st.lists(names, min_size=1, max_size=3, unique=True), st.booleans())
def test_names(place, given_names, beside) -> None:
    """Names that are accepted together share no file or folder, and none is the run's own."""
    values, keys = copy.deepcopy(place[0]), place[1]
    target = values
    for key in keys:
        target = target[key]
    first = next(iter(target))
    entry = target[first]
    if not beside:
        del target[first]
    target.update(dict.fromkeys(given_names, entry))
    result = outcome(lambda: parse_recipe(values))
    assert isinstance(result, UserError | Settings)
    if isinstance(result, UserError):
        assert any(
            str(name)[:20] in str(result) or repr(name)[1:20] in str(result) for name in (*given_names, first)
        )
        return
    assert not TAKEN.get(keys[-1], set()) & set(target)
    for folder, other in permutations(target, 2):
        assert not {folder + ending for ending in SIBLINGS} & {other + ending for ending in SIBLINGS}
    assert all("/" not in name and name.isascii() and name.strip() == name for name in target)


@fuzzed
@given(st.sampled_from([MERGE, EXTRACT, BALANCE, PRETRAIN, PROBE, FINETUNE, GRID]), names)
def test_names_of_runs(values, name) -> None:
    result = outcome(lambda: parse_recipe(values | {"name": name}))
    assert isinstance(result, UserError | Settings)
    if isinstance(result, Settings):
        assert not name.lower().endswith(SIBLINGS[1:])
