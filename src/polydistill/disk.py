"""Files on disk: written whole or not at all, read with their damage named, and nothing of anybody else's."""

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

# Where a record has the checksum of the rest of it.
SEAL = "checksum_of_the_rest"
# No record of ours is nested so deeply; what is may end Python's stack in any of its readers.
MAX_DEPTH = 64
# An estimate of what a stage needs is taken for sure so far.
SURE = 0.75


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
    return read_sealed(path, kind)[0]


def read_sealed(path: Path, kind: type | tuple[type, ...]) -> tuple[Any, bool]:
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
            str(path),
            None,
            "is gone" if gone else f"cannot be read ({error.strerror})",
            "remove the folder of the artefact that it belongs to, and run the same command again"
            if gone
            else "check what lies there and who may read it",
        ) from error
    if reason is None and not isinstance(found, kind):
        wanted = " or ".join(_JSON_NAMES[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        reason = f"it holds {_JSON_NAMES.get(type(found), 'another value')} in place of {wanted}"
    if reason is not None:
        raise RunFolderError(
            str(path),
            None,
            f"is damaged: {reason}",
            "remove it, or the folder of the artefact that it belongs to, and run the same command again",
        )
    return found, sealed


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


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


def free_folder(output: Path) -> Path:
    """The absolute path of a folder that is not there yet, or empty; raises RunFolderError for any other."""
    output = output.expanduser().absolute()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise RunFolderError(
            "output", str(output), "is there and not empty", "choose another folder, or remove that one"
        )
    return output


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
                    str(path),
                    None,
                    f"is a link (to {path.readlink()}), and a run writes into its own folder alone",
                    "remove the link, or let `output` name a folder where there is room",
                )


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
        str(path),
        None,
        f"is {what}, and a run writes into files of its own alone",
        "remove it and run the same command again",
    )


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
            str(path),
            None,
            f"the stage {stage} needs about {missing / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free there",
            "make room and run the same command again, or choose another `output`",
        )


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
        str(path),
        None,
        f"a file there would be larger than a file may be ({what})",
        "raise that limit and run the same command again: what was whole stays",
    )


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
