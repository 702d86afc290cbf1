"""Merge: several teachers in, one multilingual student out (MergeDistill, section 3.1).

Corpora → tokenizers → scoring → training → evaluation → report; each stage is skipped if its artefact is
there and was made from the same inputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from polydistill.config import MergeRecipe
from polydistill.corpora import Examples, smoothed_probabilities
from polydistill.errors import RecipeError
from polydistill.files import (
    artefact,
    explain_disk_errors,
    fingerprint,
    hash_folder,
    is_current,
    read_json,
    write_json,
    write_text,
)
from polydistill.models import (
    TeacherRows,
    build_student,
    check_encoder,
    device,
    load_masked_lm,
    model_config,
    resolve_dtype,
    start_from_teachers,
    student_config,
    weights_fingerprint,
)
from polydistill.recipes.corpus import prepare_corpus
from polydistill.recipes.evaluate import Reader, evaluate_language, sample_guesses, summarise, text_files
from polydistill.recipes.run_folder import Run
from polydistill.reports import build_report, model_card
from polydistill.scoring import score
from polydistill.store import Store
from polydistill.tokenization import (
    LoadedTokenizer,
    Union,
    language_tokenizer,
    load_tokenizer,
    overlap,
    save_tokenizer,
    segmentation,
    special_strings,
    union_tokenizer,
    unite,
)
from polydistill.tokenization.build import readable
from polydistill.training import (
    StoredExamples,
    check_arguments,
    choose_copies,
    portable,
    train,
    training_arguments,
)

STAGES = ("corpora", "tokenizer", "score", "train", "evaluate", "report")
SEGMENTATION_TEXTS = 2000


@dataclass
class Merge:
    """A merge under way: what the stages hand on.

    corpora  language → (folder, what it was made from)
    stores   (language, teacher) → folder
    """

    recipe: MergeRecipe
    run: Run
    tokenizers: dict[str, LoadedTokenizer]
    union: Union
    corpora: dict[str, tuple[Path, dict[str, Any]]]
    stores: dict[tuple[str, str], Path]

    @property
    def maps(self) -> dict[str, npt.NDArray[np.int64]]:
        """Teacher → its ids in the student's vocabulary."""
        return dict(zip(self.recipe.teachers, self.union.maps, strict=True))


def run_merge(recipe: MergeRecipe, run: Run, *, until: str = "report") -> Path:
    """Run a merge up to a stage of STAGES; returns the run's folder. What is done already is not done again."""
    last = STAGES.index(until)
    arguments = check_arguments(recipe.training)
    with run.claim():
        merge = prepare(recipe, run, arguments)
        run.record_recipe()
        stages: tuple[Callable[[Merge], None], ...] = (
            build_corpora,
            build_tokenizers,
            score_teachers,
            partial(train_student, arguments=arguments),
            evaluate_models,
            write_report,
        )
        for stage in stages[: last + 1]:
            stage(merge)
    return run.path


def prepare(recipe: MergeRecipe, run: Run, arguments: dict[str, Any]) -> Merge:
    """Load the teachers' tokenizers, unite them, and check all that can be checked before hours of scoring."""
    tokenizers = {
        name: load_tokenizer(t.model, name=name, tokenizer=t.tokenizer, revision=t.revision)
        for name, t in recipe.teachers.items()
    }
    for name, tokenizer in tokenizers.items():
        if tokenizer.max_length < recipe.corpora.max_length:
            raise RecipeError(
                "corpora.max_length",
                recipe.corpora.max_length,
                f"teacher {name} takes at most {tokenizer.max_length} tokens",
                f"set corpora.max_length to {tokenizer.max_length} or less",
            )
        if recipe.scoring.top_k > tokenizer.size:
            raise RecipeError(
                "scoring.top_k",
                recipe.scoring.top_k,
                f"larger than the vocabulary of teacher {name} ({tokenizer.size} pieces)",
                "choose a smaller k",
            )
    merge = Merge(recipe, run, tokenizers, unite(list(tokenizers.values())), {}, {})
    config, first = _student_config(merge)
    build_student(config, seed=recipe.seed, device="meta")
    if first is not None:
        check_encoder(config, model_config(recipe.teachers[first].model, name=first), first)
    training_arguments(arguments, run.path / "student" / "checkpoints", seed=recipe.seed)
    return merge


