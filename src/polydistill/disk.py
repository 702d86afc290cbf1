"""Files on disk: atomic writes, reads that report damage, and no writes outside a run's own files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import xxhash
from safetensors import SafetensorError

from polydistill.errors import DiskError, RunFolderError

# The key under which a record holds the checksum of its other entries.
# An object of a JSON file.
Json = dict[str, Any]
SEAL = "checksum_of_the_rest"
# None of our records is nested deeper; a deeper one may overflow Python's stack in any reader.
MAX_DEPTH = 64
# A stage is refused only if this share of its estimated size does not fit.
SURE = 0.75


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # An existing file of this name may be a link, hard or symbolic: create a new one, never write through
        # it.
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object, *, sealed: bool = False) -> None:
    """Write a value as indented JSON, atomically.

    sealed  add the value's own checksum: for a record (a dictionary) that lists which other files are whole
    """
    if sealed:
        # The checksum is of the value as it will be read: tuples become lists, and keys strings.
        read = json.loads(json.dumps(value))
        value = {**read, SEAL: fingerprint(read)}
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, kind: type | tuple[type, ...] = (dict, list)) -> Any:
    """The value in a JSON file; RunFolderError if it is missing, damaged, too deep or of another type.

    kind  the type, or types, that the value must have
    """
    return read_sealed(path, kind)[0]


def read_sealed(path: Path, kind: type | tuple[type, ...]) -> tuple[Any, bool]:
    """(the value in a JSON file, whether it contained its own checksum)."""
    value, sealed, reason = None, False, None
    try:
        value = json.loads(path.read_text("utf-8"))
        if _is_deep(value):
            reason = f"it is nested more than {MAX_DEPTH} times"
        elif isinstance(value, dict) and SEAL in value:
            sealed = True
            if value.pop(SEAL) != fingerprint(value):
                reason = "its checksum does not match"
    except RecursionError:
        reason = f"it is nested more than {MAX_DEPTH} times"
    except ValueError as error:  # not JSON, or not UTF-8
        reason = f"it is no longer JSON ({error})"
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise RunFolderError(
            str(path),
            None,
            "is gone" if gone else f"cannot be read ({error.strerror})",
            "remove the folder of the artefact that it belongs to, and run the same command again"
            if gone
            else "check what is there and who may read it",
        ) from error
    if reason is None and not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_JSON_NAMES[name] for name in kinds)
        reason = f"it holds {_JSON_NAMES.get(type(value), 'another value')} in place of {wanted}"
    if reason is not None:
        raise RunFolderError(
            str(path),
            None,
            f"is damaged: {reason}",
            "remove it, or the folder of the artefact that it belongs to, and run the same command again",
        )
    return value, sealed


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _is_deep(value: object) -> bool:
    """Whether lists and dictionaries are nested more than MAX_DEPTH times."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def read_record(path: Path) -> dict[str, Any]:
    """An optional JSON record: {} if it is missing or damaged."""
    try:
        record: dict[str, Any] = read_json(path, dict) if path.is_file() else {}
    except RunFolderError:
        return {}
    return record


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, in hexadecimal: a checksum against damage, not against malice."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_text(text: str) -> int:
    """A stable unsigned 64-bit hash of a string (surrogates, which UTF-8 cannot encode, included)."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def fingerprint(value: object) -> str:
    """32 hexadecimal digits for a JSON-able value, equal for equal values in any order of keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_folder(folder: Path, *, pattern: str = "*") -> str:
    """One fingerprint for the files of a folder (names and bytes), independent of their order on disk."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): hash_file(path) for path in files})


def free_folder(output: Path) -> Path:
    """The absolute path of a folder that does not exist or is empty; RunFolderError for any other."""
    output = output.expanduser().absolute()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise RunFolderError(
            "output", str(output), "exists and is not empty", "choose another folder, or remove that one"
        )
    return output


def links_in(folder: str, names: list[str]) -> list[str]:
    """The links among a folder's entries, for `shutil.copytree` to ignore: their targets belong to others."""
    return [name for name in names if (Path(folder) / name).is_symlink()]


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists; of a link, remove the link and not its target."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_links(folder: Path) -> None:
    """Raise RunFolderError for a link anywhere below a run's folder: writes would change other files."""
    for root, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            path = Path(root) / name
            if path.is_symlink():
                raise RunFolderError(
                    str(path),
                    None,
                    f"is a link (to {path.readlink()}), and a run writes only into its own folder",
                    "remove the link, or set `output` to a folder with enough space",
                )


