"""The evaluation stage of a merge: student and teachers on every language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from polydistill.config.merge import MergeRecipe
from polydistill.config.shared import Masking
from polydistill.corpora.examples import Examples
from polydistill.disk import Json, hash_folder, read_json
from polydistill.evaluation.mlm import mean_reciprocal_rank
from polydistill.evaluation.readers import Reader, text_files
from polydistill.evaluation.summaries import TEACHER, HeldOut, summarise
from polydistill.masking import evaluation_masks_identity
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device
from polydistill.pipelines.merge.state import Merge
from polydistill.pipelines.run_folder import fingerprints
from polydistill.pipelines.stages.evaluation import Measured, Reading, evaluate
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.student import readable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate_models(merge: Merge) -> None:
    """Evaluate student and teachers on held-out and further texts.

    Writes mlm.json, samples.json and ranks.npz into evaluation/.
    """
    recipe, run = merge.recipe, merge.run
    inputs = {
        "stage": "evaluation",
        "student": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "tokenizer": read_json(run.path / "tokenizer" / "stamp.json")["fingerprint"],
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": evaluation_masks_identity(words(recipe)),
        "seed": recipe.seed,
        "corpora": fingerprints(merge.corpora),
        "stores": merge.store_fingerprints,
    }
    evaluate(
        run,
        "evaluation",
        inputs,
        recipe,
        lambda: _readings(merge),
        _summary,
        masking=words(recipe),
        max_length=merge.student_length,
        languages=len(recipe.languages),
    )


def words(recipe: MergeRecipe) -> Masking:
    """Masks of the evaluation: whole words where tokenizers with other pieces are compared."""
    if recipe.student.has_own_vocabulary:
        return recipe.masking.model_copy(update={"unit": "words"})
    return recipe.masking


def _readings(merge: Merge) -> Iterator[Reading]:
    """Each language with the union tokenizer and with those of its teachers."""
    student = load_masked_lm(str(merge.run.path / "student" / "final"), name="student").to(device())
    if merge.own is not None:
        yield from _own_readings(merge, student, merge.own)
        return
    union_backend = Tokenizer.from_file(str(merge.run.path / "tokenizer" / "tokenizer.json"))
    union_view = LoadedTokenizer("union", union_backend, merge.union.special_ids, 10**9)
    teachers = _TeacherCache(merge)
    strings = merge.union.strings()

    def decode(index: int, reader: Reader) -> str:
        if reader.mapping is not None or reader.view == "union":
            return readable(strings[index])
        return str(reader.tokenizer.backend.id_to_token(index))

    for language, settings in merge.recipe.languages.items():
        corpus = merge.corpora[language].path
        readers = [Reader("student", student, union_view, "union")]
        for name in settings.teachers:
            pieces = np.zeros(merge.union.size, dtype=bool)
            pieces[merge.maps[name]] = True
            tokenizer = merge.tokenizers[name]
            readers.append(Reader(name, teachers.load(name), tokenizer, "own", name))
            readers.append(Reader("student", student, tokenizer, "own", name, merge.maps[name], pieces))
        training = Examples(corpus / "train.arrow")
        yield Reading(language, readers, training, text_files(corpus), readers[1:3], decode)


def _own_readings(merge: Merge, student: PreTrainedModel, own: LoadedTokenizer) -> Iterator[Reading]:
    """Each language with the student's own tokenizer and its teachers', the same words hidden."""
    teachers = _TeacherCache(merge)

    def decode(index: int, reader: Reader) -> str:
        return readable(str(reader.tokenizer.backend.id_to_token(index)))

    for language, settings in merge.recipe.languages.items():
        corpus = merge.corpora[language].path
        theirs = [merge.tokenizers[name] for name in settings.teachers]
        readers = [Reader("student", student, own, "student", beside=tuple(theirs))]
        for name, tokenizer in zip(settings.teachers, theirs, strict=True):
            others = (own, *(other for other in theirs if other is not tokenizer))
            readers.append(Reader(name, teachers.load(name), tokenizer, "own", name, beside=others))
        training = Examples(corpus / "train.arrow")
        yield Reading(language, readers, training, text_files(corpus), readers[:1], decode)


def _summary(measured: Measured) -> Json:
    """Compare the student with each language's best teacher, by that teacher's tokenizer, so that both guess
    the same tokens (balanced-2022, section 4).
    """
    languages = {}
    for language, measures in measured.items():
        # `held_out/own/teacher/model`
        places = [place.split("/") for place in measures if place.startswith("held_out/own/")]
        teachers = {
            model: measures["/".join(("held_out", "own", of, model))]
            for _, _, of, model in places
            if of == model
        }
        # A student with a vocabulary of its own guesses other tokens than its teachers.
        if teachers and any(place[3] == "student" for place in places):
            best = max(teachers, key=lambda name: mean_reciprocal_rank(teachers[name].ranks))
            student = measures[f"held_out/own/{best}/student"]
            reciprocal = {TEACHER: 1.0 / teachers[best].ranks, "student": 1.0 / student.ranks}
            languages[language] = HeldOut(reciprocal, student.counts)
    return summarise(languages, {language: [language] for language in languages})


class _TeacherCache:
    """Loads teachers one at a time and keeps the last few: a merge of ten needs no memory for ten."""

    def __init__(self, merge: Merge, size: int = 3) -> None:
        self.merge, self.size = merge, size
        self.loaded: Json = {}

    def load(self, name: str) -> PreTrainedModel:
        """A teacher on this machine's device."""
        if name not in self.loaded:
            while len(self.loaded) >= self.size:
                self.loaded.pop(next(iter(self.loaded)))
            teacher = self.merge.recipe.teachers[name]
            self.loaded[name] = load_masked_lm(
                teacher.model, name=name, revision=teacher.revision, allow_pickle=teacher.allow_pickle
            ).to(device())
        return self.loaded[name]