def build_corpora(merge: Merge) -> None:
    """Every language's corpus."""
    recipe = merge.recipe
    for language, settings in recipe.languages.items():
        merge.corpora[language] = prepare_corpus(
            merge.run,
            language,
            text=settings.text,
            evaluation=settings.evaluation,
            settings=recipe.corpora,
            tokenizers=[merge.tokenizers[name] for name in settings.teachers],
        )


def build_tokenizers(merge: Merge) -> None:
    """The union tokenizer and each language's own, and how they treat the languages."""
    recipe, run = merge.recipe, merge.run
    inputs = {
        "stage": "tokenizer",
        # A list, for the order of teachers fixes the ids.
        "tokenizers": [[name, tokenizer.fingerprint] for name, tokenizer in merge.tokenizers.items()],
        "settings": recipe.student.tokenizer.model_dump(),
        "languages": {language: settings.teachers for language, settings in recipe.languages.items()},
        "corpora": _corpora_fingerprints(merge),
        "max_length": recipe.corpora.max_length,
    }
    if is_current(run.path / "tokenizer", inputs):
        return
    with run.stage("tokenizer"), artefact(run.path / "tokenizer", inputs) as folder:
        loaded = list(merge.tokenizers.values())
        settings = recipe.student.tokenizer
        union = union_tokenizer(
            merge.union, loaded, lowercase=settings.lowercase, strip_accents=settings.strip_accents
        )
        length = max(recipe.corpora.max_length, min(512, *(tokenizer.max_length for tokenizer in loaded)))
        specials = {role: f"[{role.upper()}]" for role in merge.union.special_ids}
        save_tokenizer(union, folder, specials=specials, max_length=length)
        measured = {}
        for language, language_settings in recipe.languages.items():
            texts = _some_texts(merge.corpora[language][0])
            for place, name in enumerate(language_settings.teachers):
                teacher = merge.tokenizers[name]
                own = language_tokenizer(teacher, merge.maps[name], merge.union)
                if place == 0:
                    save_tokenizer(
                        own, folder / language, specials=special_strings(teacher), max_length=length
                    )
                measured[f"{language}/{name}"] = segmentation(
                    union, own, texts, unk_id=merge.union.special_ids["unk"]
                ).as_dict()
        write_json(
            folder / "vocabulary.json",
            {
                "size": merge.union.size,
                "teachers": {name: tokenizer.size for name, tokenizer in merge.tokenizers.items()},
                "overlap": overlap(loaded).tolist(),
                "segmentation": measured,
            },
        )
    run.say(f"tokenizer: union of {merge.union.size:,} pieces")
    for name, values in measured.items():
        run.say(
            f"  {name}: drift {values['drift']:.1%}, {values['fertility']:.2f} tokens a word "
            f"(own {values['own_fertility']:.2f}), unknown {values['unknown_share']:.2%} (own {values['own_unknown_share']:.2%})"
        )


def score_teachers(merge: Merge) -> None:
    """The store of every teacher over every one of its languages."""
    recipe, run = merge.recipe, merge.run
    dtype = resolve_dtype(recipe.scoring.precision)
    for name, teacher in recipe.teachers.items():
        languages = [language for language, settings in recipe.languages.items() if name in settings.teachers]
        weights = weights_fingerprint(teacher.model, revision=teacher.revision) if languages else ""
        model = None
        for language in languages:
            place = f"store/{language}/{name}"
            identity, found = _find_store(merge, language, name, weights)
            if found is not None:
                Store(found).check_identity(identity, field=f"languages.{language}")
                merge.stores[language, name] = run.use(place, found)
                continue
            if model is None:
                model = load_masked_lm(
                    teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
                ).to(device())
            examples = Examples(merge.corpora[language][0] / "train.arrow")
            target = run.path / "store" / language / name
            with (
                run.stage(f"score/{language}/{name}"),
                artefact(target, identity, keep_partial=True) as folder,
            ):
                result = score(
                    folder, identity, examples, merge.tokenizers[name], model,
                    scoring=recipe.scoring, masking=recipe.masking, max_length=recipe.corpora.max_length,
                    dtype=dtype, seed=recipe.seed, progress=_counter(run, f"score/{language}/{name}", len(examples)),
                )  # fmt: skip
            merge.stores[language, name] = run.use(place, target)
            store = Store(target)
            speed = result["tokens_scored"] / result["seconds"] if result["seconds"] else 0
            run.say(
                f"store/{language}/{name}: {store.num_masked:,} masked positions, {store.num_bytes / 2**20:.1f} MiB, "
                f"{speed:,.0f} tokens/s"
            )


