"""Probes: linear classifiers of words on frozen encoders, within each language and across languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from polydistill.config.probe import ProbedModel, ProbeRecipe
from polydistill.disk import Json, fingerprint, read_json, write_json
from polydistill.models.load import load_masked_lm, weights_fingerprint
from polydistill.models.memory import keep_freed_memory
from polydistill.models.precision import device, resolve_dtype
from polydistill.pipelines.pipeline import Command, Pipeline, Stage
from polydistill.pipelines.probe.plan import plan_probe
from polydistill.pipelines.run_folder import Run
from polydistill.pipelines.stages.evaluation import write_page
from polydistill.tasks.probes import METRICS, fit_probe, score_tags, summarise
from polydistill.tasks.tagged import TaggedText, Texts, read_tagged_tasks
from polydistill.tasks.words import split_into_windows, word_features
from polydistill.tokenization.load import probed_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Probing(NamedTuple):
    """The state that the stages of a probe recipe share."""

    recipe: ProbeRecipe
    run: Run
    texts: Texts


def prepare(recipe: ProbeRecipe, run: Run, _: Command) -> Probing:
    """Read the tagged text."""
    return Probing(recipe, run, read_tagged_tasks(recipe.tasks))


def evaluate(state: Probing) -> None:
    """Probe every model on every task."""
    probe_models(state.recipe, state.run, state.texts)


def probe_models(recipe: ProbeRecipe, run: Run, texts: Texts) -> None:
    """Probe every model on every task in a claimed run, to evaluation/probes.json."""
    scores: dict[str, Json] = {task: {} for task in texts}
    for name, settings in recipe.models.items():
        model = _Probed(name, settings, recipe, run)
        for task, languages in texts.items():
            scores[task][name] = _probe(recipe, run, model, task, languages)
    write_json(
        run.path / "evaluation" / "probes.json",
        {
            "scores": scores,
            "summary": {
                task: {
                    metric: {
                        name: summarise(scores_of, metric, recipe.groups)
                        for name, scores_of in models.items()
                    }
                    for metric in METRICS[task]
                }
                for task, models in scores.items()
            },
        },
        sealed=True,
    )


class _Probed:
    """A model with a frozen encoder, which is loaded only if features are missing."""

    def __init__(self, name: str, settings: ProbedModel, recipe: ProbeRecipe, run: Run) -> None:
        self.name, self.settings, self.run = name, settings, run
        self.probing = recipe.probing
        self.dtype = resolve_dtype(recipe.probing.precision)
        self.weights = weights_fingerprint(settings.model, revision=settings.revision)

    @cached_property
    def encoder(self) -> PreTrainedModel:
        """The model without its head."""
        keep_freed_memory()
        model = load_masked_lm(self.settings.model, revision=self.settings.revision).to(device())
        return model.base_model

    def identity(self, text: TaggedText) -> Json:
        """The inputs that features of a text depend on."""
        return {
            "weights": self.weights,
            "tokenizer": probed_tokenizer(self.settings, text.language).fingerprint,
            "text": text.identity,
            "max_length": self.probing.max_length,
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def features(self, text: TaggedText, split: str) -> npt.NDArray[np.float16]:
        """[words, H] of all words of a split, in order; read from disk if present."""
        inputs = {"stage": "features", "split": split, **self.identity(text)}

        def write(folder: Path) -> None:
            tokenizer = probed_tokenizer(self.settings, text.language)
            words = [sentence.words for sentence in text.sentences[split]]
            windows = split_into_windows(words, tokenizer, min(self.probing.max_length, tokenizer.max_length))
            starts = np.cumsum([0, *(len(window.words) for window in windows)])
            rows = np.lib.format.open_memmap(
                folder / "features.npy",
                mode="w+",
                dtype=np.float16,
                shape=(int(starts[-1]), self.encoder.config.hidden_size),
            )
            for index, states in word_features(
                self.encoder,
                windows,
                tokenizer.special_ids["pad"],
                batch_tokens=self.probing.batch_tokens,
                dtype=self.dtype,
            ):
                rows[starts[index] : starts[index + 1]] = states
            rows.flush()

        features = self.run.make(
            f"features/{text.task}/{self.name}/{text.language}-{split}",
            inputs,
            write,
            reuse=True,
            stage=f"features/{text.task}/{self.name}",
        )
        loaded: npt.NDArray[np.float16] = np.load(features.path / "features.npy", mmap_mode="r")
        return loaded


def _probe(
    recipe: ProbeRecipe, run: Run, model: _Probed, task: str, languages: dict[str, TaggedText]
) -> Json:
    """source → target → metric → one score per seed."""
    inputs = {
        "stage": "probes",
        "features": {language: fingerprint(model.identity(text)) for language, text in languages.items()},
        "probing": recipe.probing.model_dump(mode="json"),
        "seed": recipe.seed,
    }
    tags = sorted({tag for text in languages.values() for s in text.sentences["train"] for tag in s.tags})

    def write(folder: Path) -> None:
        scores = {}
        for source, text in languages.items():
            features = model.features(text, "train")
            classes = np.array([tags.index(tag) for s in text.sentences["train"] for tag in s.tags])
            probes = [
                fit_probe(
                    features,
                    classes,
                    len(tags),
                    seed=recipe.seed + index,
                    epochs=recipe.probing.epochs,
                    batch_size=recipe.probing.batch_size,
                ).predict
                for index in range(recipe.probing.num_seeds)
            ]
            scores[source] = _transfer(probes, model, languages, tags)
            first = METRICS[task][0]
            run.say(
                f"{task}/{model.name}: from {source} "
                + ", ".join(
                    f"{name} {np.mean(of_target[first]):.3f}" for name, of_target in scores[source].items()
                )
            )
        write_json(folder / "scores.json", scores)

    made = run.make(f"probes/{task}/{model.name}", inputs, write, stage=f"probe/{task}/{model.name}")
    scores: Json = read_json(made.path / "scores.json", dict)
    return scores


def _transfer(
    probes: Sequence[Callable[..., npt.NDArray[np.int64]]],
    model: _Probed,
    languages: dict[str, TaggedText],
    tags: Sequence[str],
) -> dict[str, dict[str, list[float]]]:
    """One source's probes on every target: target → metric → one score per seed."""
    scores: dict[str, dict[str, list[float]]] = {}
    for target, text in languages.items():
        gold = [sentence.tags for sentence in text.sentences["test"]]
        ends = np.cumsum([len(sentence) for sentence in gold])[:-1]
        features = model.features(text, "test")
        scores[target] = {}
        for predict in probes:
            predicted = [[tags[index] for index in row] for row in np.split(predict(features), ends)]
            for metric, value in score_tags(gold, predicted, text.task).items():
                scores[target].setdefault(metric, []).append(value)
    return scores


def write_report(state: Probing) -> None:
    """Write the report."""
    with state.run.stage("report"):
        write_page(state.run)


PIPELINE = Pipeline(
    ProbeRecipe,
    lambda recipe, command: None,
    prepare,
    (Stage("evaluate", evaluate), Stage("report", write_report)),
    plan_probe,
    distributed=False,
)
