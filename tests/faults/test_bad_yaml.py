"""YAML that is no recipe: refused before it costs anything, in a recipe, in `--set` and in a run's
recipe.yaml.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from polydistill.cli import main
from polydistill.config import yaml_text as yaml_reader
from polydistill.config.load import load_recipe, parse_recipe
from polydistill.config.yaml_text import MAX_DEPTH, RefusedYamlError, parse_yaml, read_resolved
from polydistill.errors import RecipeError, RunFolderError, StoreError
from polydistill.pipelines.run_folder import open_run
from polydistill.tools.compare import compare_runs
from polydistill.tools.inspect import teacher_tokenizer

BASE = "name: x\nteachers: {a: org/a}\nlanguages: {en: {text: a.txt, teachers: a}}\n"


def grown(levels: int, times: int = 10) -> str:
    """Lists of lists by aliases: a few lines that expand to times ** levels values."""
    lines = [f"a0: &a0 [{', '.join('x' * times)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * times)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


# Cases that used to end in a traceback, or not to end; and the expected message.
REFUSED = {
    "lists that grow": (grown(9), "more than 50,000 values"),
    "mappings that grow": (grown(9).replace("[", "{q: [").replace("]", "]}"), "more than 50,000 values"),
    "long texts by aliases": (
        "x: &x '" + "y" * 10**5 + "'\nz: [" + "*x, " * 500 + "*x]",
        "more than 50,000 values",
    ),
    "an anchor in itself": ("a: &a [*a]", "an anchor contains itself on line 1"),
    "an anchor in its mapping": ("name: x\na: &a {b: {c: *a}}", "an anchor contains itself on line 2"),
    "deep": ("a: " + "[" * 3000, f"nested more than {MAX_DEPTH} deep"),
    "deep by aliases": (
        "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else ''}]" for i in range(90)),
        "nested more than",
    ),
    "a number that is none": ("seed: !!int abc", "'abc' is not a value of the type int on line 1"),
    "an empty number": ("seed: !!int ''", "not a value of the type int"),
    "a float that is none": ("seed: !!float abc", "not a value of the type float"),
    "a boolean that is none": ("seed: !!bool abc", "not a value of the type bool"),
    "an impossible date": ("name: !!timestamp 2024-13-45", "no setting is of the type 'timestamp' on line 1"),
    "a long number": ("seed: " + "9" * 5000, "has 5,000 characters"),
    "a long hexadecimal number": ("seed: 0x" + "f" * 5000, "has 5,002 characters"),
    "a long number in base 60": ("seed: 1" + ":30" * 3000, "has 9,001 characters"),
    "a number of more than 64 bits": ("seed: 9223372036854775808", "more than 64 bits"),
    "bytes": ("name: !!binary aGVsbG8=", "no setting is of the type 'binary'"),
    "a set": ("name: !!set {a}", "no setting is of the type 'set'"),
    "an object": ("name: !!python/object:os.system x", "no setting is of the type 'python/object:os.system'"),
    "a type of its own": ("name: !mine x", "no setting is of the type '!mine'"),
    "a map that is none": ("name: !!map abc", "a value with the tag map is not a mapping"),
    "merged keys": ("a: &a {b: 1}\nc:\n  <<: *a", "`<<` is not supported on line 3"),
    "half a character": ('name: "\\ud800"', "half a character"),
    "NUL": ('output: "a\\0b"', "a text contains NUL"),
    "a key twice": ("name: x\nname: y", "the key 'name' is repeated on line 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_is_refused(tmp_path, name) -> None:
    text, reason = REFUSED[name]
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.value == str(path)
    assert reason in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", [case for case, (text, _) in REFUSED.items() if "\n" not in text])
def test_a_setting_on_the_command_line_is_refused(tmp_path, name) -> None:
    """Nor is it taken for a text, as a value that is no YAML is."""
    text, reason = REFUSED[name]
    path = tmp_path / "r.yaml"
    path.write_text(BASE, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"training.x={text.partition(': ')[2]}"])
    assert caught.value.field == "--set"
    assert reason.removesuffix(" on line 1") in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("override", ["a=\udcff", "a=\0", ".".join("a" * 500) + "=1", "a" * 10**5 + "=1"])
def test_other_settings_that_no_recipe_has(tmp_path, override) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["*.txt", "[a", "%x", "a: b: c", "`x`", "@x"])
def test_a_setting_that_is_no_yaml_is_a_text(tmp_path, text) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE, "utf-8")
    assert load_recipe(path, [f"languages.en.text={text}"]).languages["en"].text[0].path == text


def test_values_are_counted_unexpanded(monkeypatch) -> None:
    """10 ** 30 values: each node of the graph is visited once, and no list is made."""
    made = []
    monkeypatch.setattr(
        yaml_reader.BoundedLoader, "construct_object", lambda self, node, deep=False: made.append(node)
    )
    with pytest.raises(RefusedYamlError, match="more than 50,000 values"):
        parse_yaml(grown(30))
    assert not made


def test_reading_ends_at_the_first_value_too_many(monkeypatch) -> None:
    composed = []
    original = yaml.SafeLoader.compose_node

    def compose(self, parent, index):
        composed.append(index)
        return original(self, parent, index)

    monkeypatch.setattr(yaml.SafeLoader, "compose_node", compose)
    with pytest.raises(RefusedYamlError, match="more than 100 values"):
        parse_yaml("- a\n" * 5000, max_values=100)
    assert len(composed) <= 100


def test_aliases_of_small_groups_are_taken(tmp_path) -> None:
    """As in real recipes: one text for all languages, used more than a hundred times."""
    names = [f"l{index}" for index in range(150)]
    text = "name: x\nteachers: {a: org/a}\nlanguages:\n  first: &l {text: a.txt, teachers: a}\n"
    path = tmp_path / "r.yaml"
    path.write_text(text + "".join(f"  {name}: *l\n" for name in names), "utf-8")
    assert list(load_recipe(path).languages) == ["first", *names]


def test_plain_values_are_what_they_were() -> None:
    text = (
        "a: [1, -2, 0x10, 1_000, 1e-4, 1.5e3, .inf, yes, off, ~, null, 'x', \"y\\u00e9\"]\nb:\n  c: {}\n? "
        "d\n: |\n  e\n  f\n"
    )
    assert parse_yaml(text) == yaml.safe_load(text.replace("1e-4", "1.0e-4").replace("1.5e3", "1.5e+3"))
    assert parse_yaml("") is None
    # A run may be named after its day.
    assert parse_yaml("[2024-01-02, 2024-13-45, 2024-01-02 10:11:12]") == [
        "2024-01-02",
        "2024-13-45",
        "2024-01-02 10:11:12",
    ]


@pytest.mark.parametrize("key", ["studnet", "trainign", "use", "langauges"])
def test_an_unknown_key_without_a_value_is_refused(tmp_path, key) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE + f"{key}:\n", "utf-8")
    with pytest.raises(RecipeError, match=f"{key}: unknown key"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=f"{key}: unknown key"):
        parse_recipe(yaml.safe_load(BASE), [f"{key}="])


def test_a_known_key_without_a_value_has_its_default(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE + "recipe:\nstudent:\ntraining:\nseed:\n", "utf-8")
    assert load_recipe(path) == parse_recipe(yaml.safe_load(BASE))


@pytest.mark.parametrize("name", REFUSED)
def test_a_runs_own_recipe_is_refused(tmp_path, name) -> None:
    text, _ = REFUSED[name]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(text, "utf-8")
    recipe = parse_recipe(yaml.safe_load(BASE) | {"output": str(folder)})
    with pytest.raises(RunFolderError, match="is damaged") as caught, open_run(recipe).claim():
        pass
    assert "--update" in caught.value.remedy
    with pytest.raises(RunFolderError, match=r"recipe\.yaml is damaged"):
        compare_runs([folder, folder], None)
    store = folder / "store" / "en" / "a"
    with pytest.raises(StoreError, match="names no teacher") as caught:
        teacher_tokenizer(store, "a", "")
    assert "--tokenizer" in caught.value.remedy
    assert (folder / "recipe.yaml").read_text("utf-8") == text


def test_a_runs_own_recipe_has_all_defaults(tmp_path, monkeypatch) -> None:
    """The defaults exceed the limit of values in a recipe; the file is read nevertheless."""
    languages = {f"l{index}": {"text": "a.txt", "teachers": "a"} for index in range(30)}
    run = open_run(parse_recipe(yaml.safe_load(BASE) | {"languages": languages}))
    monkeypatch.setattr(yaml_reader, "MAX_RESOLVED_VALUES", 4 * 300)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(run.resolved), "utf-8")
    with pytest.raises(RefusedYamlError):
        parse_yaml((tmp_path / "recipe.yaml").read_text("utf-8"), max_values=300)
    parse_yaml(yaml.safe_dump({"languages": languages}), max_values=300)
    assert read_resolved(tmp_path / "recipe.yaml") == run.resolved


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: 1\n" * 10)
    monkeypatch.setattr(yaml_reader, "MAX_RESOLVED_BYTES", 20)
    with pytest.raises(RefusedYamlError, match="more than"):
        read_resolved(path)


@pytest.mark.parametrize("parent", ["x/../a.yaml", "b.yaml", "./a.yaml", "link.yaml"])
def test_a_circle_of_recipes_ends_however_it_is_spelled(tmp_path, monkeypatch, parent) -> None:
    """`x/../a.yaml` used to grow by a folder each round, until the path was too long."""
    (tmp_path / "x").mkdir()
    (tmp_path / "a.yaml").write_text(f"extends: {parent}\n" + BASE)
    (tmp_path / "b.yaml").write_text("extends: x/../a.yaml\n")
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    read = []
    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *given: read.append(self) or original(self, *given))
    with pytest.raises(RecipeError, match="the recipe extends itself") as caught:
        load_recipe(tmp_path / "a.yaml")
    assert caught.value.field == "extends"
    assert len([path for path in read if path.is_relative_to(tmp_path)]) <= 2


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "\udcff", "a\0b", "."])
def test_a_path_that_no_file_can_have(name) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert caught.value.field == "recipe"
    assert len(str(caught.value)) < 6000


def test_a_recipe_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)

    def refuse(self, *arguments, **named):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(RecipeError, match="cannot be read") as caught:
        load_recipe(path)
    assert "who may read it" in caught.value.remedy


def test_the_command_line_says_so_with_exit_code_two(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(grown(9), "utf-8")
    monkeypatch.setattr(sys, "argv", ["polydistill", "plan", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "more than 50,000 values" in said
    assert "Traceback" not in said


def test_growing_lists_end_at_once(tmp_path) -> None:
    """These used to run for more than a minute and take 2.8 GB; here in a process with limits."""
    path = tmp_path / "r.yaml"
    path.write_text(grown(9) + BASE + "student: {config: {x: *a8}}\n", "utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from polydistill.config.load import load_recipe; load_recipe({str(path)!r})",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "RecipeError" in done.stderr
