"""A task's examples: read, checked against each other, set apart for a dev set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import Any

import numpy as np

from polydistill.config.finetune import FinetuneRecipe, LabelledSource, Task
from polydistill.disk import fingerprint, hash_text
from polydistill.errors import CorpusError
from polydistill.tasks.labelled import Choice, Example, LabelledText, read_labelled
from polydistill.tasks.questions import Question, answer_faults, locate
from polydistill.tasks.tagged import TaggedSentence

FAULTS = {
    "without": "have no answer",
    "absent": "have an answer that their text does not hold",
    "misplaced": "have an answer that stands elsewhere in their text than it says",
}
# IOB2 and IOBES.
ENTITY_TAG = re.compile(r"O|[BIES]-.+")
# Labels that a message names.
NAMED = 5


def read_tasks(recipe: FinetuneRecipe) -> dict[str, TaskTexts]:
    """All examples of all tasks, checked: what cannot be used is a CorpusError before any work."""
    texts = {name: TaskTexts(name, task, recipe.seed) for name, task in recipe.tasks.items()}
    for one in texts.values():
        one.check()
    return texts


def gold_of(example: Example) -> Any:
    """What an example's prediction is compared with: a label, tags, or the texts of all answers."""
    if isinstance(example, TaggedSentence):
        return list(example.tags)
    if isinstance(example, LabelledText):
        return example.label
    if isinstance(example, Choice):
        return str(example.right)
    return [answer.text for answer in example.answers]


