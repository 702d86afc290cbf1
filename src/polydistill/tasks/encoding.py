"""From a task's examples to model inputs, and from model outputs to predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polydistill.config.finetune import Task
from polydistill.tasks.heads import NO_LABEL, Feature
from polydistill.tasks.labelled import Choice, Example, LabelledText
from polydistill.tasks.questions import Question, locate
from polydistill.tasks.tagged import TaggedSentence
from polydistill.tasks.words import split_into_windows
from polydistill.tokenization.load import LoadedTokenizer

# BERT's limit; longer questions are cut.
MAX_QUESTION_TOKENS = 64
# Most special tokens of a pair, in any architecture.
FRAME_TOKENS = 4
# Most likely starts, and ends, that are combined into answers.
NUM_CANDIDATES = 20

# Tags, or a label, a choice's index or an answer's text.
Prediction = str | list[str]
Outputs = Iterable[tuple[int, tuple[npt.NDArray[np.float32], ...]]]


@dataclass(frozen=True)
class Coder:
    """Encodes one language's examples of a task for one model, and decodes its outputs.

    labels    of the training file, in the order of the model's outputs
    segments  whether token types mark a pair's second text
    """

    task: Task
    tokenizer: LoadedTokenizer
    labels: Sequence[str]
    max_length: int
    segments: bool

    def encode(self, examples: Sequence[Example], *, training: bool = False) -> list[Feature]:
        """Features with their targets; `item` is the index of a feature's example."""
        if self.task.kind in ("ner", "pos"):
            return self._tagged([example for example in examples if isinstance(example, TaggedSentence)])
        if self.task.kind == "qa":
            return self._questions(
                [example for example in examples if isinstance(example, Question)], training
            )
        if self.task.kind == "choice":
            return self._choices([example for example in examples if isinstance(example, Choice)])
        return self._texts([example for example in examples if isinstance(example, LabelledText)])

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Outputs
    ) -> list[Prediction]:
        """A prediction per example: tags, a label, a choice's index, or an answer's text."""
        if self.task.kind == "qa":
            return self._answers(examples, features, outputs)
        predictions: list[Any] = [
            [""] * len(example.words) if isinstance(example, TaggedSentence) else "" for example in examples
        ]
        for index, (logits,) in outputs:
            feature = features[index]
            if self.task.kind in ("ner", "pos"):
                chosen = logits[feature["firsts"]].argmax(-1)
                for word, index_of_label in zip(feature["words"], chosen, strict=True):
                    predictions[feature["item"]][word] = self.labels[index_of_label]
            else:
                best = int(logits.argmax())
                label = str(best) if self.task.kind == "choice" else self.labels[best]
                predictions[feature["item"]] = label
        return predictions

    def _tagged(self, sentences: Sequence[TaggedSentence]) -> list[Feature]:
        indices = {label: index for index, label in enumerate(self.labels)}
        features: list[Feature] = []
        words = [sentence.words for sentence in sentences]
        for window in split_into_windows(words, self.tokenizer, self.max_length):
            targets = [NO_LABEL] * len(window.ids)
            tags = sentences[window.sentence].tags
            for first, word in zip(window.firsts, window.words, strict=True):
                targets[first] = indices.get(tags[word], NO_LABEL)
            features.append(
                {
                    "item": window.sentence,
                    "input_ids": window.ids,
                    "labels": targets,
                    "firsts": window.firsts,
                    "words": list(window.words),
                }
            )
        return features

    def _texts(self, examples: Sequence[LabelledText]) -> list[Feature]:
        indices = {label: index for index, label in enumerate(self.labels)}
        return [
            {"item": index, **encoded, "labels": indices.get(example.label, NO_LABEL)}
            for index, (example, encoded) in enumerate(
                zip(examples, self._pairs([example.texts for example in examples]), strict=True)
            )
        ]

    def _choices(self, examples: Sequence[Choice]) -> list[Feature]:
        encoded = iter(
            self._pairs([(example.premise, choice) for example in examples for choice in example.choices])
        )
        features: list[Feature] = []
        for index, example in enumerate(examples):
            rows = [next(encoded) for _ in example.choices]
            inputs = {name: [row[name] for row in rows] for name in rows[0]}
            features.append({"item": index, "labels": example.right, **inputs})
        return features

    def _pairs(self, texts: Sequence[tuple[str, ...]]) -> list[dict[str, list[int]]]:
        """Encode texts and pairs of texts; the longer text of a pair is cut first."""
        backend = self.tokenizer.backend
        backend.no_padding()
        backend.enable_truncation(self.max_length, strategy="longest_first")
        inputs = [pair[0] if len(pair) == 1 else pair for pair in texts]
        encodings = backend.encode_batch(inputs)
        backend.no_truncation()
        return [
            {"input_ids": list(encoding.ids)}
            | ({"token_type_ids": list(encoding.type_ids)} if self.segments else {})
            for encoding in encodings
        ]

    def _questions(self, questions: Sequence[Question], training: bool) -> list[Feature]:
        """Overlapping windows of each question's context; for training, only of questions that it answers."""
        backend = self.tokenizer.backend
        backend.no_padding()
        backend.no_truncation()
        limit = max(1, min(MAX_QUESTION_TOKENS, self.max_length // 2 - FRAME_TOKENS))
        asked = [
            _first_tokens(question.question, encoding.offsets, limit)
            for question, encoding in zip(
                questions,
                backend.encode_batch([question.question for question in questions], add_special_tokens=False),
                strict=True,
            )
        ]
        room = self.max_length - limit - FRAME_TOKENS
        backend.enable_truncation(
            self.max_length, stride=min(self.task.stride_tokens, room // 2), strategy="only_second"
        )
        features: list[Feature] = []
        for index, (question, text) in enumerate(zip(questions, asked, strict=True)):
            span = locate(question) if training else None
            if training and span is None:
                continue
            encoding = backend.encode(text, question.context)
            windows = [encoding, *encoding.overflowing]
            for place, window in enumerate(windows):
                feature: dict[str, Any] = {
                    "item": index,
                    "input_ids": list(window.ids),
                    "offsets": [
                        offset if sequence == 1 else None
                        for offset, sequence in zip(window.offsets, window.sequence_ids, strict=True)
                    ],
                }
                if self.segments:
                    feature["token_type_ids"] = list(window.type_ids)
                if span is not None:
                    ends = (place == 0, place == len(windows) - 1)
                    first, last = _answer_tokens(feature["offsets"], span, ends)
                    feature |= {"start_positions": first, "end_positions": last}
                features.append(feature)
        backend.no_truncation()
        return features

    def _answers(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Outputs
    ) -> list[Prediction]:
        best = [(-np.inf, "")] * len(examples)
        for index, (starts, ends) in outputs:
            feature = features[index]
            span = best_span(starts, ends, feature["offsets"], self.task.max_answer_tokens)
            example = examples[feature["item"]]
            if span is not None and isinstance(example, Question) and span[0] > best[feature["item"]][0]:
                score, start, end = span
                # Byte-level tokens include the space before them.
                best[feature["item"]] = (score, example.context[start:end].strip())
        return [text for _, text in best]


def best_span(
    starts: npt.NDArray[np.float32],
    ends: npt.NDArray[np.float32],
    offsets: Sequence[tuple[int, int] | None],
    max_tokens: int,
) -> tuple[float, int, int] | None:
    """(score, first character, end character) of a window's most likely answer; None without text.

    The score is the largest sum of a start's and an end's logit within the text, with the end not before the
    start and at most `max_tokens` tokens. The end is exclusive.
    """
    inside = np.array([offset is not None for offset in offsets])
    if not inside.any():
        return None
    likely = [
        np.argsort(-np.where(inside, logits, -np.inf), kind="stable")[: min(NUM_CANDIDATES, inside.sum())]
        for logits in (starts, ends)
    ]
    sums = starts[likely[0]][:, None] + ends[likely[1]][None, :]
    length = likely[1][None, :] - likely[0][:, None] + 1
    sums = np.where((length >= 1) & (length <= max_tokens), sums, -np.inf)
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    first, last = offsets[likely[0][row]], offsets[likely[1][column]]
    if not np.isfinite(sums[row, column]) or first is None or last is None:
        return None
    return float(sums[row, column]), first[0], last[1]


def _first_tokens(text: str, offsets: Sequence[tuple[int, int]], limit: int) -> str:
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


def _answer_tokens(
    offsets: Sequence[tuple[int, int] | None], span: tuple[int, int], ends: tuple[bool, bool]
) -> tuple[int, int]:
    """(first, last) token of an answer in a window; (0, 0) if the window does not hold all of it.

    ends  whether the window holds the text's beginning, and its end
    """
    inside = [(place, offset) for place, offset in enumerate(offsets) if offset is not None]
    held = [place for place, (start, end) in inside if start < span[1] and end > span[0] and end > start]
    if not held:
        return 0, 0
    if (not ends[0] and span[0] < inside[0][1][0]) or (not ends[1] and span[1] > inside[-1][1][1]):
        return 0, 0
    return held[0], held[-1]
