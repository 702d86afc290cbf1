"""Evaluation of every model on every language's held-out and further texts, with the same masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from polydistill.config.shared import Evaluation, Masking
from polydistill.corpora.examples import Examples
from polydistill.evaluation.mlm import Measures, guesses, mean_reciprocal_rank, measure, unigram_ranks
from polydistill.masking import Masked, mask_texts
from polydistill.models.inputs import length_batches
from polydistill.models.memory import return_freed_memory
from polydistill.models.text_start import COUNTED_CHARACTERS, tokenised
from polydistill.tokenization.encode import encode
from polydistill.tokenization.load import LoadedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Examples for each sentence whose guesses are shown, to choose from.
CANDIDATES = 8
# Hangul, kana and Chinese characters are from here on.
SYLLABLES = 0x1100
# Added to the seed, so that masks differ from training's.
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer for a language.

    name       in the results: a teacher's name or `student`
    tokenizer  for masking and truncation
    mapping    [tokenizer's size] its ids → the model's, None where they are equal
    view       `own` (a teacher's tokenizer), `union`, or `student` (a vocabulary of the student's own)
    teacher    the tokenizer's teacher, for `own`
    restrict   [V] the teacher's pieces among the model's, for the restricted MRR
    beside     the tokenizers of the language's other readers, if all are to hide the same words: then rows
               have the likelihood of whole words, which compares vocabularies
    """

    name: str
    model: PreTrainedModel
    tokenizer: LoadedTokenizer
    view: str
    teacher: str | None = None
    mapping: npt.NDArray[np.int64] | None = None
    restrict: npt.NDArray[np.bool_] | None = None
    beside: tuple[LoadedTokenizer, ...] = ()

    def masked(
        self, texts: Sequence[str], ids: Sequence[int], max_length: int, masking: Masking, seed: int
    ) -> list[Masked]:
        """Mask texts with this reader's tokenizer, in the model's ids."""
        return self.mapped(
            mask_texts(
                texts,
                ids,
                self.tokenizer,
                max_length=max_length,
                masking=masking,
                seed=seed,
                beside=self.beside,
            )
        )

    def mapped(self, made: list[Masked]) -> list[Masked]:
        """Masked texts of this reader's tokenizer, in the model's ids."""
        mapping = self.mapping
        if mapping is None:
            return made
        return [Masked(mapping[text.input_ids], text.positions, mapping[text.gold]) for text in made]

    @property
    def pad_id(self) -> int:
        """The model's padding id."""
        pad = self.tokenizer.special_ids["pad"]
        return pad if self.mapping is None else int(self.mapping[pad])


def evaluate_language(
    readers: Sequence[Reader],
    *,
    training: Examples,
    texts: Mapping[str, Examples],
    settings: Evaluation,
    masking: Masking,
    max_length: int,
    dtype: torch.dtype,
    seed: int,
    measured: dict[str, Measures] | None = None,
) -> list[dict[str, Any]]:
    """One row per reader and text: its measures, and the unigram baseline with the same tokenizer.

    measured  receives the measures of each row under `text/view/teacher/model`
    """
    masking = hidden(masking, settings.mask_probability)
    rows = []
    counts = {
        key: _piece_counts(tokenizer, training)
        for key, tokenizer in {(reader.view, reader.teacher): reader.tokenizer for reader in readers}.items()
    }
    for text_name, examples in texts.items():
        chosen = examples.first(settings.max_examples)
        raw, ids = examples.texts(chosen), [int(examples.ids[row]) for row in chosen]
        # Readers with one tokenizer see the same masks, so the text is tokenised once for them.
        plain_of = {
            (reader.view, reader.teacher): replace(reader, mapping=None).masked(
                raw, ids, max_length, masking, seed + EVALUATION_SEED
            )
            for reader in readers
        }
        for reader in readers:
            plain = plain_of[reader.view, reader.teacher]
            masked = reader.mapped(plain)
            gold = np.concatenate([example.gold for example in plain])
            if not len(gold):
                # A text of a few words may have no masked token.
                continue
            baseline = unigram_ranks(counts[reader.view, reader.teacher], gold)
            result = measure(
                reader.model,
                masked,
                pad_id=reader.pad_id,
                batches=length_batches([len(example.input_ids) for example in masked], settings.batch_tokens),
                dtype=dtype,
                restrict=reader.restrict,
            )
            row: dict[str, Any] = {
                "text": text_name,
                "model": reader.name,
                "tokenizer": reader.view,
                "teacher": reader.teacher,
                "num_examples": len(raw),
                "unigram_mrr": mean_reciprocal_rank(baseline),
                "unigram_top1": float((baseline <= 1).mean()),
            }
            row |= result.summary()
            if reader.beside:
                characters = int(covered(raw, reader.tokenizer, plain, max_length).sum())
                row |= {
                    "nats_per_character": float(result.losses.sum()) / characters,
                    "characters": characters,
                }
            rows.append(row)
            if measured is not None:
                measured[f"{text_name}/{reader.view}/{reader.teacher or ''}/{reader.name}"] = result
    return_freed_memory()
    return rows