@dataclass
class TaskTexts:
    """The examples of one task in all its languages.

    seed  of the dev sets that are set apart: the same for all models and trainings
    """

    name: str
    task: Task
    seed: int
    _identities: dict[tuple[str, str], str] = dataclass_field(default_factory=dict)

    @cached_property
    def _read(self) -> dict[str, dict[str, Sequence[Example]]]:
        return {
            language: {
                split: self._file(source, language, split)
                for split, source in (("train", data.train), ("dev", data.dev), ("test", data.test))
                if source is not None
            }
            for language, data in self.task.data.items()
        }

    def _file(self, source: LabelledSource, language: str, split: str) -> Sequence[Example]:
        examples = read_labelled(source, self.task.kind, self.task.columns, field=self.field(language, split))
        limit = self.task.max_examples
        if limit is None or len(examples) <= limit:
            return examples
        # Not the first: some files are sorted by label (SIB-200's test files).
        drawn = self._generator(language, split).choice(len(examples), limit, replace=False)
        return [examples[index] for index in sorted(drawn)]

    def _generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, hash_text("/".join((self.name, *names)))])

    def field(self, language: str, split: str) -> str:
        """Where a file stands in the recipe."""
        return f"tasks.{self.name}.data.{language}.{split}"

    @cached_property
    def splits(self) -> dict[str, dict[str, Sequence[Example]]]:
        """Language → split → examples; a language that is trained on has `train` and `dev`, every one `test`."""
        found = {language: dict(read) for language, read in self._read.items()}
        for source in self.task.sources if self.task.overlap == "drop" else []:
            for split in ("train", "dev"):
                if split in found[source]:
                    found[source][split] = self._without_tests(source, split)
        for source in self.task.sources:
            if "dev" in found[source]:
                continue
            examples = found[source]["train"]
            chosen = self._set_apart(source, examples)
            if not 0 < len(chosen) < len(examples):
                raise CorpusError(
                    self.field(source, "train"),
                    None,
                    f"{len(examples)} examples are too few to set a dev set apart",
                    f"give more, or data.{source}.dev",
                )
            found[source]["dev"] = [one for index, one in enumerate(examples) if index in chosen]
            found[source]["train"] = [one for index, one in enumerate(examples) if index not in chosen]
        return found

    def _without_tests(self, source: str, split: str) -> Sequence[Example]:
        """The examples of a split that no test file has which a model of this source is tested on."""
        tested = {_content(one) for target in self.task.targets(source) for one in self._read[target]["test"]}
        kept = [one for one in self._read[source][split] if _content(one) not in tested]
        if not kept:
            raise CorpusError(
                self.field(source, split),
                None,
                "all of its examples stand in the test set too, and overlap: drop leaves them out",
                "name another file, or set overlap: count",
            )
        return kept

    def _set_apart(self, source: str, examples: Sequence[Example]) -> set[int]:
        """The examples of a dev set that is taken from the training file: all questions on a text or none of them, for
        a text that training has seen says less of others.
        """
        size = round(len(examples) * self.task.dev_share)
        groups: dict[str | int, list[int]] = {}
        for index, one in enumerate(examples):
            groups.setdefault(one.context if isinstance(one, Question) else index, []).append(index)
        members = list(groups.values())
        chosen: set[int] = set()
        for place in self._generator(source).permutation(len(members)):
            if len(chosen) >= size:
                break
            chosen.update(members[place])
        return chosen

    def labels(self, source: str) -> list[str]:
        """The labels of a language's training file, sorted; of choices and answers none."""
        return sorted(_labels(self._read[source]["train"])) if self.task.kind not in ("choice", "qa") else []

    def identity(self, language: str, split: str) -> str:
        """What examples are, by content: a file that is packed otherwise is the same."""
        key = (language, split)
        if key not in self._identities:
            self._identities[key] = fingerprint([asdict(example) for example in self.splits[language][split]])
        return self._identities[key]

    def check(self) -> None:
        """Raise CorpusError for what cannot be learned or scored; see `notes` for what is only said."""
        for source in self.task.sources:
            field = self.field(source, "train")
            train = self.splits[source]["train"]
            if self.task.kind == "qa":
                if not any(isinstance(one, Question) and locate(one) for one in train):
                    raise CorpusError(
                        field, None, "no question's answer stands in its text", "check the file"
                    )
                self._check_answers()
                continue
            if self.task.kind == "choice":
                continue
            if self.task.kind == "ner":
                self._check_entities(source)
            labels = self.labels(source)
            if len(labels) < 2:
                raise CorpusError(
                    field,
                    None,
                    f"all examples have the one label {labels[0]!r}",
                    "give examples of at least two",
                )
            for target in self.task.targets(source):
                unseen = self.unseen(source, target)
                if unseen and self.task.unseen_labels == "refuse":
                    raise CorpusError(
                        self.field(target, "test"),
                        None,
                        f"has labels that training on {source} never saw: {_named(unseen)}",
                        f"mend the files, or set tasks.{self.name}.unseen_labels: count, which counts them as wrong",
                    )

    def _check_entities(self, source: str) -> None:
        """Other tags are taken for entities too (seqeval reads NOUN as one of the kind OUN), and scored."""
        for language, split in (
            (source, "train"),
            (source, "dev"),
            *((one, "test") for one in self.task.targets(source)),
        ):
            other = Counter(
                {
                    tag: n
                    for tag, n in _labels(self.splits[language][split]).items()
                    if not ENTITY_TAG.fullmatch(tag)
                }
            )
            if other:
                raise CorpusError(
                    self.field(language, split),
                    None,
                    f"has tags that are not of entities: {_named(other)}",
                    "give O, B-KIND, I-KIND (IOB2), or E- and S- besides; for parts of speech set kind: pos",
                )

    def _check_answers(self) -> None:
        """Published test sets often come without their answers."""
        for language, splits in self.splits.items():
            for split, examples in splits.items():
                if not any(text for example in examples for text in gold_of(example)):
                    raise CorpusError(
                        self.field(language, split),
                        None,
                        "none of its questions has an answer, so nothing can be scored",
                        "name a file with answers, or a part of another (`first_example`, `num_examples`)",
                    )

    def unseen(self, source: str, target: str, split: str = "test") -> Counter[str]:
        """How often labels that a source's training file lacks occur in a target's test file, or another of its splits."""
        known = set(self.labels(source))
        if not known:
            return Counter()
        counts = _labels(self.splits[target][split])
        return Counter({label: count for label, count in counts.items() if label not in known})

    def notes(self) -> list[str]:
        """What users should know of the files: counted, not dropped silently."""
        said = [note for source in self.task.sources for note in self._overlaps(source)]
        said += [
            f"{self.field(language, split)}: is not read: models are trained on {self.task.source} alone"
            for language, data in self.task.data.items()
            for split, given in (("train", data.train), ("dev", data.dev))
            if given is not None and language not in self.task.sources
        ]
        for source in self.task.sources:
            for target, split in [
                *((target, "test") for target in self.task.targets(source)),
                (source, "dev"),
            ]:
                unseen = self.unseen(source, target, split)
                if unseen:
                    said.append(
                        f"{self.field(target, split)}: labels that training on {source} never saw count as wrong: "
                        f"{_named(unseen)}"
                    )
        if self.task.kind != "qa":
            return said
        for language, splits in self.splits.items():
            for split, examples in splits.items():
                questions = [one for one in examples if isinstance(one, Question)]
                for fault, count in answer_faults(questions).items():
                    what = f"{count} of {len(questions)} questions {FAULTS[fault]}"
                    said.append(f"{self.field(language, split)}: {what}{_consequence(fault, split)}")
        return said

    def _overlaps(self, source: str) -> list[str]:
        """How much of the test sets models see before they are tested, and what is left out so that they do not."""
        said = []
        read = self._read[source] if self.task.overlap == "drop" else {}
        for split in [split for split in ("train", "dev") if split in read]:
            if dropped := len(read[split]) - len(self._without_tests(source, split)):
                what = "questions are on texts" if self.task.kind == "qa" else "examples are some"
                said.append(
                    f"{self.field(source, split)}: {dropped} of {len(read[split])} {what} that a test set has: they are left out"
                )
        known = {_content(example) for example in self.splits[source]["train"]}
        for target in self.task.targets(source):
            tests = self.splits[target]["test"]
            what = "questions are on texts that" if self.task.kind == "qa" else "examples"
            if shared := sum(_content(example) in known for example in tests):
                said.append(
                    f"{self.field(target, 'test')}: {shared} of {len(tests)} {what} stand in {source}'s training set too "
                    "(overlap: drop leaves them out of it)"
                )
        return said


def _consequence(fault: str, split: str) -> str:
    if fault == "misplaced":
        return ": the nearest is taken" if split == "train" else ""
    if split == "train":
        return ": they are left out of training"
    if fault == "without":
        return ": every prediction for them is counted as wrong, for SQuAD v1.1 knows no such questions"
    return ": they are counted as all others"


def _content(example: Example) -> str:
    """What a model that has learned it knows of an example."""
    return fingerprint(example.context if isinstance(example, Question) else asdict(example))


def _labels(examples: Sequence[Example]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for example in examples:
        gold = gold_of(example)
        counts.update(gold if isinstance(gold, list) else [gold])
    return counts


def _named(counts: Counter[str]) -> str:
    shown = ", ".join(f"{label!r} ({count})" for label, count in counts.most_common(NAMED))
    return shown + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")