def train_student(merge: Merge, arguments: dict[str, Any]) -> None:
    """Train the student on the stores, and write it as a Hugging Face folder."""
    recipe, run = merge.recipe, merge.run
    target = run.path / "student" / "final"
    inputs = {
        "stage": "student",
        "stores": {
            "/".join(key): fingerprint(Store(folder).identity) for key, folder in merge.stores.items()
        },
        "tokenizer": read_json(run.path / "tokenizer" / "stamp.json")["fingerprint"],
        "student": recipe.student.model_dump(mode="json"),
        "distillation": recipe.distillation.model_dump(mode="json"),
        # A list, for a checkpoint knows languages by their place.
        "use": [[language, settings.use] for language, settings in recipe.languages.items()],
        "smoothing_alpha": recipe.corpora.smoothing_alpha,
        "training": portable(arguments),
        "seed": recipe.seed,
        "encoder": _encoder_weights(merge),
    }
    if is_current(target, inputs):
        return
    checkpoints = run.path / "student" / "checkpoints"
    if not is_current(checkpoints, inputs):
        # Checkpoints of other settings are of no use, and must not be gone on from.
        shutil.rmtree(checkpoints, ignore_errors=True)
        write_json(checkpoints / "stamp.json", {"fingerprint": fingerprint(inputs), "inputs": inputs})
    model, record = initial_student(merge)
    run.say(
        "training from "
        + ("random weights" if recipe.student.init == "random" else str(record["encoder_from"]))
    )
    data = {language: stored_examples(merge, language) for language in recipe.languages}
    sizes = {
        language: len(Store(merge.stores[language, s.teachers[0]]))
        for language, s in recipe.languages.items()
    }
    probabilities = smoothed_probabilities(sizes, recipe.corpora.smoothing_alpha)
    run.say(
        f"student: {sum(p.numel() for p in model.parameters()):,} parameters, "
        + ", ".join(f"{language} {share:.0%}" for language, share in probabilities.items())
    )
    with run.stage("train"), explain_disk_errors(checkpoints):
        log = train(
            model, data, [probabilities[language] for language in data],
            folder=checkpoints, arguments=arguments, distillation=recipe.distillation,
            pad_id=merge.union.special_ids["pad"], seed=recipe.seed, say=run.say,
        )  # fmt: skip
    # Before the model: whoever finds the model whole finds its log too.
    write_json(run.path / "student" / "log.json", {"log": log, "probabilities": probabilities})
    with artefact(target, inputs) as folder:
        model.save_pretrained(folder)
        shutil.copytree(run.path / "tokenizer", folder, dirs_exist_ok=True, ignore=_only_tokenizer_files)
        for language in recipe.languages:
            shutil.copytree(
                run.path / "tokenizer" / language, folder / "tokenizer" / language, dirs_exist_ok=True
            )
        write_text(folder / "README.md", model_card(recipe, record))
        write_json(folder / "initialisation.json", record)


