"""Put a run's corpora and stores on storage, from which another machine trains."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from polydistill.artefacts import artefact_places, check_artefact
from polydistill.disk import bytes_below
from polydistill.errors import RunFolderError
from polydistill.remote import RemoteRun

# What takes long before training; a tokenizer is made again in seconds, and a student has `polydistill push`.
UPLOADED = ("corpora/", "store/")


def upload_run(run: Path, url: str, console: Console) -> int:
    """Put the artefacts there that are missing, each checked first; returns their number.

    run  a run's folder; what it reused from other runs is put there too
    url  a URL that `fsspec` knows
    Raises RunFolderError if the run has no corpus or store, or one is damaged, and ClusterError if the
    storage refuses.
    """
    places = artefact_places(run) if run.is_dir() else {}
    chosen = {name: place for name, place in places.items() if name.startswith(UPLOADED)}
    if not chosen:
        raise RunFolderError(
            "run",
            str(run),
            "has no corpus and no store",
            "name a run's folder; `polydistill score RECIPE` makes them",
        )
    remote = RemoteRun(url, "url")
    number = 0
    for name, place in sorted(chosen.items()):
        check_artefact(place)
        new = remote.put(name, place)
        number += new
        size = f"{bytes_below(place) / 2**20:,.1f} MiB"
        console.print(f"{name}: {size if new else 'is there already'}", markup=False)
    console.print(f"{number} uploaded to {url}; train elsewhere with --set reuse=[{url}]", markup=False)
    return number
