"""Generated YAML, settings, names, training values and texts in other encodings: a message or a result.

As in test_fuzz; POLYDISTILL_FUZZ sets the number of each.
"""

from collections import Counter
from pathlib import Path

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tests.faults.fuzzing import folder, fuzzed, outcome, pieces, said
from tests.unit.corpora.test_encodings import TEXTS

from polydistill.config.load import load_recipe, parse_recipe
from polydistill.config.settings import Settings
from polydistill.config.shared import Source
from polydistill.config.yaml_text import MAX_VALUES, parse_yaml, read_resolved
from polydistill.corpora.encodings import likely_encoding
from polydistill.corpora.sources import read_documents
from polydistill.errors import UserError
from polydistill.training.arguments import check_arguments, check_finetuning

BASE = {"name": "x", "teachers": {"a": "org/a"}, "languages": {"en": {"text": "a.txt", "teachers": "a"}}}
MERGED = "name: x\nteachers: {a: org/a}\nlanguages: {en: {text: a.txt, teachers: a}}\n"

scalars = st.one_of(
    st.sampled_from(
        [
            "!!int abc",
            "!!int ''",
            "!!float x",
            "!!bool x",
            "!!timestamp 2024-13-45",
            "!!binary x",
            "!!set {a}",
            "!!omap [a: 1]",
            "!!python/object:os.system x",
            "!x y",
            "!!str",
            "!!null x",
            "2024-13-45",
            "9999-99-99 99:99:99",
            "0x" + "f" * 3000,
            "9" * 5000,
            "1" + ":59" * 2000,
            "1e999",
            ".nan",
            "-.inf",
            "0o7",
            "0b" + "1" * 400,
            "=",
            "<<",
            "~",
            "no",
            "[]",
            "{}",
            "''",
            '"\\ud800"',
            '"\\0"',
            '"\\U0010ffff"',
            "|\n  a",
            ">-\n  a\n\n  b",
            "? a",
            "- a",
            "&a",
            "*a",
            "%x",
            "@",
            "`",
            "\t",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    pieces,
)
KEYS = [
    "name",
    "output",
    "teachers",
    "languages",
    "student",
    "training",
    "scoring",
    "seed",
    "reuse",
    "recipe",
    "extends",
    "card",
    "x",
]
keys = st.one_of(
    st.sampled_from(KEYS), pieces, st.sampled_from(["? [a]\n", "<<", "!!int x", "1", "null", "yes"])
)


@st.composite
def yaml_texts(draw: st.DrawFn) -> str:
    """Lines of YAML with anchors and aliases, in or after a recipe; a few expand to very many values."""
    lines = [draw(st.sampled_from(["", MERGED]))]
    anchors = 0
    for _ in range(draw(st.integers(0, 12))):
        key, value = draw(keys), draw(scalars)
        shape = draw(st.sampled_from(["plain", "anchor", "list", "mapping", "itself", "deep", "nested"]))
        alias = f"*a{draw(st.integers(0, anchors))}"
        if shape == "anchor":
            value, anchors = f"&a{anchors} [{value}]", anchors + 1
        elif shape in ("list", "mapping"):
            many = [alias] * draw(st.integers(1, 30))
            inner = (
                ", ".join(many)
                if shape == "list"
                else ", ".join(f"k{i}: {item}" for i, item in enumerate(many))
            )
            value = f"&a{anchors} " + (f"[{inner}]" if shape == "list" else f"{{{inner}}}")
            anchors += 1
        elif shape == "itself":
            value, anchors = f"&a{anchors} [*a{anchors}]", anchors + 1
        elif shape == "deep":
            value = (
                draw(st.sampled_from(["[", "{a: ", "- ", "? "])) * draw(st.sampled_from([10, 100, 3000]))
                + value
            )
        elif shape == "nested":
            value = f"\n  {draw(keys)}: {value}\n  {draw(keys)}: {alias}"
        lines.append(f"{key}: {value}\n")
    return "".join(lines)


def num_values(value: object) -> int:
    """The number of values, with shared ones counted each time that they are used."""
    if isinstance(value, dict):
        return 1 + sum(1 + num_values(inner) for inner in value.values())
    return 1 + sum(map(num_values, value)) if isinstance(value, list) else 1


@fuzzed
@given(yaml_texts(), st.booleans())
@example("a: &a [*a]", False)
def test_yaml(text, resolved) -> None:
    data = text.encode("utf-8", "surrogatepass")
    with folder() as root:
        path = root / "recipe.yaml"
        path.write_bytes(data)
        result = outcome(lambda: load_recipe(path))
        assert isinstance(result, Settings | UserError)
        try:
            value = read_resolved(path) if resolved else parse_yaml(text)
        except (yaml.YAMLError, UnicodeDecodeError):
            return
        assert num_values(value) <= 4 * MAX_VALUES


@fuzzed
@given(
    st.lists(st.tuples(st.lists(keys, min_size=1, max_size=4).map(".".join), scalars), min_size=1, max_size=4)
)
def test_settings_of_the_command_line(changes) -> None:
    overrides = [f"{key}={value}" for key, value in changes]
    refused = outcome(lambda: parse_recipe(BASE, overrides))
    if isinstance(refused, UserError):
        # The message names a given place, or one that it made necessary.
        assert refused.field
        assert len(str(refused)) < 4000
        return
    # Accepted values are the given ones, and the written recipe gives them again.
    again = parse_recipe(refused.model_dump(mode="json", exclude_unset=True))
    assert again == refused


@fuzzed
@given(st.lists(pieces, min_size=4, max_size=4), st.booleans())
def test_names(names, own) -> None:
    """Accepted names are folders within the run's."""
    run, teacher, language, text = [name or "x" for name in names] if own else [*names[:2], "en", "news"]
    with said():
        recipe = parse_recipe(
            {
                "name": run,
                "teachers": {teacher: "org/a"},
                "languages": {
                    language: {"text": "a.txt", "teachers": [teacher], "evaluation": {text: "b.txt"}}
                },
            }
        )
        for name in (recipe.name, *recipe.teachers, *recipe.languages):
            assert Path("run", name).resolve().parent == Path("run").resolve()


ARGUMENTS = [
    "max_steps",
    "save_steps",
    "logging_steps",
    "report_to",
    "optim",
    "fsdp",
    "dataloader_num_workers",
    "push_to_hub",
    "hub_token",
    "resume_from_checkpoint",
    "learning_rate",
    "warmup_steps",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "deepspeed",
    "gradient_accumulation_steps",
    "save_total_limit",
    "bf16",
    "fp16",
    "tf32",
    "max_grad_norm",
    "adam_beta1",
    "adam_epsilon",
    "label_smoothing_factor",
    "seed",
    "output_dir",
    "run_name",
    "torch_compile",
    "gradient_checkpointing",
    "use_cpu",
    "neftune_noise_alpha",
    "lr_scheduler_kwargs",
    "optim_args",
    "accelerator_config",
    "fsdp_config",
    "parallelism_config",
    "debug",
    "log_level",
    "num_train_epochs",
]
trained = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            -1,
            1,
            2,
            10**6,
            10**30,
            0.5,
            -0.5,
            float("nan"),
            float("inf"),
            "",
            "x",
            "wandb",
            ["wandb"],
            [],
            {},
            [None],
            {"a": 1},
            {"x": [1]},
            "full_shard",
            "adamw_bnb_8bit",
            "adamw_torch",
            "cosine",
            "linear",
            "no",
            "steps",
            "epoch",
        ]
    ),
    pieces,
)


