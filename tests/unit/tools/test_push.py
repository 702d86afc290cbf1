"""Publishing a model: what is uploaded, what its card lacks, and what goes wrong."""

import io

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from rich.console import Console

from polydistill.errors import ModelError
from polydistill.tools import push
from polydistill.tools.push import card_warnings, prepare_upload, push_model

CARD = """---
language: [en]
license: mit
pipeline_tag: fill-mask
---
# A
model = AutoModelForMaskedLM.from_pretrained("FOLDER")
own = AutoTokenizer.from_pretrained("FOLDER", subfolder="tokenizer/en")
"""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "run" / "student" / "final"
    (folder / "tokenizer" / "en").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "stamp.json", "a.tmp", "tokenizer/en/tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(CARD)
    (folder / "link").symlink_to(folder / "config.json")
    return folder


class Hub:
    """Records what a hub would get."""

    def __init__(self, error=None):
        self.error, self.made, self.files = error, None, {}

    def create_repo(self, name, *, private, exist_ok):
        self.made = (name, private, exist_ok)

    def create_commit(self, name, operations, *, commit_message):
        if self.error:
            raise self.error
        self.files = {each.path_in_repo: each.path_or_fileobj for each in operations}
        return type("Commit", (), {"commit_url": f"https://hub/{name}/commit/1"})


def pushed(monkeypatch, folder, hub, **options):
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push.ModelCard, "validate", lambda self: None)
    console = Console(file=io.StringIO(), width=200)
    return push_model(folder, "me/mine", console, **options), console.file.getvalue()


def test_a_runs_student_is_uploaded_with_its_name_in_the_examples(model, monkeypatch) -> None:
    """Without our stamp, temporary files and links."""
    hub = Hub()
    address, printed = pushed(monkeypatch, model.parents[1], hub)
    assert address == "https://hub/me/mine/commit/1"
    assert hub.made == ("me/mine", True, True)
    assert sorted(hub.files) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer/en/tokenizer.json",
    ]
    card = hub.files["README.md"].decode()
    assert 'from_pretrained("me/mine")' in card
    assert 'from_pretrained("me/mine", subfolder="tokenizer/en")' in card
    assert "4 files" in printed
    pushed(monkeypatch, model, hub, public=True)
    assert hub.made == ("me/mine", False, True)


def test_a_dry_run_needs_no_network(model, monkeypatch) -> None:
    """It shows the files and what the card lacks."""
    (model / "README.md").write_text(CARD.replace("license: mit\n", "").replace("[en]", "[english_]"))
    hub = Hub()
    address, printed = pushed(monkeypatch, model, hub, dry_run=True)
    assert address is None
    assert hub.made is None
    assert "states no licence" in printed
    assert "english_ is no ISO 639 code" in printed


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
        (lambda folder: (folder / "README.md").unlink(), "has no card"),
        (lambda folder: (folder / "README.md").write_text("# A\n"), "no metadata block"),
    ],
)
def test_what_is_no_model_is_refused(model, break_, message) -> None:
    """Before anything is uploaded."""
    break_(model)
    with pytest.raises(ModelError, match=message):
        prepare_upload(model, "me/mine")


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/..", "me/ü"])
def test_a_repository_has_an_owner_and_a_name(model, name) -> None:
    """The hub's rules."""
    with pytest.raises(ModelError, match="OWNER/NAME"):
        push_model(model, name, Console(file=io.StringIO()), dry_run=True)


def test_a_failed_upload_says_what_to_check(model, monkeypatch) -> None:
    """No traceback for a network that is not there, or a card that the hub refuses."""
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 403})()
    with pytest.raises(ValueError, match="a bug of ours"):
        pushed(monkeypatch, model, Hub(ValueError("a bug of ours")))
    for error in (OfflineModeIsEnabled("offline"), HfHubHTTPError("403 Forbidden", response=response)):
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
            pushed(monkeypatch, model, Hub(error))
    monkeypatch.setattr(push, "HfApi", Hub)

    def refuse(self) -> None:
        raise ValueError('"language[0]" must be a string')

    monkeypatch.setattr(push.ModelCard, "validate", refuse)
    with pytest.raises(ModelError, match="refused by the hub"):
        push_model(model, "me/mine", Console(file=io.StringIO()))


def test_a_model_index_is_checked_in_the_hubs_own_form() -> None:
    """A list without `results` is not one."""
    assert not card_warnings({"language": "en", "license": "mit"})
    assert (
        "model-index" in card_warnings({"language": ["en"], "license": "mit", "model-index": [{"a": 1}]})[0]
    )
    assert card_warnings({"license": "mit"}) == ["the card states no language"]
