"""The first minutes of a new user: a first recipe, a plan, small texts, wrong paths, what is written."""

import json
import subprocess
import sys

import pytest
import yaml
from tests.conftest import bundled_lines
from tests.end_to_end.test_pretrain import pretrain_recipe
from tests.training import make_model
from transformers import AutoTokenizer
from typer.testing import CliRunner

from polydistill import __version__
from polydistill.cli import app
from polydistill.config import paths
from polydistill.config.load import parse_recipe
from polydistill.config.paths import check_models, refuse_missing, without_hub
from polydistill.corpora.examples import Examples
from polydistill.errors import CorpusError, ModelError, RunFolderError
from polydistill.pipelines.run import run_recipe
from polydistill.pipelines.stages.training import fit_tokenizers


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_the_version_is_the_packages() -> None:
    assert invoke("--version").output == f"polydistill {__version__}\n"
    assert invoke().exit_code == 2
    assert "Usage" in invoke().output


def test_a_first_recipe_is_one_that_plan_accepts(tmp_path, teachers, texts, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--teacher", f"en={teachers['en']}", "--teacher", f"ru={teachers['ru']}"]
    given += ["--text", f"en={texts['en']}", "--text", f"ru={texts['ru']}"]
    made = invoke("init", "mine.yaml", *given)
    assert made.exit_code == 0, made.output
    recipe = parse_recipe(yaml.safe_load((tmp_path / "mine.yaml").read_text("utf-8")))
    assert recipe.languages["ru"].teachers == ["ru"]
    assert recipe.name == "mine"
    # The teachers have 64 positions.
    assert recipe.corpora.max_length == 62
    planned = invoke("plan", "mine.yaml")
    assert planned.exit_code == 0, planned.output
    assert "error" not in planned.output
    again = invoke("init", "mine.yaml", *given)
    assert "exists" in str(again.exception)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--text", "en=TEXT"], "no teacher"),
        (["--teacher", "en=EN"], "no text"),
        (["--teacher", "en=nowhere/at/all", "--text", "en=TEXT"], "no such folder"),
        (["--teacher", "en=EN", "--text", "en=nowhere.txt"], "no such file"),
        (["--teacher", "en=EN", "--teacher", "b=EN", "--text", "fr=TEXT"], "--teaches fr=NAME"),
        (["--teacher", "en", "--text", "en=TEXT"], "NAME=VALUE"),
        (["--teacher", "en=EN", "--text", "fr=TEXT", "--teaches", "fr=x"], "no teacher of that name"),
    ],
)
def test_a_first_recipe_that_cannot_be(tmp_path, teachers, texts, given, message) -> None:
    filled = [each.replace("TEXT", str(texts["en"])).replace("=EN", f"={teachers['en']}") for each in given]
    refused = invoke("init", tmp_path / "mine.yaml", *filled)
    assert message in str(refused.exception)
    assert not (tmp_path / "mine.yaml").exists()


