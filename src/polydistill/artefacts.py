"""Artefacts: written whole or not at all, and stamped with what they were made from.

An artefact is a folder that holds `stamp.json`: the fingerprint of everything that it was made from,
in readable form, and the checksums of its files. A stage that finds an artefact with the fingerprint that it would
write, and whole, does nothing; a damaged one is named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from polydistill.disk import (
    explain_disk_errors,
    fingerprint,
    hash_file,
    read_json,
    read_sealed,
    remove_folder,
    replace_folder,
    write_json,
)
from polydistill.errors import RunFolderError

STAMP = "stamp.json"


PARTIAL = ".partial"


# A run's record of where its artefacts lie.
ARTEFACTS = "artefacts.json"


# What people may write into: nothing is made from it.
UNSEALED = {STAMP, "README.md"}


# Checksums of files that this process has read already, by path, size and time of change.
_checked: dict[tuple[str, int, int], str] = {}


def artefact_places(run: Path) -> dict[str, Path]:
    """Where a run's artefacts lie, by their names: in its own folder, or in another run's that it reuses."""
    found = read_json(run / ARTEFACTS, dict)
    if not all(isinstance(place, str) for place in found.values()):
        raise RunFolderError(
            str(run / ARTEFACTS),
            None,
            "is damaged: a place in it is no path",
            "remove it and run the same command again: it is made anew",
        )
    # A path within the folder counts from it, and an absolute one stays itself.
    return {name: run / place for name, place in found.items()}


def is_current(folder: Path, inputs: Any) -> bool:
    """Whether a whole artefact stands in `folder` that was made from just these inputs.

    Raises RunFolderError if it does, and a file of it is missing or has other bytes than were written.
    """
    if not (folder / STAMP).is_file():
        return False
    found = _read_stamp(folder)
    if found.get("fingerprint") != fingerprint(inputs):
        return False
    _check_files(folder, found)
    return True


def check_artefact(folder: Path) -> int:
    """Raise RunFolderError if a file of an artefact is missing or damaged; return how many files were checked."""
    return _check_files(folder, _read_stamp(folder))


def check_file(folder: Path, name: str) -> None:
    """As `check_artefact`, of one file alone."""
    stamp = _read_stamp(folder)
    _check_files(
        folder, stamp | {"files": {key: one for key, one in stamp.get("files", {}).items() if key == name}}
    )


def unlisted_files(folder: Path) -> list[str]:
    """The files in an artefact's folder that its stamp does not list, links included; what people may write is none."""
    listed = _read_stamp(folder).get("files")
    if listed is None:
        return []
    there = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    )
    return sorted(name for name in there if name not in listed and name not in UNSEALED)