def evaluate_models(merge: Merge) -> None:
    """Student and teachers on held-out and further texts, to evaluation/mlm.json and samples.json."""
    recipe, run = merge.recipe, merge.run
    target = run.path / "evaluation"
    inputs = {
        "stage": "evaluation",
        "student": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "tokenizer": read_json(run.path / "tokenizer" / "stamp.json")["fingerprint"],
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": recipe.masking.model_dump(mode="json"),
        "seed": recipe.seed,
        "corpora": _corpora_fingerprints(merge),
        "stores": {
            "/".join(key): fingerprint(Store(folder).identity) for key, folder in merge.stores.items()
        },
    }
    if is_current(target, inputs):
        return
    with run.stage("evaluate"), artefact(target, inputs) as folder:
        dtype = resolve_dtype(recipe.evaluation.precision)
        student = load_masked_lm(str(run.path / "student" / "final"), name="student").to(device())
        union_backend = Tokenizer.from_file(str(run.path / "tokenizer" / "tokenizer.json"))
        union_view = LoadedTokenizer("union", union_backend, merge.union.special_ids, 10**9)
        teachers = _TeacherCache(merge)
        strings = merge.union.strings()
        rows: dict[str, list[dict[str, Any]]] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for language, settings in recipe.languages.items():
            run.say(f"evaluating {language}")
            corpus = merge.corpora[language][0]
            readers = [Reader("student", student, union_view, "union")]
            for name in settings.teachers:
                pieces = np.zeros(merge.union.size, dtype=bool)
                pieces[merge.maps[name]] = True
                tokenizer = merge.tokenizers[name]
                readers.append(Reader(name, teachers.load(name), tokenizer, "own", name))
                readers.append(Reader("student", student, tokenizer, "own", name, merge.maps[name], pieces))
            common: dict[str, Any] = {
                "masking": recipe.masking,
                "max_length": recipe.corpora.max_length,
                "seed": recipe.seed,
            }
            rows[language] = evaluate_language(
                readers, training=Examples(corpus / "train.arrow"), texts=text_files(corpus),
                settings=recipe.evaluation, dtype=dtype, **common,
            )  # fmt: skip

            def decode(index: int, reader: Reader) -> str:
                if reader.mapping is not None or reader.view == "union":
                    return readable(strings[index])
                return str(reader.tokenizer.backend.id_to_token(index))

            samples[language] = sample_guesses(
                readers[1:3],
                text_files(corpus)["held_out"],
                settings=recipe.evaluation,
                decode=decode,
                **common,
            )
        write_json(folder / "mlm.json", {"languages": rows, "summary": summarise(rows), "ties": "mean rank"})
        write_json(folder / "samples.json", samples)


def write_report(merge: Merge) -> None:
    """The report's page."""
    with merge.run.stage("report"):
        path = build_report(merge.run.path)
    merge.run.say(f"report: {path}")


def initial_student(merge: Merge) -> tuple[Any, dict[str, Any]]:
    """The student before training, and the record of where its weights came from."""
    recipe = merge.recipe
    settings = recipe.student
    config, first = _student_config(merge)
    model = build_student(config, seed=recipe.seed)
    record: dict[str, Any] = {
        "init": settings.init,
        "seed": recipe.seed,
        "config": json.loads(config.to_json_string()),
    }
    if first is not None:
        names = [first, *(name for name in recipe.teachers if name != first)]
        parts = []
        for name in names:
            teacher = recipe.teachers[name]
            loaded = load_masked_lm(
                teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
            )
            tokenizer = merge.tokenizers[name]
            parts.append(
                TeacherRows(name, loaded, merge.maps[name], tokenizer.ordinary_ids, tokenizer.special_ids)
            )
        record |= start_from_teachers(model, parts, row_map=settings.row_map, seed=recipe.seed)
    return model, record


def stored_examples(merge: Merge, language: str) -> StoredExamples:
    """A language's training examples, by its `use` of its teachers."""
    settings = merge.recipe.languages[language]
    stores = [Store(merge.stores[language, name]) for name in settings.teachers]
    weights = None
    if settings.use == "best" and merge.recipe.distillation.best_by == "character":
        # Copies mask the same words, thus the same characters: the total loss orders them as the loss a
        # character does.
        weights = [store.num_masked_of.astype(np.float64) for store in stores]
    choice = choose_copies(stores, settings.use, settings.teachers, weights=weights)
    return StoredExamples(stores, [merge.maps[name] for name in settings.teachers], choice)


