"""Documents from files and data sets."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polydistill.config.shared import Source, TextRecipe
from polydistill.corpora.documents import Document, documents_of, no_field, not_json, rows
from polydistill.corpora.lines import Tally, explain_unreadable, hash_text_file, is_text_file, read_lines
from polydistill.disk import hash_text
from polydistill.errors import CorpusError

SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
# Lower bounds: the compression ratio of a text, and the bytes of a character.
COMPRESSED, CHARACTER_BYTES = 2, 1


def read_documents(
    sources: Sequence[Source], dropped: Counter[str], *, field: str, block_lines: int
) -> Iterator[Document]:
    """The documents of sources in order, streamed.

    dropped  counts by reason what could not be read
    field    where the recipe has the sources, for messages
    Raises CorpusError for a source that is missing or cannot be read.
    """
    for index, source in enumerate(sources):
        yield from source_documents(source, dropped, field=f"{field}[{index}]", block_lines=block_lines)


def source_documents(
    source: Source, dropped: Counter[str], *, field: str, block_lines: int
) -> Iterator[Document]:
    """The documents of one source, see `read_documents`."""
    documents = (
        _data_set(source, dropped, field) if source.dataset else _files(source, dropped, field, block_lines)
    )
    yield from _capped(documents, source.max_characters)


def source_identity(sources: Sequence[Source], *, field: str) -> list[dict[str, object]]:
    """The identity of sources: their settings and the hash of every file; a data set's name and version."""
    entries = []
    for index, source in enumerate(sources):
        # A file's path is not part of its content.
        entry = source.model_dump(mode="json", exclude={"path"})
        place = f"{field}[{index}]"
        if source.path is not None:
            entry["files"] = [hash_text_file(path, place) for path in list_files(source, place)]
        elif _is_folder(folder := Path(str(source.dataset)).expanduser(), place):
            del entry["dataset"]
            entry["files"] = [hash_text_file(path, place) for path in _files_below(folder, place)]
        entries.append(entry)
    return entries


def source_states(sources: Sequence[Source], *, field: str) -> dict[Path, tuple[int, int]]:
    """File → (size, time of the last change in nanoseconds) of every file of sources.

    Raises CorpusError for a file that a text has twice.
    """
    states: dict[Path, tuple[int, int]] = {}
    windows: dict[Path, list[tuple[int, int | None]]] = {}
    for index, source in enumerate(sources):
        place = f"{field}[{index}]"
        if source.path is None:
            continue
        end = None if source.num_lines is None else source.first_line + source.num_lines
        for path in list_files(source, place):
            real = path.resolve()
            for first, last in windows.setdefault(real, []):
                if (last is None or source.first_line < last) and (end is None or first < end):
                    raise CorpusError(
                        place,
                        str(path),
                        "is read twice: an earlier source of this text has it too",
                        "name each file once (a folder or a glob may include it)",
                    )
            windows[real].append((source.first_line, end))
            state = path.stat()
            states[path] = (state.st_size, state.st_mtime_ns)
    return states


def refuse_changed(before: Mapping[Path, tuple[int, int]], *, field: str) -> None:
    """Raise CorpusError if a file is no longer what `source_states` saw."""
    for path, (size, time) in before.items():
        state = path.stat() if path.is_file() else None
        if state is None or (state.st_size, state.st_mtime_ns) != (size, time):
            now = "it is gone" if state is None else f"{size:,} bytes then, {state.st_size:,} now"
            raise CorpusError(
                field,
                str(path),
                f"changed while it was read ({now})",
                "wait until it is written, then run the same command again",
            )


def source_bytes(sources: Sequence[Source], *, field: str) -> int:
    """A lower bound on the bytes of text: counts text files that are read whole or up to `max_characters`."""
    total = 0
    for index, source in enumerate(sources):
        if source.path is None or source.num_lines is not None or source.first_line > 1:
            continue
        files = [path for path in list_files(source, f"{field}[{index}]") if text_kind(path) == ".txt"]
        size = sum(path.stat().st_size * (COMPRESSED if path.suffix in COMPRESSIONS else 1) for path in files)
        capped = source.max_characters
        total += size if capped is None else min(size, capped * CHARACTER_BYTES)
    return total


def list_files(source: Source, field: str) -> list[Path]:
    """The files of a source, sorted; CorpusError if there are none."""
    name = str(source.path)
    path = Path(name).expanduser()
    if _is_folder(path, field):
        files = [file for file in _files_below(path, field) if text_kind(file) is not None]
        if not files:
            raise CorpusError(
                field, name, "a folder without text", f"put files there that end in {', '.join(SUFFIXES)}"
            )
        return files
    if is_text_file(path, field):
        return [path]
    # Path.glob accepts no absolute pattern.
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
    files = sorted(Path(match) for match in matches if Path(match).is_file())
    if not files:
        what = "no file matches" if glob.has_magic(name) else "no such file or folder"
        raise CorpusError(field, name, what, f"check the path; it is relative to {Path.cwd()}")
    return files