def copy_artefact(source: Path, target: Path) -> None:
    """Copy the files that an artefact's stamp lists into a folder that is there, and nothing else: neither what a link
    leads to nor what somebody has put beside them.

    Raises RunFolderError if one of them is gone, is a link, or has other bytes than were written.
    """
    for name, checksum in _read_stamp(source).get("files", {}).items():
        copied = target / _inner_name(source, name)
        copied.parent.mkdir(parents=True, exist_ok=True)
        inner = [source.joinpath(*Path(name).parts[: place + 1]) for place in range(len(Path(name).parts))]
        if any(path.is_symlink() for path in inner):
            raise _damaged(source, name, "a link")
        try:
            handle = os.open(source / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _damaged(source, name, "gone") from None
        digest = xxhash.xxh3_128()
        with os.fdopen(handle, "rb") as found, copied.open("xb") as written:
            while block := found.read(1 << 20):
                digest.update(block)
                written.write(block)
        if digest.hexdigest() != checksum:
            raise _damaged(source, name, "not what was written")


def artefacts_in(folder: Path) -> list[Path]:
    """The artefacts below a folder, half-made ones and folders of checkpoints left out."""
    found = sorted(path.parent for path in folder.rglob(STAMP))
    return [path for path in found if path.suffix not in (PARTIAL, ".old") and path.name != "checkpoints"]


def _read_stamp(folder: Path) -> dict[str, Any]:
    """What an artefact's stamp says; RunFolderError where it can not be what was written."""
    found, sealed = read_sealed(folder / STAMP, dict)
    files = found.get("files")
    # Earlier versions did not seal stamps; none of them wrote an artefact of no file.
    whole = files is None or (isinstance(files, dict) and (files or sealed))
    if not whole or not all(isinstance(one, str) for one in (files or {}).values()):
        raise RunFolderError(
            str(folder / STAMP),
            None,
            "is damaged: its list of files is empty or no list of checksums",
            "remove that folder and run the same command again: it is made anew, and what is whole stays",
        )
    return dict(found)


def _inner_name(folder: Path, name: str) -> str:
    """A file's name within a folder; RunFolderError if it leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not name:
        raise _damaged(folder, name, "outside of it")
    return name


def _check_files(folder: Path, stamp: dict[str, Any]) -> int:
    # An artefact of an earlier version has no checksums.
    checksums = stamp.get("files", {})
    for name, checksum in checksums.items():
        path = folder / _inner_name(folder, name)
        if not path.is_file():
            raise _damaged(folder, name, "gone")
        if _checksum(path) != checksum:
            raise _damaged(folder, name, "not what was written")
    return len(checksums)


def _damaged(folder: Path, name: str, how: str) -> RunFolderError:
    return RunFolderError(
        str(folder),
        None,
        f"is damaged: its file {name} is {how}",
        "remove that folder and run the same command again: it is made anew, and what is whole stays",
    )


def _checksum(path: Path) -> str:
    """hash_file, once in this process for a file that does not change."""
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if key not in _checked:
        _checked[key] = hash_file(path)
    return _checked[key]


def partial_folder(folder: Path) -> Path:
    """Where an artefact is while it is being made."""
    return folder.with_name(folder.name + PARTIAL)


@contextmanager
def artefact(folder: Path, inputs: Any, *, keep_partial: bool = False) -> Iterator[Path]:
    """A sibling folder to write into, stamped and renamed to `folder` when the block ends well.

    inputs        what the artefact is made from (JSON-able); its fingerprint is the stamp
    keep_partial  go on with what an interrupted run with the same inputs left, rather than start anew
    """
    partial = partial_folder(folder)
    with explain_disk_errors(folder):
        if partial.is_symlink() or not (keep_partial and is_current(partial, inputs)):
            remove_folder(partial)
        partial.mkdir(parents=True, exist_ok=True)
        stamp = {"fingerprint": fingerprint(inputs), "inputs": inputs}
        if keep_partial:
            # The stamp comes first, so that the next run knows whether the parts are its own.
            write_json(partial / STAMP, stamp, sealed=True)
        yield partial
        files = {path.relative_to(partial).as_posix(): path for path in partial.rglob("*") if path.is_file()}
        checksums = {name: hash_file(files[name]) for name in sorted(files) if name not in UNSEALED}
        write_json(partial / STAMP, stamp | {"files": checksums}, sealed=True)
        replace_folder(partial, folder)


@contextmanager
def artefact_or_nothing(folder: Path, inputs: Any) -> Iterator[Path]:
    """As `artefact`, but what a failed block has written is removed."""
    try:
        with artefact(folder, inputs) as partial:
            yield partial
    except BaseException:
        remove_folder(partial_folder(folder))
        raise


def clear_unless_current(folder: Path, inputs: Any) -> None:
    """Keep a folder that work with these inputs left behind; empty and stamp it anew if it was other work's."""
    if folder.is_symlink() or not is_current(folder, inputs):
        remove_folder(folder)
        write_json(folder / STAMP, {"fingerprint": fingerprint(inputs), "inputs": inputs}, sealed=True)


def forget_checksums() -> None:
    """Read every file again when its checksum is next asked for: one that was put back may look unchanged."""
    _checked.clear()