@contextmanager
def open_own(path: Path) -> Iterator[IO[str]]:
    """A run's own text file, open to read and to append.

    Raises RunFolderError if it is a link or not a regular file: writes would go elsewhere.
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
        raise _not_own(path, "a hard link" if stat.S_ISREG(state.st_mode) else "not a regular file")
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="backslashreplace") as handle:
        yield handle


def _not_own(path: Path, what: str) -> RunFolderError:
    return RunFolderError(
        str(path),
        None,
        f"is {what}, and a run writes only into its own files",
        "remove it and run the same command again",
    )


def replace_folder(source: Path, target: Path) -> None:
    """Replace a folder with another; a crash in between never leaves a partial folder there."""
    old = target.with_name(target.name + ".old")
    remove_folder(old)
    if target.is_symlink() or target.exists():
        target.replace(old)
    source.replace(target)
    remove_folder(old)


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that a rename cannot overtake them."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left', 'file too large' and 'permission denied' into a DiskError with a remedy."""
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
                "free some space and run the same command again: finished work is kept",
            ) from error
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise DiskError(
                str(path), None, f"cannot be written ({error.strerror})", "choose another `output`"
            ) from error
        raise


def require_space(path: Path, needed: float, *, stage: str) -> None:
    """Raise DiskError if the output of a stage clearly does not fit on the disk.

    path    where it writes; files that an interrupted run left there count as written
    needed  estimated bytes; up to a quarter less may be free
    """
    free = shutil.disk_usage(_existing(path.absolute())).free
    missing = needed - bytes_below(path)
    if SURE * missing > free:
        raise DiskError(
            str(path),
            None,
            f"the stage {stage} needs about {missing / 2**20:,.1f} MiB, and only {free / 2**20:,.1f} MiB "
            "are free",
            "free some space and run the same command again, or choose another `output`",
        )


def bytes_below(folder: Path) -> int:
    """Total bytes of the files in a folder; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_file_limit(error: BaseException) -> bool:
    """Whether an error means that a file would exceed the size limit; safetensors reports it only as text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.EFBIG
    if any(sign in str(error) for sign in ("os error 27", "File too large")):
        return True
    # PyTorch reports only that it failed.
    return any(sign in str(error) for sign in _TORCH_FAILED) and _largest_file() is not None


def file_limit(path: Path | str) -> DiskError:
    """The error for a file that would exceed the size limit."""
    limit = _largest_file()
    what = "the file system's limit" if limit is None else f"{limit / 2**20:,.1f} MiB, set by ulimit -f"
    return DiskError(
        str(path),
        None,
        f"a file there would exceed the size limit ({what})",
        "raise that limit and run the same command again: finished work is kept",
    )


def _largest_file() -> int | None:
    """Most bytes of a file that this process writes; None: no limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


# PyTorch's messages for a file that could not be written to its end.
_TORCH_FAILED = ("PytorchStreamWriter failed", "basic_ios::clear: iostream error", "unexpected pos ")
_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def _is_full(error: Exception) -> bool:
    """Whether an error means a full disk; safetensors and torch report it only as text."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(sign in str(error) for sign in ("os error 28", "No space left", *_TORCH_FAILED))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process; a second process gets an error that names the holder."""
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


def lock_holder(folder: Path) -> str | None:
    """The process that has locked a run's folder; None: no process."""
    import fcntl

    with suppress(OSError), (folder / ".lock").open(encoding="utf-8", errors="replace") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle.read().strip() or "unknown"
    return None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