def test_what_is_wrong_is_told_before_torch_is_imported(tmp_path) -> None:
    """A recipe, a text and a teacher that are not there."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nteachers: {a: ./nowhere}\nlanguages: {en: {text: x.txt, teachers: a}}\n", "utf-8"
    )
    for arguments in (["plan", "nowhere.yaml"], ["run", str(recipe)]):
        code = (
            "import sys\nfrom polydistill.cli import main\n"
            f"sys.argv[1:] = {arguments!r}\n"
            "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.split() == ["2", "False"], done.stderr
        assert "nowhere" in done.stderr


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("bert-base-cased", False),
        ("google-bert/bert-base-cased", False),
        ("a/b/c", True),
        ("./model", True),
        ("/nowhere/model", True),
        ("here/missing", True),
        ("here/model", False),
        ("here", False),
    ],
)
def test_a_folder_that_is_not_there_is_told_from_a_hub_name(tmp_path, monkeypatch, name, refused) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    if refused:
        with pytest.raises(ModelError, match="no such folder"):
            refuse_missing(name, "model")
    else:
        refuse_missing(name, "model")


def test_every_model_of_a_recipe_is_looked_for(recipe_values) -> None:
    check_models(parse_recipe(recipe_values))
    wrong = recipe_values | {"teachers": recipe_values["teachers"] | {"ru": "/nowhere/ru"}}
    with pytest.raises(ModelError, match=r"teachers\.ru"):
        check_models(parse_recipe(wrong))
    tokenizer = {"model": recipe_values["teachers"]["ru"], "tokenizer": "/nowhere/tokenizer"}
    wrong = recipe_values | {"teachers": recipe_values["teachers"] | {"ru": tokenizer}}
    with pytest.raises(ModelError, match=r"teachers\.ru\.tokenizer"):
        check_models(parse_recipe(wrong))


def test_a_small_text_holds_out_its_first_block(tmp_path, texts) -> None:
    """Three blocks, of which a share of 0.001 holds out none; and the plan refuses what a run refuses."""
    path = tmp_path / "small.txt"
    path.write_text("\n".join(bundled_lines("en", 60)), "utf-8")
    values = pretrain_recipe(texts, tmp_path / "run")
    values |= {"languages": {"en": {"text": str(path)}}}
    values["corpora"] = values["corpora"] | {"held_out_share": 0.001, "block_lines": 8}
    run = run_recipe(parse_recipe(values), until="corpora", show=lambda line: None)
    held_out = Examples(run / "corpora" / "en" / "held_out.arrow")
    training = Examples(run / "corpora" / "en" / "train.arrow")
    assert 0 < len(held_out) < len(training)
    again = values | {"output": str(tmp_path / "again")}
    other = run_recipe(parse_recipe(again), until="corpora", show=lambda line: None)
    assert Examples(other / "corpora" / "en" / "held_out.arrow").texts(slice(None)) == held_out.texts(
        slice(None)
    )
    # A document of blanks is none: its place does not count, wherever it is.
    blank = tmp_path / "blank.txt"
    blank.write_text("\n" * 50 + "one line of text\n" + "\n" * 50, "utf-8")
    lonely = values | {"output": str(tmp_path / "lonely"), "languages": {"en": {"text": str(blank)}}}
    lonely["corpora"] = values["corpora"] | {"block_lines": 1}
    with pytest.raises(CorpusError, match="nothing can be held out"):
        run_recipe(parse_recipe(lonely), until="corpora", show=lambda line: None)
    single = values | {
        "output": str(tmp_path / "single"),
        "corpora": values["corpora"] | {"block_lines": 5000},
    }
    with pytest.raises(CorpusError, match="nothing can be held out"):
        run_recipe(parse_recipe(single), until="corpora", show=lambda line: None)
    recipe = tmp_path / "single.yaml"
    recipe.write_text(yaml.safe_dump(single), "utf-8")
    planned = invoke("plan", recipe)
    assert planned.exit_code == 2
    assert "nothing can be held out" in planned.output.replace("\n", " ")
    # The refused run made nothing, so its folder takes another recipe.
    run_recipe(parse_recipe(single | {"corpora": values["corpora"]}), until="corpora", show=lambda line: None)
    with pytest.raises(RunFolderError, match="other settings"):
        run_recipe(parse_recipe(single), until="corpora", show=lambda line: None)


def test_a_plan_of_a_pretraining_has_sizes_and_times(tmp_path, texts) -> None:
    recipe = tmp_path / "p.yaml"
    recipe.write_text(yaml.safe_dump(pretrain_recipe(texts, tmp_path / "run")), "utf-8")
    planned = invoke("plan", recipe)
    assert planned.exit_code == 0, planned.output
    for wanted in ("characters", "parameters", "s each", "no conflicts"):
        assert wanted in planned.output
    assert not (tmp_path / "run").exists()


def test_tokenizers_load_in_older_transformers_and_cut_where_the_model_ends(tmp_path, texts) -> None:
    """A rotary model takes as many tokens as it has positions, not as its training's sequences had."""
    values = pretrain_recipe(texts, tmp_path / "run")
    values["training"] = values["training"] | {"max_steps": 1}
    run = run_recipe(parse_recipe(values), until="train", show=lambda line: None)
    final = run / "student" / "final"
    config = json.loads((final / "config.json").read_text("utf-8"))
    written = json.loads((final / "tokenizer_config.json").read_text("utf-8"))
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["corpora"]["max_length"] < config["max_position_embeddings"]
    assert written["model_max_length"] == config["max_position_embeddings"]
    assert AutoTokenizer.from_pretrained(final).model_max_length == config["max_position_embeddings"]


