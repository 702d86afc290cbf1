"""Publish a model on the hub: check its card, show what would be uploaded, upload it in one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from rich.console import Console

from polydistill.artefacts import STAMP
from polydistill.errors import ModelError
from polydistill.reports.card_sections import split_card

CARD = "README.md"
# Ours alone, and what no reader of a model needs.
LEFT_OUT = (STAMP, ".lock")
# ISO 639 codes, with a script or region if need be; the hub's further words.
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")


class Upload(NamedTuple):
    """What would be uploaded.

    folder    of the model
    card      text of README.md, with the repository's name in its examples
    files     names within the folder, the card among them
    warnings  on the card
    """

    folder: Path
    card: str
    files: list[str]
    warnings: list[str]


def push_model(
    folder: Path,
    repository: str,
    console: Console,
    *,
    public: bool = False,
    dry_run: bool = False,
    message: str = "Upload by polydistill",
) -> str | None:
    """Upload a model's folder, or the student of a run's folder, to the hub; returns the commit's address.

    repository  `owner/name`; it is created if need be
    public      whether a new repository is public
    dry_run     only check the card and show the files; needs no network
    Raises ModelError for a folder without model or card, a card that the hub refuses, and a failed upload.
    """
    _check_name(repository)
    upload = prepare_upload(folder, repository)
    total = sum((upload.folder / name).stat().st_size for name in upload.files)
    console.print(
        f"{upload.folder} → {repository}: {len(upload.files)} files, {total / 2**20:,.1f} MiB", markup=False
    )
    for name in upload.files:
        console.print(f"  {name}  {(upload.folder / name).stat().st_size / 2**20:,.2f} MiB", markup=False)
    for warning in upload.warnings:
        console.print(f"note: {warning}", markup=False)
    if dry_run:
        return None
    try:
        _validate(upload)
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        operations = [
            CommitOperationAdd(name, upload.card.encode() if name == CARD else str(upload.folder / name))
            for name in upload.files
        ]
        address = str(api.create_commit(repository, operations, commit_message=message).commit_url)
    except LocalTokenNotFoundError as error:
        raise ModelError(
            "repository", repository, "no token is stored here", "run `hf auth login`"
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            "repository",
            repository,
            f"could not be written ({_line(error)})",
            "check the network, HF_HUB_OFFLINE, and that your token may write there",
        ) from error
    console.print(f"uploaded: {address}", markup=False)
    return address


def _validate(upload: Upload) -> None:
    """Let the hub check the card's metadata; ModelError for what it refuses."""
    try:
        ModelCard(upload.card).validate()
    except ValueError as error:
        raise ModelError(
            "card",
            str(upload.folder / CARD),
            f"is refused by the hub ({_line(error)})",
            "correct its metadata",
        ) from error


def prepare_upload(folder: Path, repository: str) -> Upload:
    """The files and the card of a model's folder, checked as far as that needs no network."""
    place = folder / "student" / "final" if (folder / "student" / "final").is_dir() else folder
    if not (place / "config.json").is_file():
        raise ModelError(
            "folder", str(folder), "holds no model", "give a model's folder, such as RUN/student/final"
        )
    if not (place / CARD).is_file():
        raise ModelError("folder", str(place), f"has no card ({CARD})", "write one, or run its recipe again")
    card = (place / CARD).read_text("utf-8").replace('"FOLDER', f'"{repository}')
    front, _ = split_card(card)
    if not front:
        raise ModelError(
            "card",
            str(place / CARD),
            "has no metadata block that is valid YAML",
            "run `polydistill report` on its run, or write one",
        )
    files = sorted(
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in LEFT_OUT and path.suffix != ".tmp"
    )
    return Upload(place, card, files, card_warnings(front))


def card_warnings(front: dict[str, object]) -> list[str]:
    """What a card's metadata lacks, or has in a form that the hub does not read.

    The hub's own check needs a network; it runs before an upload.
    """
    warnings = []
    languages = front.get("language") or []
    languages = [languages] if isinstance(languages, str) else languages
    odd = (
        [str(name) for name in languages if not LANGUAGE.fullmatch(str(name))]
        if isinstance(languages, list)
        else []
    )
    if not languages:
        warnings.append("the card states no language")
    if odd:
        warnings.append(f"the card's language {', '.join(odd)} is no ISO 639 code: the hub will not find it")
    if not front.get("license"):
        warnings.append("the card states no licence: set `card.license` in the recipe, or write it there")
    if "model-index" in front:
        try:
            model_index_to_eval_results(front["model-index"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            warnings.append(f"the card's model-index is not the hub's ({_line(error)})")
    return warnings


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
        whole = repository.count("/") == 1
    except HFValidationError:
        whole = False
    if not whole:
        raise ModelError("repository", repository, "is no name of a repository", "give OWNER/NAME")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