def check_texts(recipe: TextRecipe) -> None:
    """Raise CorpusError for a missing file of a recipe's text."""
    for place, sources in (recipe.texts | recipe.further_texts).items():
        check_sources(sources, place)


def check_sources(sources: Sequence[Source], place: str) -> None:
    """Raise CorpusError for a missing file of a text; `place` names its field."""
    for index, source in enumerate(sources):
        if source.path is not None:
            list_files(source, f"{place}[{index}]")


def _is_folder(path: Path, field: str) -> bool:
    with explain_unreadable(path, field):
        return path.is_dir()


def _files_below(folder: Path, field: str) -> list[Path]:
    """All files below a folder, sorted; CorpusError for an unreadable subfolder, which `rglob` would skip."""

    def refuse(error: OSError) -> None:
        with explain_unreadable(Path(error.filename), field):
            raise error

    paths = (Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names)
    return sorted(path for path in paths if path.is_file())


def text_kind(path: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet`, whatever the compression; None for another file."""
    name = path.name
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _files(source: Source, dropped: Counter[str], field: str, block_lines: int) -> Iterator[Document]:
    for path in list_files(source, field):
        kind = text_kind(path)
        if kind == ".parquet":
            yield from rows(_parquet(path, source, dropped, field), str(path))
            continue
        tally = Tally()
        lines = read_lines(path, dropped, field=field, whole=kind == ".jsonl", tally=tally)
        if kind == ".txt":
            last = None if source.num_lines is None else source.first_line - 1 + source.num_lines
            lines = islice(lines, source.first_line - 1, last)
        yield from documents_of(
            lines,
            source,
            str(path),
            jsonl=kind == ".jsonl",
            block_lines=block_lines,
            dropped=dropped,
            tally=tally,
            field=field,
        )
        if tally.bad_objects * 2 > tally.objects:
            raise not_json(path, field)


def _parquet(path: Path, source: Source, dropped: Counter[str], field: str) -> Iterator[str]:
    try:
        with explain_unreadable(path, field):
            file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if source.field not in names:
            raise no_field(source, path, names, field)
        for batch in file.iter_batches(batch_size=256, columns=[source.field]):
            for text in _strings(batch.column(0)):
                if isinstance(text, str):
                    yield text
                else:
                    dropped["not_utf8" if isinstance(text, bytes) else "not_text"] += 1
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            field, str(path), f"cannot be read as Parquet ({error})", "check that the file is whole"
        ) from error


def _strings(column: pa.Array) -> list[object]:
    """A column's values; b"" for a string that is not UTF-8, which Parquet does not check."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values: list[object] = []
        for value in column:
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                values.append(b"")
        return values


def _data_set(source: Source, dropped: Counter[str], field: str) -> Iterator[Document]:
    name = str(source.dataset)
    with dataset_errors(name, field):
        loaded = _load(source, name, field)
        while (row := next(loaded, None)) is not None:
            if source.field not in row:
                raise no_field(source, name, list(row), field)
            text = row[source.field]
            if isinstance(text, str):
                yield Document(hash_text(text), text.splitlines(), name, False)
            else:
                dropped["not_text"] += 1


@contextmanager
def dataset_errors(name: str, field: str) -> Iterator[None]:
    """Raise what `datasets` raises, in loading or in reading, as a CorpusError on `field`.dataset."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:  # of various types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(
            f"{field}.dataset",
            name,
            f"cannot be loaded ({first})",
            "check name, config and split (and unset HF_HUB_OFFLINE)",
        ) from error


def _load(source: Source, name: str, field: str) -> Iterator[dict[str, object]]:
    """The rows of a data set, reduced to the text's field: the other fields may be images."""
    import datasets

    folder = Path(name).expanduser()
    if any((folder / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json")):
        loaded = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.DatasetDict):
            if source.split not in loaded:
                raise CorpusError(
                    f"{field}.split",
                    source.split,
                    f"{name} has no such split",
                    f"choose one of {', '.join(loaded)}",
                )
            loaded = loaded[source.split]
    else:
        place = str(folder) if folder.is_dir() else name
        loaded = datasets.load_dataset(place, source.config, split=source.split, streaming=True)
    # A streamed data set may not know its columns before its first row.
    if loaded.column_names is None:
        return iter(loaded)
    if source.field not in loaded.column_names:
        raise no_field(source, name, loaded.column_names, field)
    return iter(loaded.select_columns([source.field]))


def _capped(documents: Iterator[Document], max_characters: int | None) -> Iterator[Document]:
    seen = 0
    for document in documents:
        yield document
        seen += sum(map(len, document.lines))
        if max_characters is not None and seen >= max_characters:
            return


def read_texts(sources: Sequence[Source], field: str) -> Iterator[str]:
    """Documents as single strings, without blank ones."""
    for document in read_documents(sources, Counter(), field=field, block_lines=1):
        text = "\n".join(document.lines).strip()
        if text:
            yield text
