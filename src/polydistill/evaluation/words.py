"""Students with different vocabularies on the same hidden words: nats per character.

MRR and the loss per piece depend on the pieces. The likelihood of a whole hidden word does not: all of its
pieces are hidden, their log-probabilities add up, and the sum is divided by the word's characters (decision
20: why not a chain of pieces).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.artefacts import ARTEFACTS, STAMP, artefact_places
from polydistill.config.shared import Evaluation, Masking
from polydistill.corpora.examples import Examples
from polydistill.disk import read_json
from polydistill.evaluation.mlm import measure
from polydistill.evaluation.readers import EVALUATION_SEED, covered, hidden
from polydistill.evaluation.uncertainty import Difference, paired_ratio
from polydistill.masking import mask_texts
from polydistill.models.inputs import length_batches
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device, resolve_dtype
from polydistill.tokenization.load import LoadedTokenizer, load_tokenizer

MAX_LENGTH = 128
# Of what is measured here; a change makes stored measurements void.
WORDS_VERSION = 1


class Words(NamedTuple):
    """A student's likelihood of hidden words: [E] nats of each example, [E] characters of the words."""

    nats: npt.NDArray[np.float64]
    characters: npt.NDArray[np.int64]

    @property
    def per_character(self) -> float:
        """Nats per character."""
        return float(self.nats.sum() / self.characters.sum())


def difference(one: Words, other: Words) -> Difference:
    """One student's nats per character minus another's, on the same words."""
    return paired_ratio(one.nats - other.nats, one.characters)


def measure_words(
    folders: Sequence[Path], language: str, examples: Examples, settings: Evaluation
) -> list[Words]:
    """Each run's student on the same hidden words of a text, which no tokenizer's pieces cut across.

    A student with tokenizers of its languages reads each with the language's own.
    """
    chosen = examples.first(settings.max_examples)
    texts, ids = examples.texts(chosen), [int(examples.ids[row]) for row in chosen]
    tokenizers = [_tokenizer(folder, language) for folder in folders]
    # Students often share a tokenizer, and then what is hidden.
    distinct = {each.fingerprint: each for each in tokenizers}
    length = {
        name: min(MAX_LENGTH, *(each.max_length for each in tokenizers if each.fingerprint == name))
        for name in distinct
    }
    copies = {
        name: mask_texts(
            texts,
            ids,
            tokenizer,
            max_length=length[name],
            masking=hidden(Masking(unit="words"), settings.mask_probability),
            seed=EVALUATION_SEED,
            beside=[other for other in distinct.values() if other is not tokenizer],
        )
        for name, tokenizer in distinct.items()
    }
    characters = {
        name: covered(texts, tokenizer, copies[name], length[name]) for name, tokenizer in distinct.items()
    }
    measured = []
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        masked = copies[tokenizer.fingerprint]
        model = load_masked_lm(str(folder / "student" / "final"), name=folder.name).to(device())
        result = measure(
            model,
            masked,
            pad_id=tokenizer.special_ids["pad"],
            batches=length_batches([len(each.input_ids) for each in masked], settings.batch_tokens),
            dtype=resolve_dtype(settings.precision),
        )
        ends = np.cumsum([len(each.positions) for each in masked])
        totals = np.concatenate([[0.0], np.cumsum(result.losses)])
        nats = totals[ends] - totals[np.concatenate([[0], ends[:-1]])]
        measured.append(Words(nats, characters[tokenizer.fingerprint]))
    # Where one student's sequence ends before another's, words are hidden from it alone.
    same = np.logical_and.reduce([each.characters == measured[0].characters for each in measured])
    return [Words(each.nats[same], each.characters[same]) for each in measured]


def _tokenizer(folder: Path, language: str) -> LoadedTokenizer:
    final = folder / "student" / "final"
    own = final / "tokenizer" / language
    return load_tokenizer(str(final), tokenizer=str(own) if own.is_dir() else None)


def student_corpora(folder: Path) -> dict[str, Path]:
    """Language → corpus of a run that has trained a student; {} for any other folder."""
    if not (folder / ARTEFACTS).is_file() or not (folder / "student" / "final").is_dir():
        return {}
    return {
        name.removeprefix("corpora/"): place
        for name, place in artefact_places(folder).items()
        if name.startswith("corpora/")
    }


def corpora_prints(corpora: Mapping[str, Path]) -> dict[str, str]:
    """Language → its corpus's fingerprint; runs of another may have learned what this one holds out."""
    return {
        language: str(read_json(corpus / STAMP, dict)["fingerprint"]) for language, corpus in corpora.items()
    }
