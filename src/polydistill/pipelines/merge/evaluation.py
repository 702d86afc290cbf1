"""The evaluation stage of a merge: student and teachers on every language."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from polydistill.artefacts import artefact, is_current
from polydistill.corpora.examples import Examples
from polydistill.disk import fingerprint, hash_folder, read_json, write_json
from polydistill.evaluation.readers import Reader, evaluate_language, sample_guesses, text_files
from polydistill.evaluation.summaries import summarise
from polydistill.masking import masks_identity
from polydistill.models.load import load_masked_lm
from polydistill.models.precision import device, resolve_dtype
from polydistill.pipelines.merge.state import Merge, corpora_fingerprints
from polydistill.store.reader import Store
from polydistill.tokenization.build import readable
from polydistill.tokenization.load import LoadedTokenizer


def evaluate_models(merge: Merge) -> None:
    """Student and teachers on held-out and further texts, to evaluation/mlm.json, samples.json and ranks.npz."""
    recipe, run = merge.recipe, merge.run
    target = run.path / "evaluation"
    inputs = {
        "stage": "evaluation",
        "student": hash_folder(run.path / "student" / "final", pattern="*.safetensors"),
        "tokenizer": read_json(run.path / "tokenizer" / "stamp.json")["fingerprint"],
        "settings": recipe.evaluation.model_dump(mode="json"),
        "masking": masks_identity(recipe.masking),
        "seed": recipe.seed,
        "corpora": corpora_fingerprints(merge),
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
        ranks: dict[str, Any] = {}
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
            of_language: dict[str, Any] = {}
            rows[language] = evaluate_language(
                readers, training=Examples(corpus / "train.arrow"), texts=text_files(corpus),
                settings=recipe.evaluation, dtype=dtype, ranks=of_language, **common,
            )  # fmt: skip
            ranks |= {f"{language}/{key}": value for key, value in of_language.items()}

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
        np.savez_compressed(folder / "ranks.npz", **ranks)


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
