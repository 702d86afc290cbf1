"""Finished shards in shared storage: a folder or object storage, by `fsspec`.

A file's name holds its checksum. So incomplete and damaged files are recognised, whatever the storage
guarantees about renaming.
"""

from __future__ import annotations

from typing import Any

import xxhash

from polydistill.disk import fingerprint
from polydistill.remote import explain_storage, storage_at
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
        self._files, root = storage_at(url, FIELD)
        self._folder = f"{root}/{fingerprint(identity)}"

    def put(self, index: int, data: bytes) -> None:
        """Write a shard's bytes."""
        with explain_storage(self.url, FIELD, "written"):
            self._files.makedirs(self._folder, exist_ok=True)
            self._files.pipe_file(f"{self._folder}/{_name(index, checksum(data))}", data)

    def indices(self) -> dict[int, list[str]]:
        """Index → file names, of every shard in the storage, checked or not."""
        names: dict[int, list[str]] = {}
        with explain_storage(self.url, FIELD, "read"):
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
            with explain_storage(self.url, FIELD, "read"):
                data: bytes = self._files.cat_file(f"{self._folder}/{name}")
            if name == _name(index, checksum(data)):
                return data
        return None


def _name(index: int, digest: str) -> str:
    return shard_name(index).replace(".arrow", f".{digest}.arrow")
