"""Runs on storage that `fsspec` knows: artefacts are put there whole, and fetched by another machine.

`<url>/<artefact>/` holds the files that an artefact's stamp lists, and then its stamp: without a stamp, an
artefact is not there. What is fetched must have the stamp's checksums.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from polydistill.artefacts import STAMP, artefact, partial_folder
from polydistill.disk import fingerprint, hash_file, require_space
from polydistill.errors import ClusterError, RecipeError


def is_url(place: str) -> bool:
    """Whether a place is a URL, not a folder."""
    return "://" in place


def storage_at(url: str, field: str) -> tuple[Any, str]:
    """(file system, path) of a URL; RecipeError for an unknown kind, or one whose package is missing."""
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RecipeError(
            field,
            url,
            f"cannot be used ({error})",
            "install the package named, or give a URL that fsspec supports, such as s3://bucket/folder",
        ) from error
    return files, root.rstrip("/")


@contextmanager
def explain_storage(url: str, field: str, done: str) -> Iterator[None]:
    """Raise what a storage raises as a ClusterError; `done` is `read` or `written`."""
    try:
        yield
    except Exception as error:  # every storage raises its own types
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(
            field,
            url,
            f"cannot be {done} ({str(error).strip()[:200] or type(error).__name__})",
            "check the URL and that this machine (on a cluster: every machine) may read and write there; the "
            "same command resumes",
        ) from error


class RemoteRun:
    """A run's artefacts under a URL.

    field  where the URL is from, for messages
    """

    def __init__(self, url: str, field: str) -> None:
        self.url, self.field = url, field
        self._files, self._root = storage_at(url, field)

    def fetch(self, name: str, inputs: object, folder: Path) -> bool:
        """Fetch an artefact made from exactly these inputs into a folder; False if it is not there.

        Raises ClusterError if the storage cannot be read or a file is not what its stamp says, and DiskError
        if the disk has no room.
        """
        stamp = self._stamp(name)
        if stamp is None or stamp["fingerprint"] != fingerprint(inputs):
            return False
        with explain_storage(self.url, self.field, "read"):
            size = sum(self._files.size(f"{self._root}/{name}/{file}") or 0 for file in stamp["files"])
        require_space(partial_folder(folder), size, stage=name)
        with artefact(folder, inputs) as partial:
            for file, checksum in stamp["files"].items():
                target = partial / file
                if not target.resolve().is_relative_to(partial.resolve()):
                    raise self._damaged(name, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                with explain_storage(self.url, self.field, "read"):
                    self._files.get_file(f"{self._root}/{name}/{file}", str(target))
                if hash_file(target) != checksum:
                    raise self._damaged(name, file)
        return True

    def put(self, name: str, folder: Path) -> bool:
        """Put an artefact there; False if it is there already."""
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text("utf-8"))
        there = self._stamp(name)
        if there is not None and there["fingerprint"] == stamp["fingerprint"]:
            return False
        with explain_storage(self.url, self.field, "written"):
            if there is not None:
                # Until the new stamp is there, the place holds no artefact.
                self._files.rm_file(f"{self._root}/{name}/{STAMP}")
            for file in [*stamp["files"], STAMP]:
                place = f"{self._root}/{name}/{file}"
                self._files.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
                self._files.put_file(str(folder / file), place)
        return True

    def _stamp(self, name: str) -> dict[str, Any] | None:
        with explain_storage(self.url, self.field, "read"):
            self._files.invalidate_cache()
            try:
                data = self._files.cat_file(f"{self._root}/{name}/{STAMP}")
            except FileNotFoundError:
                return None
        try:
            stamp = json.loads(data)
        except ValueError:
            stamp = None
        if not isinstance(stamp, dict) or not isinstance(stamp.get("files"), dict):
            raise self._damaged(name, STAMP)
        return stamp

    def _damaged(self, name: str, file: str) -> ClusterError:
        return ClusterError(
            self.field,
            f"{self.url}/{name}",
            f"is damaged: its file {file} is not what was put there",
            "remove that folder there, and upload it again (`polydistill store upload`)",
        )
