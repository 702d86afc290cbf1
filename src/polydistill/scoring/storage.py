"""Finished shards in shared storage: a folder or object storage, by `fsspec`.

A file's name holds its checksum. So incomplete and damaged files are recognised, whatever the storage
guarantees about renaming.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import xxhash

from polydistill.disk import fingerprint
from polydistill.errors import ClusterError, RecipeError
from polydistill.store.schema import shard_name

FIELD = "scoring.ray.storage"


def checksum(data: bytes) -> str:
    """xxh3-128 of a shard's bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


class ShardStorage:
    """The shards of one store under a URL.

    identity  of the store, which determines the folder
    Raises RecipeError for an unknown kind of URL, or one whose package is not installed.
    """

    def __init__(self, url: str, identity: dict[str, Any]) -> None:
        self.url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RecipeError(
                FIELD,
                url,
                f"cannot be used ({error})",
                "install the package named, or give a URL that fsspec supports, such as s3://bucket/scoring",
            ) from error
        self._folder = f"{root.rstrip('/')}/{fingerprint(identity)}"

    def put(self, index: int, data: bytes) -> None:
        """Write a shard's bytes."""
        with self._explained("written"):
            self._files.makedirs(self._folder, exist_ok=True)
            self._files.pipe_file(f"{self._folder}/{_name(index, checksum(data))}", data)

    def indices(self) -> dict[int, list[str]]:
        """Index → file names, of every shard in the storage, checked or not."""
        names: dict[int, list[str]] = {}
        with self._explained("read"):
            self._files.invalidate_cache()
            try:
                paths = self._files.ls(self._folder, detail=False)
            except FileNotFoundError:
                return {}
        for name in sorted(path.rsplit("/", 1)[-1] for path in paths):
            index = name.removeprefix("shard-").split(".")[0]
            if index.isdecimal():
                names.setdefault(int(index), []).append(name)
        return names

    def get(self, index: int, names: list[str]) -> bytes | None:
        """A shard's bytes; None if no file matches the checksum in its name."""
        for name in names:
            with self._explained("read"):
                data: bytes = self._files.cat_file(f"{self._folder}/{name}")
            if name == _name(index, checksum(data)):
                return data
        return None

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every storage raises its own types
            raise ClusterError(
                FIELD,
                self.url,
                f"cannot be {done} ({str(error).strip()[:200] or type(error).__name__})",
                "check the URL and that every machine may read and write there; the same command resumes",
            ) from error


def _name(index: int, digest: str) -> str:
    return shard_name(index).replace(".arrow", f".{digest}.arrow")
