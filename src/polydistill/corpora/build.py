"""The steps of building a corpus: clean its parts, find equal lines, pack, find equal examples, join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polydistill.config.shared import Corpora
from polydistill.corpora.dedup import Items, find_repeats, reasons
from polydistill.corpora.documents import not_json
from polydistill.corpora.examples import SCHEMA
from polydistill.corpora.lines import not_utf8
from polydistill.corpora.near import bands_for
from polydistill.corpora.part_files import Into, PartFiles, work_into
from polydistill.corpora.part_work import Cleaning, Counted, Packing, clean_part, pack_part
from polydistill.corpora.parts import Reading, Text
from polydistill.corpora.pool import Pool, Task, Work

# (`cleaned` or `packed`, parts, all parts; 0: not known yet)
Progress = Callable[[str, int, int], None]
# The columns of a part's lines, or examples, that tell equal ones.
_HASH = {"lines": "hash", "examples": "id"}


class Build:
    """A corpus that is being built in a folder, which an earlier run may have begun."""

    def __init__(self, folder: Path, settings: Corpora, pool: Pool, progress: Progress) -> None:
        self.folder, self.settings, self.pool, self.progress = folder, settings, pool, progress

    def clean(self, texts: Sequence[Text], held_out_share: float) -> tuple[PartFiles, Counted]:
        """(the cleaned lines of each part, counts of all)."""
        settings = self.settings
        cleaning = Cleaning(
            settings.block_lines, settings.min_characters, held_out_share, settings.near_repeats
        )
        # A corpus without a document within the share is cleaned twice.
        again = "" if held_out_share == settings.held_out_share else "-first"
        files = PartFiles(self.folder, f"lines{again}")
        reading = Reading(settings.block_lines)
        seen = 0

        def missing() -> Iterator[Task]:
            nonlocal seen
            for index, part in enumerate(reading.parts(texts)):
                seen = index + 1
                if not files.has(index):
                    yield Task(index, part.place, (part,))

        for _ in self._finished(files, clean_part, cleaning, missing()):
            self.progress("cleaned", len(files), 0)
        counted = Counted(dropped=reading.dropped)
        for index in range(seen):
            counted.add(Counted.of(files.table(index).schema))
        _refuse_unreadable(counted, reading)
        return files, counted

    def pack(self, lines: PartFiles, packing: Packing) -> tuple[PartFiles, Counter[str]]:
        """(the examples of each part, lines dropped by reason): equal lines are dropped first."""
        sizes = [lines.table(index).num_rows for index in range(len(lines))]
        among = self._apart(lines, sizes)
        keep, lost = find_repeats(self.folder / "keep-lines", sizes, _items(lines, "lines"), among=among)
        dropped = reasons(lost)
        dropped["near_repeat"] = 0 if among is None else int((~among).sum())
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        files = PartFiles(self.folder, "examples")

        def missing() -> Iterator[Task]:
            for index in range(len(lines)):
                if not files.has(index):
                    kept = keep[starts[index] : starts[index + 1]].tobytes()
                    place = Counted.of(lines.table(index).schema).part
                    given = lines.place(index) if self.pool.shares_disk else lines.read(index)
                    yield Task(index, place, (given, kept))

        for _ in self._finished(files, pack_part, packing, missing()):
            self.progress("packed", len(files), len(lines))
        return files, dropped

    def _finished(self, files: PartFiles, work: Work, shared: object, tasks: Iterator[Task]) -> Iterator[int]:
        """The indices of tasks whose results are in `files`, in order of completion."""
        if not self.pool.shares_disk:
            for index, data in self.pool.map(work, shared, tasks):
                files.write(index, data)
                yield index
            return
        into = Into(work, shared, files.folder.resolve(), files.name)
        numbered = (replace(task, arguments=(task.index, *task.arguments)) for task in tasks)
        for index, file in self.pool.map(work_into, into, numbered):
            files.note(index, file.decode())
            yield index

    def _apart(self, lines: PartFiles, sizes: Sequence[int]) -> npt.NDArray[np.bool_] | None:
        """[lines] whether a line's document is no near-repeat; None if near-repeats are kept."""
        if self.settings.near_repeats is None or not sum(sizes):
            return None
        number, _ = bands_for(self.settings.near_repeats)

        def load(index: int) -> Items:
            table = lines.table(index)
            first = table.filter(pc.is_valid(table["bands"]))
            bands = first["bands"].combine_chunks().flatten().to_numpy()
            return Items(bands, np.repeat(first["split"].to_numpy(), number))

        documents = [int(_begins(lines, index).sum()) for index in range(len(lines))]
        keep, _ = find_repeats(self.folder / "keep-bands", [number * count for count in documents], load)
        apart = np.asarray(keep.reshape(-1, number).all(axis=1))
        among = np.memmap(self.folder / "apart", dtype=bool, mode="w+", shape=(sum(sizes),))
        start = document = 0
        for index, size in enumerate(sizes):
            among[start : start + size] = apart[document + np.cumsum(_begins(lines, index)) - 1]
            start += size
            document += documents[index]
        return among

    def join(self, examples: PartFiles, paths: Sequence[Path]) -> list[dict[str, int]]:
        """Write the examples of all parts to one file a split; returns each split's counts.

        Lines are unique, but parts of lines that were cut need not be: equal examples are dropped as lines
        are, and counted as `repeated`.
        """
        sizes = [examples.table(index).num_rows for index in range(len(examples))]
        keep, lost = find_repeats(self.folder / "keep-examples", sizes, _items(examples, "examples"))
        counts = [{"examples": 0, "characters": 0, "tokens": 0} for _ in paths]
        with ExitStack() as stack:
            writers = []
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                sink = stack.enter_context(pa.OSFile(str(path), "wb"))
                writers.append(stack.enter_context(pa.ipc.new_stream(sink, SCHEMA)))
            start = 0
            for index, size in enumerate(sizes):
                table = examples.table(index).filter(pa.array(keep[start : start + size]))
                start += size
                for split, writer in enumerate(writers):
                    chosen = table.filter(pc.equal(table["split"], pa.scalar(split, pa.uint8())))
                    if chosen.num_rows:
                        writer.write_table(chosen.select(SCHEMA.names))
                        counts[split]["examples"] += chosen.num_rows
                        counts[split]["characters"] += pc.sum(pc.utf8_length(chosen["text"])).as_py()
                        counts[split]["tokens"] += pc.sum(chosen["num_tokens"]).as_py()
        for split, each in enumerate(counts):
            each["repeated"] = sum(number for (loser, _), number in lost.items() if loser == split)
        return counts


def _begins(lines: PartFiles, index: int) -> npt.NDArray[np.bool_]:
    """[n] whether each line of a part is its document's first."""
    return np.asarray(pc.is_valid(lines.table(index)["bands"]).to_numpy())


def _items(files: PartFiles, kind: str) -> Callable[[int], Items]:
    def load(index: int) -> Items:
        table = files.table(index)
        return Items(table[_HASH[kind]].to_numpy(), table["split"].to_numpy())

    return load


def _refuse_unreadable(counted: Counted, reading: Reading) -> None:
    """Raise CorpusError for a file most of whose lines are not UTF-8, or no JSON."""
    for origin, tally in counted.tallies.items():
        if tally.bad * 2 > tally.lines:
            raise not_utf8(Path(origin), reading.fields[origin])
        if tally.bad_objects * 2 > tally.objects:
            raise not_json(Path(origin), reading.fields[origin])
