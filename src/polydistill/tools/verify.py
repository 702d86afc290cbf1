"""Check whether a run is whole: its records, artefacts, checkpoints and stores, byte by byte."""

from __future__ import annotations

from pathlib import Path

from polydistill.artefacts import (
    ARTEFACTS,
    PARTIAL,
    STAMP,
    artefact_places,
    artefacts_in,
    check_artefact,
    unlisted_files,
)
from polydistill.disk import refuse_links
from polydistill.errors import RunFolderError, StoreError
from polydistill.reports.records import check_recipe, check_records
from polydistill.store.reader import Store
from polydistill.training.checkpoints import checkpoints_in, fault_of

# Each is made from the one before.
CHAIN = ("tokenizer", "student/final", "evaluation")
# The places of artefacts, over all kinds of recipe.
PLACES = (
    "tokenizer",
    "student/final",
    "student/untrimmed",
    "teacher/adapted",
    "teacher/importance",
    "students/*/final",
    "teachers/*/final",
    "corpora/*",
    "store/*/*",
    "labels/*/*",
    "jobs/*/*/*",
    "probes/*/*",
    "sentences/*",
    "vectors/*",
    "projection",
    "cost",
    "evaluation/mlm",
    "words",
)


def check_whole(run: Path) -> list[str]:
    """Check that a run's artefacts have stamps and that its checkpoints are whole.

    Returns a line for each folder of checkpoints. Raises RunFolderError for an artefact that is missing or
    has no stamp, and for a damaged checkpoint.
    """
    for place in _expected(run):
        if not (place / STAMP).is_file():
            how = "it has no stamp.json" if place.is_dir() else "it is gone"
            raise RunFolderError(
                str(place),
                None,
                f"is damaged: {how}",
                "remove what is left of it and rerun the command: it is made again, and whole artefacts stay",
            )
    lines = []
    for folder in sorted(path for path in run.rglob("checkpoints") if path.is_dir()):
        states = []
        for checkpoint in checkpoints_in(folder):
            if not (checkpoint / "complete.json").is_file():
                states.append(f"{checkpoint.name} incomplete, ignored")
                continue
            fault = fault_of(checkpoint)
            if fault is not None:
                raise RunFolderError(
                    str(checkpoint),
                    None,
                    f"is damaged: {fault}",
                    "remove it: training resumes from the checkpoint before",
                )
            states.append(f"{checkpoint.name} whole")
        if states:
            lines.append(f"{folder}: {', '.join(states)}")
    return lines


def _expected(run: Path) -> list[Path]:
    """The folders that must be artefacts."""
    places = artefact_places(run) if (run / ARTEFACTS).is_file() else {}
    # An existing teacher that the recipe names is no artefact of the run.
    own = [
        place
        for name, place in places.items()
        if place.is_relative_to(run) or not name.startswith("teachers/")
    ]
    kind = check_recipe(run)["recipe"] if (run / "recipe.yaml").is_file() else ""
    # An embed run's student brings its tokenizer.
    chain = CHAIN[1:] if kind == "embed" else CHAIN
    last = max((place for place, name in enumerate(chain) if (run / name / STAMP).is_file()), default=-1)
    if (run / "report" / "index.html").is_file() and kind in ("merge", "extract", "pretrain", "embed"):
        last = len(chain) - 1
    own += [run / name for name in chain[: last + 1]]
    for pattern in PLACES:
        own += [
            path
            for path in sorted(run.glob(pattern))
            if path.is_dir() and path.suffix not in (PARTIAL, ".old")
        ]
    return list(dict.fromkeys(place for place in own if not _is_other(place)))


def _is_other(place: Path) -> bool:
    """Whether a folder belongs to a half-made artefact, which a resumed run handles."""
    return any(part.endswith((PARTIAL, ".old")) for part in place.parts)


def verify_stores(folder: Path) -> list[str]:
    """Check every checksum of a store, or of all stores under a folder; StoreError names the first fault."""
    manifests = (
        [folder]
        if (folder / "manifest.json").is_file()
        else sorted(p.parent for p in folder.rglob("manifest.json"))
    )
    if not manifests:
        raise StoreError(
            "store", str(folder), "holds no store (no manifest.json)", "name a folder such as runs/NAME/store"
        )
    lines = []
    for path in manifests:
        store = Store(path)
        store.verify()
        lines.append(f"{path}: {len(store.manifest['shards'])} shards, {store.num_bytes:,} bytes, whole")
    return lines


def verify_run(folder: Path) -> list[str]:
    """Check every file of every artefact below a run's folder, its checkpoints and its records.

    Returns a line for each. RunFolderError names the first that is damaged or missing. Files that the run did
    not make are listed and are no fault: the run neither reads nor copies them.
    """
    artefacts = artefacts_in(folder)
    if not artefacts:
        raise RunFolderError(
            "folder", str(folder), "holds no artefact (no stamp.json)", "name a run's folder, runs/NAME"
        )
    runs = [path.parent for name in ("recipe.yaml", "*/recipe.yaml") for path in sorted(folder.glob(name))]
    if (folder / ARTEFACTS).is_file() and folder not in runs:
        check_recipe(folder)
    lines = []
    for run in runs:
        refuse_links(run)
    for path in artefacts:
        number = check_artefact(path)
        state = f"{number} files, whole" if number else "of an earlier version, which kept no checksums"
        if others := unlisted_files(path):
            state += f"; not of the run: {', '.join(others)}"
        if not number and (path / "manifest.json").is_file():
            Store(path).verify()
            state = "a store, whole"
        lines.append(f"{path}: {state}")
    for run in runs:
        lines += check_whole(run)
        lines.append(f"{run}: {', '.join(check_records(run))}: whole")
    return lines
