"""The stages before training: sentences, and the teacher's vectors of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from polydistill.corpora.lines import hash_text_file
from polydistill.corpora.sentences import SPLITS, read_split, write_sentences
from polydistill.corpora.sources import refuse_changed, source_identity, source_states
from polydistill.disk import Json, fingerprint, read_json, read_record, write_json
from polydistill.errors import NumericsError
from polydistill.models.precision import resolve_dtype
from polydistill.models.sentences import encode_ids
from polydistill.pipelines.embed.state import Embedding
from polydistill.pipelines.run_folder import Artefact

# Parts of identities: how sentences are chosen, and how vectors are computed.
SENTENCES_VERSION = VECTORS_VERSION = 1
# Sentences between two records of progress, which a killed run resumes from.
CHUNK = 4096
PROGRESS = "progress.json"


def make_sentences(state: Embedding) -> None:
    """Choose every language's sentences."""
    recipe, run = state.recipe, state.run
    avoid = state.measured.hashes(recipe.sentences)
    for number, (name, language) in enumerate(recipe.languages.items()):
        run.count("sentences", number, len(recipe.languages), "languages")
        field = f"languages.{name}"
        paths = [Path(path).expanduser() for path in language.translations]
        settings = recipe.sentences
        inputs = {
            "stage": "sentences",
            "version": SENTENCES_VERSION,
            "text": source_identity(language.text, field=f"{field}.text"),
            "translations": [
                hash_text_file(path, f"{field}.translations[{index}]") for index, path in enumerate(paths)
            ],
            "settings": settings.model_dump(mode="json", exclude={"max_length", "smoothing_alpha"}),
            "held_out": recipe.evaluation.max_sentences,
            "avoid": fingerprint(sorted(avoid)),
            "seed": None if settings.max_sentences is None else recipe.seed,
        }

        def write(folder: Path, name: str = name, field: str = field) -> None:
            own = recipe.languages[name]
            before = source_states(own.text, field=f"{field}.text")
            counts = write_sentences(
                folder,
                own,
                recipe.sentences,
                field=field,
                held_out=recipe.evaluation.max_sentences,
                avoid=avoid,
                seed=recipe.seed,
            )
            refuse_changed(before, field=f"{field}.text")
            run.say(f"sentences/{name}: {_summary(counts)}")

        state.sentences[name] = run.make(f"sentences/{name}", inputs, write, reuse=True, stage="sentences")


def _summary(counts: Json) -> str:
    dropped = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in counts["dropped"].items())
    return f"{counts['train']['texts']:,} to train on, {counts['held_out']['texts']:,} held out" + (
        f"; dropped: {dropped}" if dropped else ""
    )


def make_vectors(state: Embedding) -> None:
    """Store the teacher's vectors of every language's sentences."""
    recipe, run = state.recipe, state.run
    precision = resolve_dtype(recipe.vectors.precision)
    teacher = state.teacher.identity()
    for name, sentences in state.sentences.items():
        inputs = {
            "stage": "vectors",
            "version": VECTORS_VERSION,
            "teacher": teacher,
            "sentences": sentences.fingerprint,
            "dtype": recipe.vectors.dtype,
            "precision": str(precision).removeprefix("torch."),
        }
        counts = read_json(sentences.path / "statistics.json", dict)
        number = sum(counts[split]["sources"] for split in SPLITS)

        def needs_bytes(number: int = number) -> float:
            return float(number * np.dtype(recipe.vectors.dtype).itemsize * state.teacher.model.width)

        def write(folder: Path, name: str = name, sentences: Artefact = sentences) -> None:
            for split in SPLITS:
                _write_split(state, folder, name, split, read_split(sentences.path, split).sources)
            (folder / PROGRESS).unlink()

        state.vectors[name] = run.make(
            f"vectors/{name}",
            inputs,
            write,
            reuse=True,
            stage="vectors",
            needs_bytes=needs_bytes,
            keep_partial=True,
        )


def _write_split(state: Embedding, folder: Path, name: str, split: str, sources: list[str]) -> None:
    """Write a split's vectors to SPLIT.npy, from where an interrupted run stopped."""
    recipe, teacher = state.recipe, state.teacher
    path = folder / f"{split}.npy"
    record = read_record(folder / PROGRESS)
    done = int(record.get(split, 0)) if path.is_file() else 0
    shape = (len(sources), teacher.model.width)
    # A file of another shape is no beginning of this one.
    rows = np.lib.format.open_memmap(
        path, mode="r+" if done else "w+", dtype=np.dtype(recipe.vectors.dtype), shape=shape
    )
    for start in range(done, len(sources), CHUNK):
        state.run.count(f"vectors/{name}", start, len(sources), "sentences")
        part = encode_ids(
            teacher.model,
            teacher.ids(sources[start : start + CHUNK]),
            teacher.pad_id,
            batch_tokens=recipe.vectors.batch_tokens,
            dtype=resolve_dtype(recipe.vectors.precision),
        )
        with np.errstate(over="ignore"):
            stored = part.astype(rows.dtype)
        if not np.isfinite(stored).all():
            damaged = not np.isfinite(part).all()
            raise NumericsError(
                "teacher" if damaged else "vectors.dtype",
                recipe.teacher.model if damaged else recipe.vectors.dtype,
                "makes vectors that are not finite" if damaged else "is too small for the teacher's numbers",
                "set vectors.precision: float32, or use an undamaged model"
                if damaged
                else "set vectors.dtype: float32",
            )
        rows[start : start + len(stored)] = stored
        rows.flush()
        record[split] = start + len(stored)
        write_json(folder / PROGRESS, record)


def stored_vectors(artefact: Artefact, split: str) -> npt.NDArray[np.floating]:
    """[V, D] the teacher's vectors of a split's sources, on disk."""
    loaded: npt.NDArray[np.floating] = np.load(artefact.path / f"{split}.npy", mmap_mode="r")
    return loaded
