"""Probes: linear classifiers of words on frozen encoders, within a language and from each language to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.markup import escape
from rich.table import Table

from polydistill.artefacts import artefact, is_current
from polydistill.config import ProbeRecipe
from polydistill.config.probe import ProbedModel, TaggedData
from polydistill.corpora.lines import hash_text_file
from polydistill.corpora.tagged import TaggedSentence, read_tagged
from polydistill.disk import fingerprint, read_json, write_json
from polydistill.errors import CorpusError
from polydistill.evaluation import fit_probe, score_tags, split_into_windows, word_features
from polydistill.models import device, keep_freed_memory, load_masked_lm, resolve_dtype, weights_fingerprint
from polydistill.recipes.records import check_evaluation, report_run
from polydistill.recipes.run_folder import Run
from polydistill.tokenization import LoadedTokenizer, load_tokenizer

STAGES = ("evaluate", "report")
# What a task is measured by; the first is the paper's.
METRICS = {"pos": ("accuracy",), "ner": ("macro_f1", "entity_f1")}
SPLITS = ("train", "test")


def run_probe(recipe: ProbeRecipe, run: Run, *, until: str = "report") -> Path:
    """Probe every model on every task; returns the run's folder. Scores are in evaluation/probes.json."""
    with run.claim():
        texts = read_tasks(recipe.tasks)
        run.record_recipe()
        probe_models(recipe, run, texts)
        if until == "report":
            report_run(run.path)
    return run.path


Texts = dict[str, dict[str, "TaggedText"]]


def read_tasks(tasks: Mapping[Any, Mapping[str, TaggedData]], *, field: str = "tasks") -> Texts:
    """Task → language → tagged sentences, all of them read: a file that cannot be used is a CorpusError before any work.

    field  where the tasks stand in the recipe
    """
    texts = {
        task: {
            language: TaggedText(f"{field}.{task}.{language}", task, language, data)
            for language, data in languages.items()
        }
        for task, languages in tasks.items()
    }
    for languages in texts.values():
        for text in languages.values():
            text.read()
    return texts


def probe_models(recipe: ProbeRecipe, run: Run, texts: Texts) -> None:
    """Probe every model on every task in a run that is claimed, to evaluation/probes.json."""
    scores: dict[str, dict[str, Any]] = {task: {} for task in texts}
    for name, settings in recipe.models.items():
        model = _Probed(name, settings, recipe, run)
        for task, languages in texts.items():
            scores[task][name] = _probe(recipe, run, model, task, languages)
    write_json(run.path / "evaluation" / "probes.json", {
        "scores": scores,
        "summary": {
            task: {
                metric: {name: summarise(found, metric, recipe.groups) for name, found in models.items()}
                for metric in METRICS[task]
            }
            for task, models in scores.items()
        },
    }, sealed=True)  # fmt: skip