def covered(
    texts: Sequence[str], tokenizer: LoadedTokenizer, masked: Sequence[Masked], max_length: int
) -> npt.NDArray[np.int64]:
    """[E] characters of each text that masked tokens cover, blanks before words left out."""
    counts = []
    for text, encoded, hidden_in in zip(texts, encode(tokenizer, texts), masked, strict=True):
        seen = encoded.cut(max_length)
        mark = np.zeros(len(text), dtype=bool)
        for start, end in zip(seen.starts[hidden_in.positions], seen.ends[hidden_in.positions], strict=True):
            mark[start:end] = True
        counts.append(int(mark.sum()))
    return np.array(counts, dtype=np.int64)


def hidden(masking: Masking, probability: float) -> Masking:
    """Masking for evaluation: a share of its own, and every chosen unit becomes the mask token.

    Training leaves a tenth of the chosen tokens unchanged. There a model could copy its input, at rank 1.
    """
    return masking.model_copy(update={"probability": probability, "mask_share": 1.0, "random_share": 0.0})


def sample_guesses(
    readers: Sequence[Reader],
    examples: Examples,
    *,
    settings: Evaluation,
    masking: Masking,
    max_length: int,
    seed: int,
    decode: Any,
) -> list[dict[str, Any]]:
    """Masked sentences with each reader's five best guesses for one masked position.

    Sentences that show something come first: those whose hidden piece is a word (`_is_word`) that some reader
    guesses first, each word once, frequent words before rare ones. Further ones are in the text's own random
    order.
    readers  with one tokenizer, so that they see the same masks
    decode   (model's id, reader) → the piece's text
    """
    masking = hidden(masking, settings.mask_probability)
    rows = examples.first(settings.num_samples * CANDIDATES)
    frequency: Counter[int] = Counter()
    telling: dict[int, dict[str, Any]] = {}
    others = []
    for row in rows:
        text, example_id = examples.texts(np.array([row]))[0], int(examples.ids[row])
        plain = replace(readers[0], mapping=None).masked(
            [text], [example_id], max_length, masking, seed + EVALUATION_SEED
        )[0]
        place = _shown_place(plain, readers[0])
        if place is None:
            continue
        gold = int(plain.gold[place])
        frequency.update(encode(readers[0].tokenizer, [text])[0].ids.tolist())
        entry = _sentence(plain, place, readers[0])
        for reader in readers:
            masked = reader.masked([text], [example_id], max_length, masking, seed + EVALUATION_SEED)[0]
            best = guesses(reader.model, masked, place, pad_id=reader.pad_id)
            entry["guesses"][reader.name] = [
                [decode(index, reader), round(share, 4)] for index, share in best
            ]
        right = any(shown[0][0] == entry["gold"] for shown in entry["guesses"].values())
        if right and _is_word(entry["gold"]):
            telling.setdefault(gold, entry)
        else:
            others.append(entry)
    first = sorted(telling, key=lambda piece: -frequency[piece])
    return [*(telling[piece] for piece in first), *others][: settings.num_samples]


def _shown_place(masked: Masked, reader: Reader) -> int | None:
    """The place among the masked positions whose guesses are shown; None if none became the mask token.

    The middle one of those at a word (`_is_word`), if there is one.
    """
    mask_id = reader.tokenizer.special_ids["mask"]
    places = [
        place for place, position in enumerate(masked.positions) if masked.input_ids[position] == mask_id
    ]
    whole = [place for place in places if _is_word(_piece(reader, int(masked.gold[place])))]
    chosen = whole or places
    return chosen[len(chosen) // 2] if chosen else None


def _sentence(masked: Masked, place: int, reader: Reader) -> dict[str, Any]:
    """The text around a masked position, and the piece there."""
    position = int(masked.positions[place])
    # Without the special tokens at both ends.
    window = slice(max(1, position - 24), min(len(masked.input_ids) - 1, position + 25))
    backend = reader.tokenizer.backend
    before, after = masked.input_ids[window.start : position], masked.input_ids[position + 1 : window.stop]
    return {
        "before": backend.decode(before.tolist(), skip_special_tokens=False),
        "after": backend.decode(after.tolist(), skip_special_tokens=False),
        "gold": _piece(reader, int(masked.gold[place])),
        "guesses": {},
    }


def _is_word(piece: str) -> bool:
    """Whether a piece begins a word and has three letters; one is enough in scripts of syllables or words."""
    letters = sum(3 if ord(letter) >= SYLLABLES else 1 for letter in piece if letter.isalpha())
    return letters >= 3 and not piece.startswith("##")


def _piece(reader: Reader, index: int) -> str:
    return str(reader.tokenizer.backend.id_to_token(index))


def _piece_counts(tokenizer: LoadedTokenizer, training: Examples) -> npt.NDArray[np.int64]:
    """[size] frequency of each piece in the training text."""
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    for batch in tokenised(training, tokenizer, characters=COUNTED_CHARACTERS):
        counts += np.bincount(np.concatenate(batch), minlength=tokenizer.size)
    return counts


def text_files(corpus: Path) -> dict[str, Examples]:
    """Name → text: the held-out text and further evaluation texts of a language's corpus."""
    texts = {"held_out": Examples(corpus / "held_out.arrow")}
    for path in sorted((corpus / "evaluation").glob("*.arrow")):
        texts[path.stem] = Examples(path)
    return texts
