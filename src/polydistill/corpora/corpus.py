"""A language's corpus: read, clean, split, deduplicate, pack."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.config.shared import Corpora, Source
from polydistill.corpora.build import Build, Progress
from polydistill.corpora.cleaning import clean_line
from polydistill.corpora.dedup import EVALUATION
from polydistill.corpora.packing import CountTokens
from polydistill.corpora.part_work import Packing
from polydistill.corpora.parts import Text
from polydistill.corpora.pool import Alone, Pool
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
    "near_repeat",
    "duplicate",
    "in_held_out",
    "in_training",
)


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
    pool: Pool | None = None,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Write train.arrow, held_out.arrow, evaluation/<name>.arrow and statistics.json into a folder.

    count_tokens, max_tokens  see `pack`; special tokens are not counted
    fields                    where the recipe has the texts, for messages
    pool                      where parts are worked on, by default in this process; it changes no byte
    progress                  called with `cleaned` or `packed`, the parts that are, and all of them (0: not
                              known yet)
    Memory does not grow with the text: parts are cleaned and packed alone, and equal lines are found on disk.
    Finished parts stay in the folder until the end, and are not made again.
    Raises CorpusError if no text is left to train on or to hold out.
    """
    build = Build(folder / "parts", settings, pool or Alone(), progress)
    with explain_disk_errors(folder):
        texts = [Text(sources, fields.text)]
        texts += [
            Text(evaluation[name], fields.evaluation_text(name), EVALUATION + index)
            for index, name in enumerate(evaluation)
        ]
        lines, counted = build.clean(texts, settings.held_out_share)
        lowest, highest = counted.places
        held_out_by = "share"
        if settings.held_out_share <= lowest < highest:
            # Too few documents for the share: the first of them by its content is held out.
            lines, counted = build.clean(texts, math.nextafter(lowest, 1.0))
            held_out_by = "first"
        examples, lost = build.pack(lines, Packing(count_tokens, max_tokens))
        dropped = {reason: (counted.dropped + lost)[reason] for reason in DROPPED}
        names = ["train", "held_out", *(f"evaluation/{name}" for name in evaluation)]
        splits = build.join(examples, [folder / f"{name}.arrow" for name in names])
    shutil.rmtree(folder / "parts")
    by_name: dict[str, dict[str, Any]] = dict(zip(names, splits, strict=True))
    for counts in by_name.values():
        counts["fill"] = counts["tokens"] / max(1, counts["examples"] * max_tokens)
    _refuse_empty(by_name, dropped, fields, settings)
    statistics = {
        "splits": by_name,
        # `first`: no document is within the share. Added text may then bring this one into training.
        "held_out_by": held_out_by,
        "dropped": dropped,
        "changed": dict(counted.changed),
        "sources": dict(
            zip(_display(list(counted.origins)), map(dict, counted.origins.values()), strict=True)
        ),
    }
    write_json(folder / "statistics.json", statistics)
    return statistics


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
    splits: dict[str, Any], dropped: Mapping[str, int], fields: CorpusFields, settings: Corpora
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


def _display(origins: list[str]) -> list[str]:
    """Sources' file names: full paths depend on the machine, and are shown only where names are equal."""
    names = Counter(Path(origin).name for origin in origins)
    return [Path(origin).name if names[Path(origin).name] == 1 else origin for origin in origins]