@pytest.mark.parametrize(("written", "expected"), [(20, 20), (512, 32)])
def test_positions_of_a_table_are_those_that_were_trained(tmp_path, written, expected) -> None:
    """A table of 32 positions: the training's length stays, and no tokenizer goes past the table."""
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": written}), "utf-8")
    fit_tokenizers(tmp_path, make_model())
    assert json.loads(path.read_text("utf-8"))["model_max_length"] == expected


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch) -> None:
    """The libraries would retry each file of each model for half a minute."""
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise OSError("no route")

    monkeypatch.setattr(paths.socket, "create_connection", refuse)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "name": "x",
        "teachers": {"a": "someone/bert"},
        "languages": {"en": {"text": "a.txt", "teachers": "a"}},
    }
    recipe = parse_recipe(values)
    assert without_hub(recipe) == "huggingface.co cannot be reached: models come from this machine's cache"
    assert asked == [("huggingface.co", 443)]
    assert paths.os.environ["HF_HUB_OFFLINE"] == "1"
    assert without_hub(recipe) is None
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:8080")
    assert without_hub(recipe) is None
    monkeypatch.delenv("HTTPS_PROXY")
    assert without_hub(parse_recipe(values | {"teachers": {"a": "."}})) is None
    assert len(asked) == 1
    assert "HF_HUB_OFFLINE" not in paths.os.environ


def test_a_run_tells_where_it_is(tmp_path, recipe_values) -> None:
    """Stages in order, every step of its training, and an end."""
    seen = []
    run = run_recipe(parse_recipe(recipe_values | {"output": str(tmp_path / "run")}), watch=seen.append)
    stages = list(dict.fromkeys(position.stage for position in seen if position.stage))
    assert stages == ["corpora", "tokenizer", "score", "train", "evaluate", "report"]
    steps = [position for position in seen if position.stage == "train" and position.unit == "steps"]
    assert (
        [position.done for position in steps[-2:]][-1]
        == steps[-1].total
        == recipe_values["training"]["max_steps"]
    )
    assert "mlm" in steps[-1].note
    assert steps[-1].left == pytest.approx(0)
    scored = {position.what for position in seen if position.unit == "examples"}
    assert scored == {"en/en", "en/en2", "ru/ru"}
    assert seen[-1].state == "finished"
    printed = invoke("status", run)
    assert ": finished" in printed.output
    assert "evaluating ru" in printed.output


def test_where_losses_are_sent_changes_no_student(tmp_path, recipe_values) -> None:
    """Neither a new folder nor a new training for another tracker."""
    values = recipe_values | {"output": str(tmp_path / "run")}
    run = run_recipe(parse_recipe(values), until="train")
    weights = run / "student" / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    tracked = values | {"training": values["training"] | {"report_to": [], "run_name": "mine"}}
    assert run_recipe(parse_recipe(tracked), until="train") == run
    assert weights.stat().st_mtime_ns == before
    other = parse_recipe(values | {"training": values["training"] | {"learning_rate": 1e-3}})
    with pytest.raises(RunFolderError, match="learning_rate"):
        run_recipe(other, until="train")


def test_further_texts_that_are_not_there_are_told_early(tmp_path, recipe_values) -> None:
    """By `plan`, with all else that is wrong, and by `run` before anything is read."""
    values = recipe_values | {"output": str(tmp_path / "run")}
    values["languages"]["ru"]["evaluation"] = {"wiki": str(tmp_path / "nowhere.txt")}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    planned = invoke("plan", path)
    assert planned.exit_code == 2
    assert "error: languages.ru.evaluation.wiki[0]" in planned.output
    with pytest.raises(CorpusError, match=r"languages.ru.evaluation.wiki\[0\]"):
        raise invoke("run", path).exception
    assert not (tmp_path / "run").exists()
    extracted = {"recipe": "extract", "name": "x", "teacher": "org/t", "language": "en", "text": "a.txt"}
    recipe = parse_recipe(extracted | {"evaluation": {"max_examples": 3}})
    assert recipe.further_texts == {}
    recipe = parse_recipe(extracted | {"evaluation_texts": {"wiki": "w.txt"}})
    assert [source.path for source in recipe.further_texts["evaluation_texts.wiki"]] == ["w.txt"]


@pytest.mark.parametrize(
    ("name", "content"), [("image.png", bytes(range(256)) * 400), ("m.bin", b"\x01\x02\x9c" * 999)]
)
def test_a_binary_file_is_no_text_of_an_unknown_encoding(tmp_path, recipe_values, name, content) -> None:
    """`iconv` is no remedy for an image."""
    (tmp_path / name).write_bytes(content)
    values = recipe_values | {"output": str(tmp_path / "run")}
    values["languages"]["ru"]["text"] = str(tmp_path / name)
    with pytest.raises(CorpusError, match="is no text: many of its bytes are control characters"):
        run_recipe(parse_recipe(values), until="corpora")
