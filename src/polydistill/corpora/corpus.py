"""A language's corpus: read, clean, split, deduplicate, pack."""

from __future__ import annotations

import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polydistill.config.shared import Corpora, Source
from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.dedup import EVALUATION, HELD_OUT, TRAIN, Spool
from polydistill.corpora.examples import Examples, drop_repeated, write_examples
from polydistill.corpora.packing import CountTokens, pack
from polydistill.corpora.sources import list_files, read_documents
from polydistill.disk import explain_disk_errors, write_json
from polydistill.errors import CorpusError

DROPPED = (
    "empty",
    "too_short",
    "too_long",
    "not_utf8",
    "not_json",
    "not_text",
    "duplicate",
    "in_held_out",
    "in_training",
)


@dataclass
class Counted:
    """Counts of reading and cleaning: lines dropped by reason, lines changed, and the text of each origin.

    places  the smallest and the largest place (`place_of`) of a document with text, texts that are wholly
            for evaluation left out
    """

    dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DROPPED, 0)))
    changed: Counter[str] = field(default_factory=Counter)
    origins: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    places: tuple[float, float] = (1.0, 0.0)


def place_of(key: int) -> float:
    """A document's place in [0, 1), by its content hash alone: those below a share are held out."""
    # The multiplication comes first, because block keys share their remainders by construction.
    return float((key * 0x9E3779B97F4A7C15 >> 11) % (1 << 53)) / (1 << 53)


class CorpusFields(NamedTuple):
    """Where a recipe has a corpus' texts, for messages: `languages.sw.text`, `languages.sw.evaluation`."""

    text: str
    evaluation: str

    def evaluation_text(self, name: str) -> str:
        """The field of a further evaluation text."""
        return f"{self.evaluation}.{name}"


def build_corpus(
    folder: Path,
    *,
    sources: Sequence[Source],
    evaluation: Mapping[str, Sequence[Source]],
    settings: Corpora,
    count_tokens: CountTokens,
    max_tokens: int,
    fields: CorpusFields,
) -> dict[str, Any]:
    """Write train.arrow, held_out.arrow, evaluation/<name>.arrow and statistics.json into a folder.

    count_tokens, max_tokens  see `pack`; special tokens are not counted
    fields                    where the recipe has the texts, for messages
    Memory does not grow with the text: cleaned lines are spooled in the folder, and deduplicated on disk.
    Raises CorpusError if no text is left to train on or to hold out.
    """
    counted = Counted()
    names = list(evaluation)
    groups: list[tuple[Sequence[Source], str, int | None]] = [(sources, fields.text, None)]
    groups += [
        (evaluation[name], fields.evaluation_text(name), EVALUATION + i) for i, name in enumerate(names)
    ]
    spool = Spool(folder / "spool")
    with explain_disk_errors(folder):
        spool.write(_cleaned_lines(groups, settings, counted, settings.held_out_share))
        lowest, highest = counted.places
        held_out_by = "share"
        if settings.held_out_share <= lowest < highest:
            # Too few documents for the share: the first of them by its content is held out.
            counted = Counted()
            spool = Spool(folder / "spool")
            spool.write(_cleaned_lines(groups, settings, counted, math.nextafter(lowest, 1.0)))
            held_out_by = "first"
        keep = spool.keep(counted.dropped)
        splits: dict[str, dict[str, Any]] = {}
        targets = [("train", TRAIN), ("held_out", HELD_OUT)]
        targets += [(f"evaluation/{name}", EVALUATION + index) for index, name in enumerate(names)]
        kinds = (
            np.memmap(spool.splits, dtype=np.uint8, mode="r")
            if spool.num_lines
            else np.zeros(0, dtype=np.uint8)
        )
        for name, split in targets:
            wanted = keep & (kinds == split)
            packed = pack(((text, run) for text, _, run in spool.read(wanted)), count_tokens, max_tokens)
            splits[name] = write_examples(folder / f"{name}.arrow", packed)
        _drop_repeated(folder, splits)
        for counts in splits.values():
            counts["fill"] = counts["tokens"] / max(1, counts["examples"] * max_tokens)
    del kinds
    shutil.rmtree(folder / "spool")
    _refuse_empty(splits, counted.dropped, fields, settings)
    statistics = {
        "splits": splits,
        # `first`: no document is within the share. Added text may then bring this one into training.
        "held_out_by": held_out_by,
        "dropped": dict(counted.dropped),
        "changed": dict(counted.changed),
        "sources": dict(
            zip(_display(list(counted.origins)), map(dict, counted.origins.values()), strict=True)
        ),
    }
    write_json(folder / "statistics.json", statistics)
    return statistics