@dataclass
class TaggedText:
    """The tagged sentences of one language for one task."""

    field: str
    task: str
    language: str
    data: TaggedData

    def read(self) -> None:
        """Raise CorpusError for a file that cannot be used."""
        tags = {tag for sentence in self.sentences["train"] for tag in sentence.tags}
        if len(tags) == 1:
            raise CorpusError(
                self._field("train"), self.data.train, f"has a single tag ({tags.pop()}): there is nothing to tell apart",
                "use a file with its tags, or leave the language out",
            )  # fmt: skip

    @cached_property
    def sentences(self) -> dict[str, list[TaggedSentence]]:
        """Of each split."""
        return {
            split: read_tagged(
                self._path(split), field=self._field(split), max_sentences=self.data.max_sentences
            )
            for split in SPLITS
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the sentences hang on."""
        hashes = {split: hash_text_file(self._path(split), self._field(split)) for split in SPLITS}
        return hashes | {"max": self.data.max_sentences}

    def _path(self, split: str) -> Path:
        return Path(self.data.train if split == "train" else self.data.test)

    def _field(self, split: str) -> str:
        return f"{self.field}.{split}"


def probed_tokenizer(settings: ProbedModel, language: str) -> LoadedTokenizer:
    """What a model reads a language by: its tokenizer for just that language, where it has one and may use it."""
    own = Path(settings.model) / "tokenizer" / language
    place = str(own) if settings.tokenizer == "own" and own.is_dir() else None
    return load_tokenizer(settings.model, tokenizer=place, revision=settings.revision)


class _Probed:
    """A model whose encoder stays as it is; loaded when its features are wanted and not there."""

    def __init__(self, name: str, settings: ProbedModel, recipe: ProbeRecipe, run: Run) -> None:
        self.name, self.settings, self.run = name, settings, run
        self.probing = recipe.probing
        self.dtype = resolve_dtype(recipe.probing.precision)
        self.weights = weights_fingerprint(settings.model, revision=settings.revision)

    @cached_property
    def encoder(self) -> Any:
        """The model without its head."""
        keep_freed_memory()
        model = load_masked_lm(self.settings.model, revision=self.settings.revision).to(device())
        return model.base_model

    def identity(self, text: TaggedText) -> dict[str, Any]:
        """What features of a text hang on."""
        return {
            "weights": self.weights,
            "tokenizer": probed_tokenizer(self.settings, text.language).fingerprint,
            "text": text.identity,
            "max_length": self.probing.max_length,
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def features(self, text: TaggedText, split: str) -> npt.NDArray[np.float16]:
        """[words, H] of all words of a split, in order, from disk where they are there."""
        place = f"features/{text.task}/{self.name}/{text.language}-{split}"
        target = self.run.path / place
        inputs = {"stage": "features", "split": split, **self.identity(text)}
        found = self.run.find(place, inputs)
        if found is None:
            tokenizer = probed_tokenizer(self.settings, text.language)
            words = [sentence.words for sentence in text.sentences[split]]
            windows = split_into_windows(words, tokenizer, min(self.probing.max_length, tokenizer.max_length))
            starts = np.cumsum([0, *(len(window.words) for window in windows)])
            with self.run.stage(f"features/{text.task}/{self.name}"), artefact(target, inputs) as folder:
                rows = np.lib.format.open_memmap(
                    folder / "features.npy", mode="w+", dtype=np.float16,
                    shape=(int(starts[-1]), self.encoder.config.hidden_size),
                )  # fmt: skip
                for index, states in word_features(
                    self.encoder, windows, tokenizer.special_ids["pad"],
                    batch_tokens=self.probing.batch_tokens, dtype=self.dtype,
                ):  # fmt: skip
                    rows[starts[index] : starts[index + 1]] = states
                rows.flush()
        loaded: npt.NDArray[np.float16] = np.load((found or target) / "features.npy", mmap_mode="r")
        return loaded


def _probe(
    recipe: ProbeRecipe, run: Run, model: _Probed, task: str, languages: dict[str, TaggedText]
) -> dict[str, Any]:
    """source → target → metric → one score a seed."""
    target = run.path / "probes" / task / model.name
    inputs = {
        "stage": "probes",
        "features": {language: fingerprint(model.identity(text)) for language, text in languages.items()},
        "probing": recipe.probing.model_dump(mode="json"),
        "seed": recipe.seed,
    }
    if not is_current(target, inputs):
        tags = sorted({tag for text in languages.values() for s in text.sentences["train"] for tag in s.tags})
        with artefact(target, inputs) as folder:
            scores = {}
            for source, text in languages.items():
                features = model.features(text, "train")
                classes = np.array([tags.index(tag) for s in text.sentences["train"] for tag in s.tags])
                with run.stage(f"probe/{task}/{model.name}"):
                    probes = [
                        fit_probe(
                            features, classes, len(tags), seed=recipe.seed + index,
                            epochs=recipe.probing.epochs, batch_size=recipe.probing.batch_size,
                        ).predict
                        for index in range(recipe.probing.num_seeds)
                    ]  # fmt: skip
                    scores[source] = _transfer(probes, model, languages, tags)
                first = METRICS[task][0]
                run.say(f"{task}/{model.name}: from {source} " + ", ".join(
                    f"{name} {np.mean(found[first]):.3f}" for name, found in scores[source].items()
                ))  # fmt: skip
            write_json(folder / "scores.json", scores)
    found: dict[str, Any] = read_json(target / "scores.json", dict)
    return found


def _transfer(
    probes: Sequence[Callable[..., npt.NDArray[np.int64]]],
    model: _Probed,
    languages: dict[str, TaggedText],
    tags: Sequence[str],
) -> dict[str, dict[str, list[float]]]:
    """One source's probes on every target: target → metric → one score a seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for target, text in languages.items():
        gold = [sentence.tags for sentence in text.sentences["test"]]
        ends = np.cumsum([len(sentence) for sentence in gold])[:-1]
        features = model.features(text, "test")
        found[target] = {}
        for predict in probes:
            predicted = [[tags[index] for index in row] for row in np.split(predict(features), ends)]
            for metric, value in score_tags(gold, predicted, text.task).items():
                found[target].setdefault(metric, []).append(value)
    return found


def summarise(
    scores: dict[str, dict[str, dict[str, list[float]]]], metric: str, groups: dict[str, list[str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """group → `in_language` and `zero_shot` → mean and standard deviation, over seeds, of the mean over languages or pairs.

    scores  source → target → metric → one score a seed
    A group's figures are those of its languages as targets; zero-shot sources are all other languages.
    """
    found = {}
    for group, members in {"all": list(scores), **groups}.items():
        pairs = {
            "in_language": [(target, target) for target in members if target in scores],
            "zero_shot": [(source, target) for target in members for source in scores if source != target],
        }
        found[group] = {
            kind: _moments(
                [scores[source][target][metric] for source, target in chosen if target in scores[source]]
            )
            for kind, chosen in pairs.items()
        }
    return found


def _moments(rows: list[list[float]]) -> dict[str, float]:
    if not rows:
        return {}
    means = np.mean(rows, axis=0)
    return {"mean": float(means.mean()), "deviation": float(means.std(ddof=1)) if len(means) > 1 else 0.0}


def probe_tables(folder: Path) -> list[Table]:
    """Tables for people of a finished run: a task's averages, and each language by itself."""
    results = check_evaluation(folder / "evaluation" / "probes.json")
    tables = []
    for task, metrics in results["summary"].items():
        for metric, models in metrics.items():
            name = f"{task}, {metric.replace('_', ' ')}"
            groups = list(next(iter(models.values())))
            table = Table(title=f"{name}: mean ± standard deviation over seeds", box=box.SIMPLE)
            table.add_column("", no_wrap=True)
            for group in groups:
                table.add_column(f"{group}: in language", justify="right")
                table.add_column(f"{group}: zero-shot", justify="right")
            for model, found in models.items():
                cells = [
                    _shown(found[group][kind]) for group in groups for kind in ("in_language", "zero_shot")
                ]
                table.add_row(escape(model), *cells)
            tables.append(table)
            scores = results["scores"][task]
            table = Table(title=f"{name}: from (rows) to (columns), mean over seeds", box=box.SIMPLE)
            languages = list(next(iter(scores.values())))
            for column in ("", "from", *languages):
                table.add_column(column, justify="right" if column in languages else "left", no_wrap=True)
            for model, found in scores.items():
                for source in languages:
                    row = [f"{np.mean(found[source][target][metric]):.3f}" for target in languages]
                    table.add_row(escape(model) if source == languages[0] else "", source, *row)
            tables.append(table)
    return tables


def _shown(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} ± {found['deviation']:.3f}" if found else ""