def _student_config(merge: Merge) -> tuple[Any, str | None]:
    """(configuration, name of the teacher that the encoder comes from, if any)."""
    recipe = merge.recipe
    settings = recipe.student
    first, base, model_type = None, None, settings.model_type
    if settings.init == "teachers":
        first = settings.encoder_from or next(iter(recipe.teachers))
        base = model_config(
            recipe.teachers[first].model, name=first, revision=recipe.teachers[first].revision
        )
        model_type = base.model_type if "model_type" not in settings.model_fields_set else model_type
    config = student_config(
        model_type, settings.config, vocabulary_size=merge.union.size, special_ids=merge.union.special_ids,
        max_length=recipe.corpora.max_length, base=base,
    )  # fmt: skip
    return config, first


def _encoder_weights(merge: Merge) -> dict[str, str]:
    if merge.recipe.student.init == "random":
        return {}
    return {
        name: weights_fingerprint(t.model, revision=t.revision) for name, t in merge.recipe.teachers.items()
    }


class _TeacherCache:
    """Loads teachers one at a time and keeps the last few: a merge of ten needs no memory for ten."""

    def __init__(self, merge: Merge, size: int = 3) -> None:
        self.merge, self.size = merge, size
        self.loaded: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        """A teacher on this machine's device."""
        if name not in self.loaded:
            while len(self.loaded) >= self.size:
                self.loaded.pop(next(iter(self.loaded)))
            teacher = self.merge.recipe.teachers[name]
            self.loaded[name] = load_masked_lm(
                teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
            ).to(device())
        return self.loaded[name]


def _find_store(merge: Merge, language: str, name: str, weights: str) -> tuple[dict[str, Any], Path | None]:
    """(what the store has to be, its folder if it is there).

    With `precision: auto` a store that another machine computed in the other precision is as good.
    """
    precision = merge.recipe.scoring.precision
    wanted = resolve_dtype(precision)
    others = (
        [dtype for dtype in (torch.bfloat16, torch.float32) if dtype != wanted] if precision == "auto" else []
    )
    for dtype in (wanted, *others):
        identity = _store_identity(merge, language, name, weights, str(dtype).removeprefix("torch."))
        found = merge.run.find(f"store/{language}/{name}", identity)
        if found is not None:
            return identity, found
    return _store_identity(merge, language, name, weights, str(wanted).removeprefix("torch.")), None


def _store_identity(merge: Merge, language: str, name: str, weights: str, dtype: str) -> dict[str, Any]:
    recipe, tokenizer = merge.recipe, merge.tokenizers[name]
    return {
        "language": language,
        "teacher": name,
        "weights": weights,
        "tokenizer": tokenizer.fingerprint,
        "corpus": fingerprint(merge.corpora[language][1]),
        "masking": recipe.masking.model_dump(mode="json"),
        "top_k": recipe.scoring.top_k,
        "sampling": recipe.scoring.sampling,
        "precision": dtype,
        "max_length": recipe.corpora.max_length,
        "vocabulary_size": tokenizer.size,
        "shard_examples": recipe.scoring.shard_examples,
        "batch_tokens": recipe.scoring.batch_tokens,
        "seed": recipe.seed,
    }


def _corpora_fingerprints(merge: Merge) -> dict[str, str]:
    return {language: fingerprint(inputs) for language, (_, inputs) in merge.corpora.items()}


def _some_texts(corpus: Path) -> list[str]:
    examples = Examples(corpus / "held_out.arrow")
    return examples.texts(examples.first(SEGMENTATION_TEXTS))


def _only_tokenizer_files(folder: str, names: list[str]) -> list[str]:
    return [
        name for name in names if (Path(folder) / name).is_dir() or name in ("stamp.json", "vocabulary.json")
    ]


def _counter(run: Run, name: str, total: int) -> Any:
    """A progress callback that says every tenth of the way how far it is and the time left."""
    import time

    from polydistill.training import clock

    state = {"done": 0, "fresh": 0, "said": 0, "started": time.perf_counter()}

    def progress(examples: int, tokens: int) -> None:
        state["done"] += examples
        if tokens:
            state["fresh"] += examples
        tenth = state["done"] * 10 // max(1, total)
        if tenth > state["said"] and state["fresh"]:
            state["said"] = tenth
            seconds = time.perf_counter() - state["started"]
            left = seconds / state["fresh"] * (total - state["done"])
            run.say(f"{name}: {state['done']:,}/{total:,} examples, {clock(left)} left")

    return progress
