"""Documents from files and data sets."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from polydistill.config import Source
from polydistill.corpora.lines import read_lines
from polydistill.errors import CorpusError
from polydistill.files import hash_file, hash_text

SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
# A block without a line that starts a new one ends here.
MAX_BLOCKS = 16


class Document(NamedTuple):
    """A document, or a block of lines of a file that has none.

    key     a hash of its content, which decides whether it is held out
    lines   raw, in order
    origin  the file or data set
    joined  whether it goes on where the last document of the same origin ended
    """

    key: int
    lines: list[str]
    origin: str
    joined: bool


def read_documents(
    sources: Sequence[Source], dropped: Counter[str], *, field: str, block_lines: int
) -> Iterator[Document]:
    """The documents of sources in order, streamed.

    dropped  counts what could not be read, by reason
    field    where the sources stand in the recipe, for messages
    Raises CorpusError for what is missing or cannot be read.
    """
    for index, source in enumerate(sources):
        location = f"{field}[{index}]"
        documents = _data_set(source, location) if source.dataset else _files(source, dropped, location, block_lines)
        yield from _capped(documents, source.max_characters)


def source_identity(sources: Sequence[Source], *, field: str) -> list[dict[str, Any]]:
    """What sources are, by content: settings and the hash of every file; a data set by its name and version."""
    found = []
    for index, source in enumerate(sources):
        # Where a file lies is not what it says.
        entry = source.model_dump(mode="json", exclude={"path"})
        if source.path is not None:
            entry["files"] = [hash_file(path) for path in list_files(source, f"{field}[{index}]")]
        elif Path(str(source.dataset)).is_dir():
            entry["files"] = [hash_file(p) for p in sorted(Path(str(source.dataset)).rglob("*")) if p.is_file()]
        found.append(entry)
    return found


def list_files(source: Source, field: str) -> list[Path]:
    """The files of a source, sorted; CorpusError if there are none."""
    name = str(source.path)
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) is not None)
        if not found:
            raise CorpusError(field, name, "a folder without text", f"put files there that end in {', '.join(SUFFIXES)}")
        return found
    if path.is_file():
        return [path]
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        what = "no file matches" if glob.has_magic(name) else "no such file or folder"
        raise CorpusError(field, name, what, f"check the path; it counts from {Path.cwd()}")
    return found


def _kind(path: Path) -> str | None:
    name = path.name
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _files(source: Source, dropped: Counter[str], field: str, block_lines: int) -> Iterator[Document]:
    for path in list_files(source, field):
        kind = _kind(path)
        if kind == ".parquet":
            yield from _rows(_parquet(path, source, field), str(path))
        elif kind == ".jsonl":
            yield from _rows(_jsonl(path, source, dropped, field), str(path))
        else:
            last = None if source.num_lines is None else source.first_line - 1 + source.num_lines
            lines = islice(read_lines(path, dropped, field=field), source.first_line - 1, last)
            if source.documents == "lines":
                yield from _rows(lines, str(path))
            elif source.documents == "blank_lines":
                yield from _rows(_paragraphs(lines), str(path))
            else:
                yield from _blocks(lines, str(path), block_lines)


def _rows(texts: Iterator[str], origin: str) -> Iterator[Document]:
    for text in texts:
        yield Document(hash_text(text), text.splitlines(), origin, False)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line)
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def _blocks(lines: Iterator[str], origin: str, block_lines: int) -> Iterator[Document]:
    """Blocks whose borders are content: a line whose hash divides by `block_lines` starts a new one.

    A block's key is its first line's hash. So lines that are added behind, or elsewhere, or within a block,
    do not move the others: blocks of fixed length would all shift.
    """
    held: list[str] = []
    key, first = 0, True
    for line in lines:
        hashed = hash_text(line.strip())
        if held and (hashed % block_lines == 0 or len(held) >= MAX_BLOCKS * block_lines):
            yield Document(key, held, origin, not first)
            held, first = [], False
        if not held:
            key = hashed
        held.append(line)
    if held:
        yield Document(key, held, origin, not first)


def _jsonl(path: Path, source: Source, dropped: Counter[str], field: str) -> Iterator[str]:
    seen = bad = 0
    for line in read_lines(path, dropped, field=field):
        if not line.strip():
            continue
        seen += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            bad += 1
            dropped["not_json"] += 1
            if bad >= 3 and bad * 2 > seen:
                raise CorpusError(
                    field, str(path), "most of its lines are not JSON", "give one JSON object a line, or end its name in .txt"
                ) from None
            continue
        if not isinstance(row, dict) or source.field not in row:
            have = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
            raise CorpusError(f"{field}.field", source.field, f"{path} has no such field (it has {have})", "name the text's field")
        if isinstance(row[source.field], str):
            yield row[source.field]
        else:
            dropped["not_text"] += 1


def _parquet(path: Path, source: Source, field: str) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if source.field not in names:
            raise CorpusError(
                f"{field}.field", source.field, f"{path} has no such field (it has {', '.join(names)})", "name the text's field"
            )
        for batch in file.iter_batches(batch_size=256, columns=[source.field]):
            yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(field, str(path), f"cannot be read as Parquet ({error})", "check that the file is whole") from error


def _data_set(source: Source, field: str) -> Iterator[Document]:
    import datasets

    name = str(source.dataset)
    try:
        if (Path(name) / "dataset_info.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            loaded: Any = datasets.load_from_disk(name)
            loaded = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(name, source.config, split=source.split, streaming=True)
    except Exception as error:  # `datasets` raises many kinds
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(
            f"{field}.dataset", name, f"cannot be loaded ({first})", "check name, config and split (and unset HF_HUB_OFFLINE)"
        ) from error
    for row in loaded:
        if source.field not in row:
            raise CorpusError(
                f"{field}.field", source.field, f"{name} has no such field (it has {', '.join(row)})", "name the text's field"
            )
        yield Document(hash_text(row[source.field]), row[source.field].splitlines(), name, False)


def _capped(documents: Iterator[Document], max_characters: int | None) -> Iterator[Document]:
    seen = 0
    for document in documents:
        yield document
        seen += sum(map(len, document.lines))
        if max_characters is not None and seen >= max_characters:
            return
