"""Artefacts: written atomically, and stamped with the inputs that they were made from.

An artefact is a folder with a `stamp.json`: the fingerprint of all its inputs, the inputs in readable form,
and the checksums of its files. A stage that finds a whole artefact with the fingerprint that it would write
does nothing; a damaged artefact is reported.
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
# A run's record of the folders of its artefacts.
ARTEFACTS = "artefacts.json"
# Files without a checksum: people may edit them, and nothing is made from them.
UNSEALED = {STAMP, "README.md"}
REMAKE = "remove that folder and run the same command again: it is made again, and finished work is kept"
# Checksums of files that this process has read, by path, size and modification time.
_checked: dict[tuple[str, int, int], str] = {}


def artefact_places(run: Path) -> dict[str, Path]:
    """The folders of a run's artefacts by name: in its own folder, or in another run's that it reuses."""
    places = read_json(run / ARTEFACTS, dict)
    if not all(isinstance(place, str) for place in places.values()):
        raise RunFolderError(
            str(run / ARTEFACTS),
            None,
            "is damaged: an entry is not a path",
            "remove it and run the same command again: it is made again",
        )
    # Relative paths are relative to the run's folder.
    return {name: run / place for name, place in places.items()}


def is_current(folder: Path, inputs: object) -> bool:
    """Whether `folder` holds a whole artefact that was made from exactly these inputs.

    Raises RunFolderError if it does, but one of its files is missing or has changed.
    """
    if not (folder / STAMP).is_file():
        return False
    stamp = _read_stamp(folder)
    if stamp.get("fingerprint") != fingerprint(inputs):
        return False
    _check_files(folder, stamp)
    return True


def check_artefact(folder: Path) -> int:
    """Raise RunFolderError if a file of an artefact is missing or damaged; return the number of files."""
    return _check_files(folder, _read_stamp(folder))


def check_file(folder: Path, name: str) -> None:
    """As `check_artefact`, for a single file."""
    files = _read_stamp(folder).get("files", {})
    _check_files(folder, {"files": {name: files[name]} if name in files else {}})


def unlisted_files(folder: Path) -> list[str]:
    """The files and links in an artefact's folder that its stamp does not list, UNSEALED ones left out."""
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
    """Copy exactly the files that an artefact's stamp lists into an existing folder; never follow links.

    Raises RunFolderError if one of them is missing, is a link, or has changed.
    """
    for name, checksum in _read_stamp(source).get("files", {}).items():
        copied = target / _inner_name(source, name)
        copied.parent.mkdir(parents=True, exist_ok=True)
        parts = Path(name).parts
        if any(source.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts))):
            raise _damaged(source, name, "a link")
        try:
            handle = os.open(source / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _damaged(source, name, "gone") from None
        digest = xxhash.xxh3_128()
        with os.fdopen(handle, "rb") as original, copied.open("xb") as written:
            while block := original.read(1 << 20):
                digest.update(block)
                written.write(block)
        if digest.hexdigest() != checksum:
            raise _damaged(source, name, "not what was written")


def artefacts_in(folder: Path) -> list[Path]:
    """The artefacts below a folder, without partial ones and folders of checkpoints."""
    folders = sorted(path.parent for path in folder.rglob(STAMP))
    return [path for path in folders if path.suffix not in (PARTIAL, ".old") and path.name != "checkpoints"]


def _read_stamp(folder: Path) -> dict[str, Any]:
    """An artefact's stamp; RunFolderError if it cannot be the one that was written."""
    stamp, sealed = read_sealed(folder / STAMP, dict)
    files = stamp.get("files")
    # Earlier versions did not seal stamps, and never wrote an artefact without files.
    whole = files is None or (isinstance(files, dict) and (files or sealed))
    if not whole or not all(isinstance(checksum, str) for checksum in (files or {}).values()):
        raise RunFolderError(
            str(folder / STAMP),
            None,
            "is damaged: its list of files is empty or not a list of checksums",
            REMAKE,
        )
    return dict(stamp)


def _inner_name(folder: Path, name: str) -> str:
    """A file's name within a folder; RunFolderError if it points outside."""
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
    return RunFolderError(str(folder), None, f"is damaged: its file {name} is {how}", REMAKE)


def _checksum(path: Path) -> str:
    """hash_file, computed once per process for a file that does not change."""
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if key not in _checked:
        _checked[key] = hash_file(path)
    return _checked[key]


def partial_folder(folder: Path) -> Path:
    """The folder of an artefact while it is being made."""
    return folder.with_name(folder.name + PARTIAL)


@contextmanager
def artefact(folder: Path, inputs: object, *, keep_partial: bool = False) -> Iterator[Path]:
    """A sibling folder to write into, stamped and renamed to `folder` when the block succeeds.

    inputs        what the artefact is made from (JSON-able); its fingerprint goes into the stamp
    keep_partial  continue from what an interrupted run with the same inputs left, rather than start again
    """
    partial = partial_folder(folder)
    with explain_disk_errors(folder):
        if partial.is_symlink() or not (keep_partial and is_current(partial, inputs)):
            remove_folder(partial)
        partial.mkdir(parents=True, exist_ok=True)
        stamp = {"fingerprint": fingerprint(inputs), "inputs": inputs}
        if keep_partial:
            # The stamp comes first: the next run can tell whether the partial files are its own.
            write_json(partial / STAMP, stamp, sealed=True)
        yield partial
        files = {path.relative_to(partial).as_posix(): path for path in partial.rglob("*") if path.is_file()}
        checksums = {name: hash_file(files[name]) for name in sorted(files) if name not in UNSEALED}
        write_json(partial / STAMP, stamp | {"files": checksums}, sealed=True)
        replace_folder(partial, folder)


@contextmanager
def artefact_or_nothing(folder: Path, inputs: object) -> Iterator[Path]:
    """As `artefact`, but remove what a failed block wrote."""
    try:
        with artefact(folder, inputs) as partial:
            yield partial
    except BaseException:
        remove_folder(partial_folder(folder))
        raise


def clear_unless_current(folder: Path, inputs: object) -> None:
    """Keep a folder that work with these inputs left; if it belongs to other work, empty and stamp it."""
    if folder.is_symlink() or not is_current(folder, inputs):
        remove_folder(folder)
        write_json(folder / STAMP, {"fingerprint": fingerprint(inputs), "inputs": inputs}, sealed=True)


def forget_checksums() -> None:
    """Forget all cached checksums: a file that was restored may look unchanged."""
    _checked.clear()
