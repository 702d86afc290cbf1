"""A student's tokenizers: the union as a WordPiece, and each language's own with the student's ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, normalizers

from polydistill.errors import TokenizerError
from polydistill.tokenization.load import LoadedTokenizer
from polydistill.tokenization.pieces import ESCAPE, FOREIGN, ROLES, Spec
from polydistill.tokenization.union import Union
from polydistill.tokenization.wordpiece import _finish, _keeps, _splits_chinese, _wordpiece


def union_tokenizer(
    union: Union,
    teachers: Sequence[LoadedTokenizer],
    *,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
) -> Tokenizer:
    """A real WordPiece model over the union, without `add_tokens`: added tokens match inside other words.

    lowercase, strip_accents  None: if every teacher does. If all teachers have the same normaliser and
                              pre-tokeniser
    (as a single teacher does), the union tokenizer takes both unchanged.
    """
    tokenizer = _wordpiece({string: index for index, string in enumerate(union.strings())})
    first = teachers[0].spec
    alike = all(
        teacher.kind == "wordpiece"
        and teacher.spec["normalizer"] == first["normalizer"]
        and teacher.spec["pre_tokenizer"] == first["pre_tokenizer"]
        for teacher in teachers
    )
    if alike and lowercase is None and strip_accents is None:
        shell = copy.deepcopy(first)
        shell.update(model=json.loads(tokenizer.to_str())["model"], added_tokens=[], post_processor=None)
        shell["model"]["max_input_chars_per_word"] = first["model"].get("max_input_chars_per_word", 100)
        tokenizer = Tokenizer.from_str(json.dumps(shell))
    else:
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=any(_splits_chinese(teacher.spec) for teacher in teachers),
            lowercase=all(t.lowercases for t in teachers) if lowercase is None else lowercase,
            strip_accents=all(t.strips_accents for t in teachers) if strip_accents is None else strip_accents,
        )
    return _finish(tokenizer)


def language_tokenizer(teacher: LoadedTokenizer, mapping: npt.NDArray[np.int64], union: Union) -> Tokenizer:
    """The teacher's own tokenizer with its ids renumbered to the student's.

    mapping  [teacher's size] teacher id → student id
    Ids of pieces that the teacher lacks are filled with strings that no text contains.
    """
    spec = copy.deepcopy(teacher.spec)
    spec["truncation"] = spec["padding"] = None
    model = spec["model"]
    filler = [FOREIGN + string for string in union.strings()]
    added = {token["content"] for token in spec["added_tokens"]}
    if teacher.kind == "unigram":
        # A Unigram's ids are the order of its list. Fillers get the lowest score, so that the score of an
        # unknown character, which is computed from it, does not change.
        lowest = min(score for _, score in model["vocab"])
        rows: list[tuple[str, float]] = [(string, lowest) for string in filler]
        for index, (string, score) in enumerate(model["vocab"]):
            if _keeps(mapping, index, teacher):
                rows[mapping[index]] = (string, score)
        model["vocab"] = rows
        model["unk_id"] = ROLES.index("unk") if model.get("unk_id") is not None else None
    else:
        renumbered = {string: index for index, string in enumerate(filler)}
        for string, index in sorted(model["vocab"].items(), key=lambda item: item[1]):
            if _keeps(mapping, index, teacher) or string in added:
                renumbered.pop(filler[mapping[index]], None)
                renumbered[string] = int(mapping[index])
        model["vocab"] = renumbered
    for token in spec["added_tokens"]:
        token["id"] = int(mapping[token["id"]])
    # Special tokens without a role are all mapped to unk, but `tokenizers` accepts only one string per id.
    spec["added_tokens"] = [
        token
        for token in spec["added_tokens"]
        if token["id"] != ROLES.index("unk")
        or token["content"] == teacher.backend.id_to_token(teacher.special_ids["unk"])
    ]
    spec["post_processor"] = renumber_processor(spec.get("post_processor"), mapping)
    try:
        return Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise TokenizerError(
            f"teachers.{teacher.name}",
            None,
            f"its tokenizer cannot be renumbered ({error})",
            "please report this with its tokenizer.json; use the union tokenizer meanwhile",
        ) from error


def renumber_processor(processor: Spec | None, mapping: npt.NDArray[np.int64]) -> Spec | None:
    """A post-processor's JSON with its ids renumbered, for every kind that `tokenizers` writes.

    mapping  [old size] old id → new id
    """
    if processor is None:
        return None
    processor = copy.deepcopy(processor)
    kind = processor["type"]
    if kind == "Sequence":
        processor["processors"] = [renumber_processor(part, mapping) for part in processor["processors"]]
    elif kind == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [int(mapping[index]) for index in token["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for key in ("cls", "sep"):
            string, index = processor[key]
            processor[key] = [string, int(mapping[index])]
    return processor


def readable(string: str) -> str:
    """A vocabulary entry for human readers, without private-use marks."""
    return string.replace(FOREIGN, "").replace(ESCAPE, "")
