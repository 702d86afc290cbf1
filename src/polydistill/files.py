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
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
# No record of ours is nested so deeply; what is may end Python's stack in any of its readers.
MAX_DEPTH = 64
# An estimate of what a stage needs is taken for sure so far.
SURE = 0.75
# Checksums of files that this process has read already, by path, size and time of change.
_checked: dict[tuple[str, int, int], str] = {}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is there under this name may be a link, hard or symbolic: a new file is made, nothing is written through.
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        except OSError:
            # A part of a file is in nobody's way, and takes no room.
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write a value as indented JSON, whole or not at all.

    sealed  put the value's own checksum into it, for a record (a dictionary) that says what else is whole
    """
    if sealed:
        # As it is read: a tuple becomes a list, and a key a string.
        read = json.loads(json.dumps(value))
        value = {**value, SEAL: fingerprint(read)}
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, kind: type | tuple[type, ...] = (dict, list)) -> Any:
    """The value in a JSON file; RunFolderError where it is gone, damaged, nested too deeply or of another type.

    kind  the type, or types, that the value must have
    """
    return _read_sealed(path, kind)[0]


def _read_sealed(path: Path, kind: type | tuple[type, ...]) -> tuple[Any, bool]:
    """(the value in a JSON file, whether it had its own checksum in it)."""
    found, sealed, reason = None, False, None
    try:
        found = json.loads(path.read_text("utf-8"))
        if _is_deep(found):
            reason = f"it is nested more than {MAX_DEPTH} times"
        elif isinstance(found, dict) and SEAL in found:
            sealed = True
            if found.pop(SEAL) != fingerprint(found):
                reason = "its checksum is another"
    except RecursionError:
        reason = f"it is nested more than {MAX_DEPTH} times"
    except ValueError as error:  # not JSON, or not UTF-8
        reason = f"it is no longer JSON ({error})"
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise RunFolderError(
            str(path), None, "is gone" if gone else f"cannot be read ({error.strerror})",
            "remove the folder of the artefact that it belongs to, and run the same command again"
            if gone else "check what lies there and who may read it",
        ) from error  # fmt: skip
    if reason is None and not isinstance(found, kind):
        wanted = " or ".join(_JSON_NAMES[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        reason = f"it holds {_JSON_NAMES.get(type(found), 'another value')} in place of {wanted}"
    if reason is not None:
        raise RunFolderError(
            str(path), None, f"is damaged: {reason}",
            "remove it, or the folder of the artefact that it belongs to, and run the same command again",
        )  # fmt: skip
    return found, sealed


_JSON_NAMES = {
    dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


def _is_deep(value: Any) -> bool:
    """Whether lists and dictionaries are nested more than MAX_DEPTH times."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            children = one.values() if isinstance(one, dict) else one
            inner += (
                [child for child in children if isinstance(child, dict | list)]
                if isinstance(one, dict | list)
                else []
            )
        if not inner:
            return False
        level = inner
    return True


def read_record(path: Path) -> dict[str, Any]:
    """A JSON record that can be done without: {} where it is missing or damaged."""
    try:
        found: dict[str, Any] = read_json(path, dict) if path.is_file() else {}
    except RunFolderError:
        return {}
    return found


def artefact_places(run: Path) -> dict[str, Path]:
    """Where a run's artefacts lie, by their names: in its own folder, or in another run's that it reuses."""
    found = read_json(run / ARTEFACTS, dict)
    if not all(isinstance(place, str) for place in found.values()):
        raise RunFolderError(
            str(run / ARTEFACTS), None, "is damaged: a place in it is no path",
            "remove it and run the same command again: it is made anew",
        )  # fmt: skip
    # A path within the folder counts from it, and an absolute one stays itself.
    return {name: run / place for name, place in found.items()}


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
    found, sealed = _read_sealed(folder / STAMP, dict)
    files = found.get("files")
    # Earlier versions did not seal stamps; none of them wrote an artefact of no file.
    whole = files is None or (isinstance(files, dict) and (files or sealed))
    if not whole or not all(isinstance(one, str) for one in (files or {}).values()):
        raise RunFolderError(
            str(folder / STAMP), None, "is damaged: its list of files is empty or no list of checksums",
            "remove that folder and run the same command again: it is made anew, and what is whole stays",
        )  # fmt: skip
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
        str(folder), None, f"is damaged: its file {name} is {how}",
        "remove that folder and run the same command again: it is made anew, and what is whole stays",
    )  # fmt: skip


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
    if folder.is_symlink() or not is_current(folder, inputs):
        remove_folder(folder)
        write_json(folder / STAMP, {"fingerprint": fingerprint(inputs), "inputs": inputs}, sealed=True)