@fuzzed
@given(st.dictionaries(st.sampled_from(ARGUMENTS), trained, min_size=1, max_size=3), st.booleans())
def test_training_values(values, finetuning) -> None:
    with said():
        (check_finetuning if finetuning else check_arguments)(
            {"per_device_train_batch_size": 8, "learning_rate": 1e-4} | values if finetuning else values
        )


ENCODINGS = [
    "cp949",
    "euc_kr",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "cp932",
    "shift_jis",
    "euc_jp",
    "gb18030",
    "big5",
    "latin-1",
    "cp1250",
    "cp1251",
    "koi8-r",
    "cp1252",
    "cp1253",
    "cp866",
    "iso8859-5",
    "cp874",
    "cp037",
    "utf-7",
]


@fuzzed
@given(
    st.sampled_from(sorted(TEXTS)),
    st.sampled_from(ENCODINGS),
    st.integers(0, 400),
    st.binary(max_size=6),
    st.integers(1, 60),
    st.sampled_from(["a.txt", "a.jsonl"]),
)
def test_texts_in_other_encodings(language, encoding, start, damage, times, name) -> None:
    """The suggested encoding is the text's, or another that gives the same text; half-damaged text too."""
    whole = TEXTS[language] * times
    written = whole.encode(encoding, "ignore")
    raw = written[start:] + damage
    likely = likely_encoding(raw)
    # A text that lost characters in an encoding of other languages is no text.
    if likely is not None and not start and not damage and written == whole.encode(encoding, "replace"):
        assert written.decode(likely) == whole
    with folder() as root, said():
        (root / name).write_bytes(raw)
        source = Source(path=str(root / name))
        list(read_documents([source], Counter(), field="languages.x.text", block_lines=8))