def _cleaned_lines(
    groups: Sequence[tuple[Sequence[Source], str, int | None]],
    settings: Corpora,
    counted: Counted,
    held_out_share: float,
) -> Iterator[tuple[str, int, int]]:
    """(line, split, run) of groups of sources: (sources, their field in the recipe, their split or None).

    Without a split, each document's own content decides between training and held-out. Consecutive documents
    of one origin and split have the same run number: they may be packed together.
    """
    run = 0
    last: tuple[str, int] | None = None
    for sources, location, fixed in groups:
        for document in read_documents(
            sources, counted.dropped, field=location, block_lines=settings.block_lines
        ):
            place = place_of(document.key)
            split = fixed if fixed is not None else HELD_OUT if place < held_out_share else TRAIN
            if not (document.joined and last == (document.origin, split)):
                run += 1
            last = (document.origin, split)
            origin = counted.origins[document.origin]
            origin["documents"] += 1
            for line in document.lines:
                cleaned = clean_line(
                    line,
                    min_characters=settings.min_characters,
                    dropped=counted.dropped,
                    changed=counted.changed,
                )
                if cleaned is not None:
                    if fixed is None:
                        counted.places = (min(place, counted.places[0]), max(place, counted.places[1]))
                    origin["lines"] += 1
                    origin["characters"] += len(cleaned)
                    yield cleaned, split, run


def sample_texts(
    sources: Sequence[Source], *, field: str, max_characters: int, block_lines: int = 64
) -> tuple[list[str], int]:
    """(cleaned lines from the beginning of the sources, an estimate of the characters of all sources).

    The estimate counts the characters of small sources, and extrapolates by file sizes for larger ones.
    Raises CorpusError if a run would: without text, and where all of it is one document or block.
    """
    texts: list[str] = []
    nothing: Counter[str] = Counter()
    seen = raw = 0
    exhausted = True
    documents: set[int] = set()
    for document in read_documents(sources, nothing, field=field, block_lines=block_lines):
        for line in document.lines:
            raw += len(line)
            cleaned = clean_line(line, min_characters=2, dropped=nothing, changed=nothing)
            if cleaned is not None and len(documents) < 2:
                documents.add(document.key)
            if cleaned is not None and seen < max_characters:
                texts.append(cleaned)
                seen += len(cleaned)
        # Reading is much faster than tokenising, so counting continues well past the sample.
        if raw > 100 * max_characters:
            exhausted = False
            break
    if not texts:
        raise CorpusError(field, None, "has no text", "check the sources")
    if len(documents) < 2:
        raise _one_document(field, block_lines)
    if exhausted:
        return texts, raw
    total = 0
    for index, source in enumerate(sources):
        if source.path is not None:
            total += sum(path.stat().st_size for path in list_files(source, f"{field}[{index}]"))
    bytes_read = len("".join(texts[:1000]).encode()) / max(1, sum(map(len, texts[:1000])))
    return texts, max(raw, round(total / bytes_read))


def _refuse_empty(
    splits: dict[str, Any], dropped: Counter[str], fields: CorpusFields, settings: Corpora
) -> None:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count) or "nothing"
    if not splits["train"]["examples"]:
        raise CorpusError(
            fields.text, None, f"no text is left to train on (dropped lines: {reasons})", "add text"
        )
    if not splits["held_out"]["examples"]:
        raise _one_document(fields.text, settings.block_lines)
    for name, counts in splits.items():
        if not counts["examples"]:
            raise CorpusError(
                fields.evaluation_text(name.removeprefix("evaluation/")),
                None,
                f"no text is left (dropped lines: {reasons})",
                "use text that is not in the training text",
            )


def _one_document(field: str, block_lines: int) -> CorpusError:
    return CorpusError(
        field,
        None,
        f"is one document, or one block of about {block_lines} lines: nothing can be held out for evaluation",
        "add text, or lower corpora.block_lines",
    )


def _drop_repeated(folder: Path, splits: dict[str, dict[str, Any]]) -> None:
    """Drop repeats within splits, of held-out text in training text, and of that in evaluation texts."""
    nothing = np.zeros(0, dtype=np.uint64)
    for name in ("held_out", "train", *(name for name in splits if name.startswith("evaluation/"))):
        other = {"held_out": None, "train": "held_out"}.get(name, "train")
        before = nothing if other is None else Examples(folder / f"{other}.arrow").ids
        splits[name] = drop_repeated(folder / f"{name}.arrow", before) or splits[name] | {"repeated": 0}


def _display(origins: list[str]) -> list[str]:
    """Sources' file names: full paths depend on the machine, and are shown only where names are equal."""
    names = Counter(Path(origin).name for origin in origins)
    return [Path(origin).name if names[Path(origin).name] == 1 else origin for origin in origins]