def links_in(folder: str, names: list[str]) -> list[str]:
    """Of a folder's entries those that are links, for `shutil.copytree` to ignore: what they lead to is somebody else's."""
    return [name for name in names if (Path(folder) / name).is_symlink()]


def remove_folder(folder: Path) -> None:
    """Remove a folder if it is there; of a link, the link and not what it leads to."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_links(folder: Path) -> None:
    """Raise RunFolderError if there is a link anywhere below a run's folder: what the run writes there would change files
    of somebody else.
    """
    for root, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            path = Path(root) / name
            if path.is_symlink():
                raise RunFolderError(
                    str(path), None, f"is a link (to {path.readlink()}), and a run writes into its own folder alone",
                    "remove the link, or let `output` name a folder where there is room",
                )  # fmt: skip


@contextmanager
def open_own(path: Path) -> Iterator[IO[str]]:
    """A run's own text file, open to read and to append; RunFolderError if it is a link or no file, for what is written
    to it would go elsewhere.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _not_own(path, "a link") from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        raise _not_own(path, "a hard link" if stat.S_ISREG(state.st_mode) else "no file")
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="backslashreplace") as handle:
        yield handle


def _not_own(path: Path, what: str) -> RunFolderError:
    return RunFolderError(
        str(path), None, f"is {what}, and a run writes into files of its own alone",
        "remove it and run the same command again",
    )  # fmt: skip


def replace_folder(source: Path, target: Path) -> None:
    """Put a whole folder in the place of another; a crash in between leaves no half of either in that place."""
    old = target.with_name(target.name + ".old")
    remove_folder(old)
    if target.is_symlink() or target.exists():
        target.replace(old)
    source.replace(target)
    remove_folder(old)


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that a rename cannot come before them."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left', 'file too large' and 'permission denied' into a message that says where and what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_file_limit(error):
            raise file_limit(path) from error
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


def is_file_limit(error: BaseException) -> bool:
    """Whether an error means that a file would be larger than a file may be; safetensors says so in words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.EFBIG
    if any(sign in str(error) for sign in ("os error 27", "File too large")):
        return True
    # PyTorch says only that it failed.
    return any(sign in str(error) for sign in _TORCH_FAILED) and _largest_file() is not None


def file_limit(path: Path | str) -> DiskError:
    """The error of a file that would be larger than a file may be."""
    limit = _largest_file()
    what = "the file system's limit" if limit is None else f"{limit / 2**20:,.1f} MiB, by ulimit -f"
    return DiskError(
        str(path), None, f"a file there would be larger than a file may be ({what})",
        "raise that limit and run the same command again: what was whole stays",
    )  # fmt: skip


def _largest_file() -> int | None:
    """Bytes that a file of this process may have; None: as many as there is room for."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


# How PyTorch says that a file could not be written to its end.
_TORCH_FAILED = ("PytorchStreamWriter failed", "basic_ios::clear: iostream error", "unexpected pos ")
_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def _is_full(error: Exception) -> bool:
    """Whether an error means a full disk; safetensors and torch say so in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(sign in str(error) for sign in ("os error 28", "No space left", *_TORCH_FAILED))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a second process is told who holds it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open_own(folder / ".lock") as handle:
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
