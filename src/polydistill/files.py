"""Artefacts on disk: written whole or not at all, and stamped with what they were made from.

An artefact is a folder that holds `stamp.json`: the fingerprint of everything that it was made from,
in readable form, and the checksums of its files. A stage that finds an artefact with the fingerprint that it would
write, and whole, does nothing; a damaged one is named.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from polydistill.errors import DiskError, RunFolderError

STAMP = "stamp.json"
PARTIAL = ".partial"
# A run's record of where its artefacts lie.
ARTEFACTS = "artefacts.json"
# What people may write into: nothing is made from it.
UNSEALED = {STAMP, "README.md"}
# Where a record has the checksum of the rest of it.
SEAL = "checksum_of_the_rest"
# An estimate of what a stage needs is taken for sure so far.
SURE = 0.75
# Checksums of files that this process has read already, by path, size and time of change.
_checked: dict[tuple[str, int, int], str] = {}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with explain_disk_errors(path):
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write a value as indented JSON, whole or not at all.

    sealed  put the value's own checksum into it, for a record (a dictionary) that belongs to no artefact
    """
    if sealed:
        value = {**value, SEAL: fingerprint(value)}
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; RunFolderError where it is damaged."""
    reason = None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        found, reason = None, f"it is no longer JSON ({error})"
    if isinstance(found, dict) and SEAL in found:
        seal = found.pop(SEAL)
        reason = None if seal == fingerprint(found) else "its checksum is another"
    if reason is not None:
        raise RunFolderError(
            str(path), None, f"is damaged: {reason}",
            "remove it, or the folder of the artefact that it belongs to, and run the same command again",
        )  # fmt: skip
    return found


def read_record(path: Path) -> dict[str, Any]:
    """A JSON record that can be done without: {} where it is missing or damaged."""
    try:
        found = read_json(path) if path.is_file() else {}
    except RunFolderError:
        return {}
    return found if isinstance(found, dict) else {}


def artefact_places(run: Path) -> dict[str, Path]:
    """Where a run's artefacts lie, by their names: in its own folder, or in another run's that it reuses."""
    # A path within the folder counts from it, and an absolute one stays itself.
    return {name: run / place for name, place in read_json(run / ARTEFACTS).items()}


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, in hexadecimal: a checksum against damage, not against malice."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_text(text: str) -> int:
    """A stable unsigned 64-bit hash of a string (surrogates, which UTF-8 cannot carry, included)."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits for a JSON-able value, equal for equal values whatever the order of keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_folder(folder: Path, *, pattern: str = "*") -> str:
    """One fingerprint for the files of a folder (names and bytes), whatever the order on disk."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): hash_file(path) for path in files})


def is_current(folder: Path, inputs: Any) -> bool:
    """Whether a whole artefact stands in `folder` that was made from just these inputs.

    Raises RunFolderError if it does, and a file of it is missing or has other bytes than were written.
    """
    stamp = folder / STAMP
    if not stamp.is_file():
        return False
    found = read_json(stamp)
    if not isinstance(found, dict) or found.get("fingerprint") != fingerprint(inputs):
        return False
    _check_files(folder, found)
    return True


def check_artefact(folder: Path) -> int:
    """Raise RunFolderError if a file of an artefact is missing or damaged; return how many files were checked."""
    found = read_json(folder / STAMP)
    return _check_files(folder, found if isinstance(found, dict) else {})


def artefacts_in(folder: Path) -> list[Path]:
    """The artefacts below a folder, half-made ones and folders of checkpoints left out."""
    found = sorted(path.parent for path in folder.rglob(STAMP))
    return [path for path in found if path.suffix not in (PARTIAL, ".old") and path.name != "checkpoints"]


def _check_files(folder: Path, stamp: dict[str, Any]) -> int:
    # An artefact of an earlier version has no checksums.
    checksums = stamp.get("files", {})
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_file() or _checksum(path) != checksum:
            raise RunFolderError(
                str(folder), None,
                f"is damaged: its file {name} is {'not what was written' if path.is_file() else 'gone'}",
                "remove that folder and run the same command again: it is made anew, and what is whole stays",
            )  # fmt: skip
    return len(checksums)


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
        if not (keep_partial and is_current(partial, inputs)):
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        stamp = {"fingerprint": fingerprint(inputs), "inputs": inputs}
        if keep_partial:
            # The stamp comes first, so that the next run knows whether the parts are its own.
            write_json(partial / STAMP, stamp)
        yield partial
        files = {path.relative_to(partial).as_posix(): path for path in partial.rglob("*") if path.is_file()}
        checksums = {name: hash_file(files[name]) for name in sorted(files) if name not in UNSEALED}
        write_json(partial / STAMP, stamp | {"files": checksums})
        replace_folder(partial, folder)


@contextmanager
def artefact_or_nothing(folder: Path, inputs: Any) -> Iterator[Path]:
    """As `artefact`, but what a failed block has written is removed."""
    try:
        with artefact(folder, inputs) as partial:
            yield partial
    except BaseException:
        shutil.rmtree(partial_folder(folder), ignore_errors=True)
        raise


def free_folder(output: Path) -> Path:
    """The absolute path of a folder that is not there yet, or empty; raises RunFolderError for any other."""
    output = output.expanduser().absolute()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise RunFolderError(
            "output", str(output), "is there and not empty", "choose another folder, or remove that one"
        )
    return output


def clear_unless_current(folder: Path, inputs: Any) -> None:
    """Keep a folder that work with these inputs left behind; empty and stamp it anew if it was other work's."""
    if not is_current(folder, inputs):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / STAMP, {"fingerprint": fingerprint(inputs), "inputs": inputs})


def replace_folder(source: Path, target: Path) -> None:
    """Put a whole folder in the place of another; a crash in between leaves no half of either in that place."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    source.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that a rename cannot come before them."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left' and 'permission denied' into a message that says where and what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if _is_full(error):
            free = shutil.disk_usage(_existing(path)).free
            raise DiskError(
                str(path),
                None,
                f"no space left on the device ({free / 2**20:.0f} MiB free)",
                "make room and run the same command again: what was whole stays",
            ) from error
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise DiskError(
                str(path), None, f"cannot be written ({error.strerror})", "choose another `output`"
            ) from error
        raise


def require_space(path: Path, needed: float, *, stage: str) -> None:
    """Raise DiskError if a stage would surely not find room for what it is about to write.

    path    where it writes; what an interrupted run has left there counts as written already
    needed  bytes, as near as is known before; a quarter less may be free
    """
    free = shutil.disk_usage(_existing(path.absolute())).free
    missing = needed - bytes_below(path)
    if SURE * missing > free:
        raise DiskError(
            str(path), None,
            f"the stage {stage} needs about {missing / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free there",
            "make room and run the same command again, or choose another `output`",
        )  # fmt: skip


def bytes_below(folder: Path) -> int:
    """Bytes of the files of a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def _is_full(error: Exception) -> bool:
    """Whether an error means a full disk; safetensors and torch say so in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(sign in str(error) for sign in ("os error 28", "No space left", "PytorchStreamWriter failed"))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a second process is told who holds it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise RunFolderError(
                "output",
                str(folder),
                f"in use by process {holder}",
                "wait for it, or choose another `output`",
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
