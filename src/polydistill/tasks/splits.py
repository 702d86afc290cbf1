"""A task's examples: read, checked, and split into training and dev sets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from functools import cached_property

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
# Labels named in a message.
NAMED = 5


def read_tasks(recipe: FinetuneRecipe) -> dict[str, TaskTexts]:
    """All examples of all tasks, checked. Raises CorpusError for unusable input before any work."""
    texts = {name: TaskTexts(name, task, recipe.seed) for name, task in recipe.tasks.items()}
    for task_texts in texts.values():
        task_texts.check()
    return texts


def gold_of(example: Example) -> str | list[str]:
    """The reference for an example's prediction: a label, tags, or the texts of all answers."""
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

    seed  of the dev split, the same for all models and trainings
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
        # A random draw, not the first: some files are sorted by label (SIB-200's test files).
        names = (split,) if self.task.parallel and split == "test" else (language, split)
        drawn = self._generator(*names).choice(len(examples), limit, replace=False)
        return [examples[index] for index in sorted(drawn)]

    def _generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, hash_text("/".join((self.name, *names)))])

    def field(self, language: str, split: str) -> str:
        """The recipe's field of a file."""
        return f"tasks.{self.name}.data.{language}.{split}"

    @cached_property
    def splits(self) -> dict[str, dict[str, Sequence[Example]]]:
        """Language → split → examples; source languages have `train` and `dev`, all have `test`."""
        splits = {language: dict(read) for language, read in self._read.items()}
        for source in self.task.sources if self.task.overlap == "drop" else []:
            for split in ("train", "dev"):
                if split in splits[source]:
                    splits[source][split] = self._without_tests(source, split)
        for source in self.task.sources:
            if "dev" in splits[source]:
                continue
            examples = splits[source]["train"]
            chosen = self._set_apart(source, examples)
            if not 0 < len(chosen) < len(examples):
                raise CorpusError(
                    self.field(source, "train"),
                    None,
                    f"{len(examples)} examples are too few for a dev split",
                    f"give more, or data.{source}.dev",
                )
            rest = [index for index in range(len(examples)) if index not in chosen]
            splits[source]["dev"] = [examples[index] for index in sorted(chosen)]
            splits[source]["train"] = [examples[index] for index in rest]
        return splits

    def _without_tests(self, source: str, split: str) -> Sequence[Example]:
        """The examples of a split that are in no test set of this source's models."""
        tests = (test for target in self.task.targets(source) for test in self._read[target]["test"])
        tested = set(map(_content, tests))
        kept = [example for example in self._read[source][split] if _content(example) not in tested]
        if not kept:
            raise CorpusError(
                self.field(source, split),
                None,
                "all of its examples are also in the test set, and overlap: drop removes them",
                "name another file, or set overlap: count",
            )
        return kept

    def _set_apart(self, source: str, examples: Sequence[Example]) -> set[int]:
        """Indices of the training file's examples that become the dev set.

        All questions on a text go together: a text seen in training is a weaker test.
        """
        size = round(len(examples) * self.task.dev_share)
        groups: dict[str | int, list[int]] = {}
        for index, example in enumerate(examples):
            key = example.context if isinstance(example, Question) else index
            groups.setdefault(key, []).append(index)
        members = list(groups.values())
        chosen: set[int] = set()
        for group in self._generator(source).permutation(len(members)):
            if len(chosen) >= size:
                break
            chosen.update(members[group])
        return chosen

    def labels(self, source: str) -> list[str]:
        """The labels of a language's training file, sorted; none for choices and answers."""
        return sorted(_labels(self._read[source]["train"])) if self.task.kind not in ("choice", "qa") else []

    def identity(self, language: str, split: str) -> str:
        """The fingerprint of a split's examples; compression of the file does not change it."""
        key = (language, split)
        if key not in self._identities:
            self._identities[key] = fingerprint([asdict(example) for example in self.splits[language][split]])
        return self._identities[key]

    def check(self) -> None:
        """Raise CorpusError for data that cannot be learned or scored; `notes` lists lesser problems."""
        self._check_parallel()
        for source in self.task.sources:
            field = self.field(source, "train")
            train = self.splits[source]["train"]
            if self.task.kind == "qa":
                if not any(isinstance(example, Question) and locate(example) for example in train):
                    raise CorpusError(
                        field, None, "no question's answer occurs in its text", "check the file"
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
                    f"all examples have the label {labels[0]!r}",
                    "give examples of at least two labels",
                )
            for target in self.task.targets(source):
                unseen = self.unseen(source, target)
                if unseen and self.task.unseen_labels == "refuse":
                    raise CorpusError(
                        self.field(target, "test"),
                        None,
                        f"has labels that are not in the training data of {source}: {_named(unseen)}",
                        f"correct the files, or score them as wrong with tasks.{self.name}.unseen_labels: "
                        "count",
                    )

    def _check_parallel(self) -> None:
        """Raise CorpusError for test sets that cannot be translations of each other, item by item."""
        first, *others = self.splits if self.task.parallel else [""]
        for other in others:
            sizes = [len(self.splits[language]["test"]) for language in (first, other)]
            if sizes[0] != sizes[1]:
                raise CorpusError(
                    f"tasks.{self.name}.parallel",
                    "true",
                    f"the test sets of {first} and {other} have {sizes[0]} and {sizes[1]} items, so they are "
                    "no translations of each other, item by item",
                    "remove `parallel`, or give files whose items correspond",
                )

    def _check_entities(self, source: str) -> None:
        """Raise CorpusError for tags that seqeval would misread as entities (NOUN as one of kind OUN)."""
        for language, split in (
            (source, "train"),
            (source, "dev"),
            *((target, "test") for target in self.task.targets(source)),
        ):
            counts = _labels(self.splits[language][split])
            other = Counter({tag: count for tag, count in counts.items() if not ENTITY_TAG.fullmatch(tag)})
            if other:
                raise CorpusError(
                    self.field(language, split),
                    None,
                    f"has tags that are not entity tags: {_named(other)}",
                    "give O, B-KIND, I-KIND (IOB2), or E- and S- besides; for parts of speech set kind: pos",
                )

    def _check_answers(self) -> None:
        """Raise CorpusError for a split without answers, as many published test sets are."""
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
        """Counts of a target split's labels that the source's training file lacks."""
        known = set(self.labels(source))
        if not known:
            return Counter()
        counts = _labels(self.splits[target][split])
        return Counter({label: count for label, count in counts.items() if label not in known})

    def notes(self) -> list[str]:
        """Problems of the files that a user should know, with counts; they are written to the results."""
        notes = [note for source in self.task.sources for note in self._overlaps(source)]
        notes += [
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
                    notes.append(
                        f"{self.field(target, split)}: labels that training on {source} never saw "
                        f"count as wrong: {_named(unseen)}"
                    )
        if self.task.kind != "qa":
            return notes
        for language, splits in self.splits.items():
            for split, examples in splits.items():
                questions = [example for example in examples if isinstance(example, Question)]
                for fault, count in answer_faults(questions).items():
                    what = f"{count} of {len(questions)} questions {FAULTS[fault]}"
                    notes.append(f"{self.field(language, split)}: {what}{_consequence(fault, split)}")
        return notes

    def _overlaps(self, source: str) -> list[str]:
        """Notes on training examples that are in test sets, kept or dropped."""
        notes = []
        read = self._read[source] if self.task.overlap == "drop" else {}
        for split in [split for split in ("train", "dev") if split in read]:
            if dropped := len(read[split]) - len(self._without_tests(source, split)):
                what = "questions are on texts" if self.task.kind == "qa" else "examples are some"
                notes.append(
                    f"{self.field(source, split)}: {dropped} of {len(read[split])} {what} "
                    "that a test set has: they are left out"
                )
        known = {_content(example) for example in self.splits[source]["train"]}
        for target in self.task.targets(source):
            tests = self.splits[target]["test"]
            what = "questions are on texts that" if self.task.kind == "qa" else "examples"
            if shared := sum(_content(example) in known for example in tests):
                notes.append(
                    f"{self.field(target, 'test')}: {shared} of {len(tests)} {what} "
                    f"stand in {source}'s training set too (overlap: drop leaves them out of it)"
                )
        return notes


def _consequence(fault: str, split: str) -> str:
    if fault == "misplaced":
        return ": the nearest is taken" if split == "train" else ""
    if split == "train":
        return ": they are left out of training"
    if fault == "without":
        return ": every prediction for them is counted as wrong, for SQuAD v1.1 knows no such questions"
    return ": they are counted as all others"


def _content(example: Example) -> str:
    """The content of an example that training reveals: a question's text, else the whole example."""
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
